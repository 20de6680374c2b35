//! The network of a throw-away cluster: a namespace for each node, and one whose bridge plays the LAN.
//!
//! Nothing else is on the LAN. What is sent beyond it arrives nowhere: the router, which the nodes' default routes lead to,
//! does not exist, or knows only the nodes.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use skiff_network::netns;

use super::ClusterNode;

const ROUTER: &str = "10.99.0.1";

/// How the nodes are joined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// All are on one segment.
    Bridge,
    /// Each is on a segment of its own, alone with the router, as machines of most clouds are.
    Router,
}

/// Makes what is missing of it.
pub(super) fn make(lan: &Path, shape: Shape, nodes: &[ClusterNode]) -> Result<()> {
    if !netns::exists(lan) {
        netns::create(lan)?;
        within(lan, "link set lo up\n".into())?;
        match shape {
            Shape::Bridge => within(lan, "link add lan0 type bridge\nlink set lan0 up\n".into())?,
            Shape::Router => netns::within(lan, || fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
                .context("making the LAN's namespace a router")?,
        }
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
        let (ip, prefix) = (node.ip, if shape == Shape::Bridge { 24 } else { 32 });
        commands += &format!("address replace {ip}/{prefix} dev eth0\n");
        within(&node.netns, commands)?;
        match shape {
            Shape::Bridge => within(lan, format!("link set {port} master lan0 up\n"))?,
            Shape::Router => within(
                lan,
                format!(
                    "link set {port} up\naddress replace {ROUTER}/32 dev {port}\nroute replace {ip}/32 dev {port}\n"
                ),
            )?,
        }
        // Only with a link that is up.
        within(&node.netns, format!("route replace default via {ROUTER} dev eth0 onlink\n"))?;
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
