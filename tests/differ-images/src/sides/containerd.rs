//! containerd, from Debian's package: a process of ours with its own root, state and socket, asked through its `ctr`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, umount2};

use super::Outcome;
use crate::tree::walk;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(40);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const NAMESPACE: &str = "judge";
/// What is repeated of what it says.
const MAX_WORDS: usize = 1000;

pub struct Containerd {
    child: Child,
    ctr: PathBuf,
    directory: PathBuf,
}

impl Containerd {
    /// Starts the program of this folder. To be called by a thread that lives as long as it shall: it ends with that thread.
    pub fn start(programs: &Path, directory: &Path) -> Result<Containerd> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        let path = |name: &str| directory.join(name).display().to_string();
        let disabled = ["aufs", "btrfs", "devmapper", "zfs", "native"]
            .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""))
            .join(", ");
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [{disabled}, \"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.tracing\"]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
            path("root"),
            path("state"),
            path("socket"),
            path("ttrpc"),
        );
        let file = directory.join("config.toml");
        fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
        let log = File::create(directory.join("log")).context("creating containerd's log")?;
        // The kernel ends it with us, however we end.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(programs.join("containerd"))
            .arg("--config")
            .arg(&file);
        command.args(["--log-level", "error"]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("starting containerd")?;
        let mut containerd = Containerd { child, ctr: programs.join("ctr"), directory: directory.to_owned() };
        containerd.await_socket()?;
        Ok(containerd)
    }

    fn await_socket(&mut self) -> Result<()> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            // The socket is there before anybody answers at it.
            let answers = self.directory.join("socket").exists() && self.ctr(&["version"])?.status.success();
            if answers {
                return Ok(());
            }
            if Instant::now() > end || self.child.try_wait()?.is_some() {
                let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                bail!("containerd does not answer; its log:\n{log}");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// A call that is ended if it takes too long.
    fn ctr(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", &CALL_TIMEOUT.as_secs().to_string()]).arg(&self.ctr);
        command.arg("--address").arg(self.directory.join("socket")).args(["-n", NAMESPACE]).args(arguments);
        // It would show its progress to a terminal.
        command.stdin(Stdio::null()).output().context("starting ctr")
    }

    /// Pulls, mounts a snapshot as a container would have it, looks, and removes it all.
    pub fn pull(&self, reference: &str, password: Option<(&str, &str)>) -> Result<Outcome> {
        let user = password.map(|(username, password)| format!("{username}:{password}"));
        let mut arguments = vec!["images", "pull", "--plain-http"];
        if let Some(user) = &user {
            arguments.extend(["--user", user]);
        }
        arguments.push(reference);
        let pulled = self.ctr(&arguments)?;
        let outcome =
            if pulled.status.success() { self.look(reference)? } else { Outcome::Refused(said(&pulled)) };
        self.ctr(&["images", "rm", "--sync", reference])?;
        Ok(outcome)
    }

    fn look(&self, reference: &str) -> Result<Outcome> {
        let at = self.directory.join("at");
        fs::create_dir_all(&at).with_context(|| format!("creating {}", at.display()))?;
        let target = at.display().to_string();
        let mounted = self.ctr(&["images", "mount", "--rw", reference, &target])?;
        if !mounted.status.success() {
            self.forget(&target)?;
            return Ok(Outcome::Refused(format!("mount: {}", said(&mounted))));
        }
        let tree = walk(&at);
        umount2(&at, MntFlags::MNT_DETACH).context("unmounting containerd's snapshot")?;
        self.forget(&target)?;
        tree.map(Outcome::Tree)
    }

    /// The lease and the snapshot of a mount go by the name of its place.
    fn forget(&self, target: &str) -> Result<()> {
        self.ctr(&["snapshots", "rm", target])?;
        self.ctr(&["leases", "rm", target]).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Only if it has ended already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The last line of what a call said, which is why it failed.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("ended without a word");
    last.trim().trim_start_matches("ctr: ").chars().take(MAX_WORDS).collect()
}
