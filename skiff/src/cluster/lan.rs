//! The network of a throw-away cluster: a namespace for each node, and one whose bridge plays the LAN.
//!
//! Nothing else is on the LAN. Its router, which the nodes' default routes lead to, does not exist: what is sent beyond the
//! LAN arrives nowhere.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use skiff_network::netns;

use super::ClusterNode;

const ROUTER: &str = "10.99.0.1";

/// Makes what is missing of it.
pub(super) fn make(lan: &Path, nodes: &[ClusterNode]) -> Result<()> {
    if !netns::exists(lan) {
        netns::create(lan)?;
        within(lan, "link set lo up\nlink add lan0 type bridge\nlink set lan0 up\n".into())?;
    }
    for node in nodes {
        if !netns::exists(&node.netns) {
            netns::create(&node.netns)?;
        }
        let port = format!("node{}", node.number);
        let mut commands = "link set lo up\n".to_owned();
        if !has_link(&node.netns, "eth0")? {
            // Left over if the last try ended between the two.
            let taken = has_link(lan, &port)?;
            if taken {
                within(lan, format!("link delete {port}\n"))?;
            }
            commands += &format!("link add eth0 type veth peer name {port}\n");
            commands += &format!("link set {port} netns {}\n", lan.display());
        }
        commands += "link set eth0 up\n";
        commands += &format!("address replace {}/24 dev eth0\n", node.ip);
        within(&node.netns, commands)?;
        within(lan, format!("link set {port} master lan0 up\n"))?;
        // Only with a link that is up.
        within(&node.netns, format!("route replace default via {ROUTER} dev eth0\n"))?;
    }
    Ok(())
}

fn has_link(namespace: &Path, name: &str) -> Result<bool> {
    let name = name.to_owned();
    Ok(netns::within(namespace, move || nix::net::if_::if_nametoindex(name.as_str()).is_ok())?)
}

/// Runs `ip` commands in a namespace, one a line.
fn within(namespace: &Path, commands: String) -> Result<()> {
    netns::within(namespace, move || -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("running ip; install the package iproute2")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip -batch: {}", error.trim());
        Ok(())
    })?
}
