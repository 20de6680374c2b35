//! Stories of stock clients: programs that know nothing of Skiff, against a control plane with hollow nodes.
//!
//! `cargo xtask test` builds them from what `tests/clients` pins and names their folder in `SKIFF_TEST_CLIENTS`;
//! `cargo xtask clients` only builds them.

mod access;
mod helm;
mod kube_rs;
mod kubectl;
mod operator;
mod stock;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use skiff_hollow::api::Caller;
use skiff_hollow::fleet::{Fleet, FleetOptions, Machine, WatchMode};
use skiff_hollow::latency::Latencies;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

pub(crate) use access::Access;

use crate::{ControlPlane, until};

/// How long a program may take for one thing.
const PATIENCE: Duration = Duration::from_secs(120);

/// A control plane that programs reach, with nodes that say of each pod that it runs.
struct Stage {
    plane: ControlPlane,
    access: Access,
    fleet: Fleet,
    admin: PathBuf,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn set() -> Result<Stage> {
        let (plane, access) = ControlPlane::start_served().await?;
        let machine = Machine { cpu: "4".into(), memory: "8Gi".into(), n_pods: 110 };
        let options = FleetOptions {
            n_nodes: 2,
            prefix: "hollow".into(),
            machine,
            watch: WatchMode::Shared,
            heartbeat_spread: Duration::ZERO,
        };
        let caller = Caller::new(plane.client().clone(), 16, Arc::new(Latencies::default()));
        let fleet = Fleet::start(&options, caller, None).await?;
        let admin = access.kubeconfig("admin", &["system:masters"])?;
        Ok(Stage { plane, access, fleet, admin, folder: tempfile::tempdir()? })
    }

    async fn clear(self) -> Result<()> {
        self.fleet.remove().await?;
        self.plane.stop().await
    }

    /// A program that is about to run as the administrator, in a folder of its own.
    fn program(&self, program: impl AsRef<Path>, args: &[&str]) -> Run {
        let mut command = Command::new(program.as_ref());
        command.args(args).env("KUBECONFIG", &self.admin).env("HOME", self.folder.path());
        command.env("TMPDIR", self.folder.path());
        command.env("HTTPS_PROXY", "").env("https_proxy", "").kill_on_drop(true);
        Run { command, input: String::new(), told: told(program.as_ref(), args) }
    }

    fn kubectl(&self, args: &[&str]) -> Run {
        self.program("kubectl", args)
    }

    async fn get(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.kubectl(&all).succeeds().await?)?)
    }
}

/// A program that is about to run.
struct Run {
    command: Command,
    input: String,
    told: String,
}

impl Run {
    fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Run {
        self.command.env(name, value);
        self
    }

    fn input(mut self, text: &str) -> Run {
        text.clone_into(&mut self.input);
        self
    }

    async fn output(mut self) -> Result<(Output, String)> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| format!("starting {}", self.told))?;
        let mut stdin = child.stdin.take().context("no input")?;
        let run = async {
            // One that does not read it is not at fault.
            let _ = stdin.write_all(self.input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, run).await;
        let output = output.with_context(|| format!("{} takes too long", self.told))??;
        Ok((output, self.told))
    }

    /// What it prints to standard output; it must succeed.
    async fn succeeds(self) -> Result<String> {
        let (output, told) = self.output().await?;
        let text = both(&output);
        ensure!(output.status.success(), "{told}: {}: {text}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All that it prints; it must end with this code.
    async fn ends_with(self, code: i32) -> Result<String> {
        let (output, told) = self.output().await?;
        let text = both(&output);
        ensure!(output.status.code() == Some(code), "{told}: {}: {text}", output.status);
        Ok(text)
    }
}

fn told(program: &Path, args: &[&str]) -> String {
    format!("{} {}", program.file_name().unwrap_or_default().display(), args.join(" "))
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asks a program to end, and waits until it has.
async fn end(mut child: Child) -> Result<std::process::ExitStatus> {
    let pid = i32::try_from(child.id().context("it has ended")?)?;
    let pid = rustix::process::Pid::from_raw(pid).context("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    Ok(tokio::time::timeout(PATIENCE, child.wait()).await.context("it does not end")??)
}

/// The same as [`until`], for as long as a program may take.
async fn until_patiently<T>(what: &str, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match until(what, &look).await {
            Err(_) if Instant::now() < deadline => {}
            outcome => return outcome,
        }
    }
}

/// A program of `tests/clients`.
fn built(name: &str) -> Result<PathBuf> {
    let Some(folder) = std::env::var_os("SKIFF_TEST_CLIENTS") else {
        bail!("SKIFF_TEST_CLIENTS is not set; run the stories with: cargo xtask test")
    };
    let path = PathBuf::from(folder).join(name);
    ensure!(path.is_file(), "{} is not there; build it with: cargo xtask clients", path.display());
    Ok(path)
}

/// A file beside these stories. Cargo runs a test in its package's folder.
fn file(path: &str) -> String {
    format!("tests/control_plane/clients/{path}")
}
