//! The two sides, and the tool that asks them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::command::{cargo, output, program, run};
use crate::fixtures::{self, Served};
use crate::peers::{Part, Peers, Programs, accounting_root, in_group, remove_group};
use crate::setup;

/// What a run needs and does not measure.
pub(super) struct Tools {
    pub(super) skiff: PathBuf,
    load: PathBuf,
    hollow: PathBuf,
    pub(super) programs: Programs,
    pub(super) served: Served,
}

impl Tools {
    pub(super) fn build(skiff: Option<&Path>) -> Result<Tools> {
        setup::run()?;
        run(cargo().args(["build", "--release", "-p", "skiff-load"]))?;
        run(cargo().args(["build", "--release", "-p", "skiff-hollow"]))?;
        let skiff = match skiff {
            Some(path) => std::path::absolute(path)?,
            None => {
                run(cargo().args(["build", "--release", "-p", "skiff"]))?;
                program("release")?
            }
        };
        ensure!(skiff.exists(), "{} is not there", skiff.display());
        let built = program("release")?;
        let [load, hollow] = ["skiff-load", "skiff-hollow"].map(|name| built.with_file_name(name));
        fixtures::run()?;
        let (programs, served) = (Programs::open()?, fixtures::serve()?);
        setup::room()?;
        Ok(Tools { skiff, load, hollow, programs, served })
    }

    pub(super) fn is_release(&self) -> bool {
        program("release").is_ok_and(|built| built == self.skiff)
    }

    pub(super) fn wasm_module(&self) -> PathBuf {
        self.served.dir.join("wasm-http/module.wasm")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Skiff,
    Upstream,
}

impl Who {
    pub(super) fn text(self) -> &'static str {
        match self {
            Who::Skiff => "skiff",
            Who::Upstream => "upstream",
        }
    }
}

/// How one side is asked, and by which groups its cost is known.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) who: Who,
    netns: PathBuf,
    kubeconfig: PathBuf,
    groups: Vec<PathBuf>,
}

impl Side {
    /// `skiff-hollow`, about to ask this side; ended if it takes longer than `timeout`.
    pub(super) fn hollow(&self, tools: &Tools, timeout: Duration, arguments: &[String]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "10", &timeout.as_secs().to_string(), "nsenter"]);
        let mut netns = OsString::from("--net=");
        netns.push(&self.netns);
        command.arg(netns).arg(&tools.hollow).args(arguments).arg("--kubeconfig").arg(&self.kubeconfig);
        command.stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        command
    }

    /// The load tool, about to ask this side.
    pub(super) fn load(&self, tools: &Tools, timeout: Duration, arguments: &[String]) -> Command {
        let mut command = Command::new(&tools.load);
        command.arg("--netns").arg(&self.netns).arg("--kubeconfig").arg(&self.kubeconfig);
        for group in &self.groups {
            command.arg("--group").arg(group);
        }
        command.arg("--timeout-seconds").arg(timeout.as_secs().to_string()).args(arguments);
        // What it says when it fails is shown to people.
        command.stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        command
    }

    pub(super) fn ask(&self, tools: &Tools, timeout: Duration, arguments: &[String]) -> Result<Value> {
        self.ask_later(tools, timeout, arguments)?.answer()
    }

    pub(super) fn ask_later(&self, tools: &Tools, timeout: Duration, arguments: &[String]) -> Result<Later> {
        let mut command = self.load(tools, timeout, arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Later(Some(child.context("starting skiff-load")?)))
    }
}

/// An answer that is being worked on; one that nobody waits for is given up.
pub(super) struct Later(Option<Child>);

impl Later {
    pub(super) fn answer(mut self) -> Result<Value> {
        let child = self.0.take().context("the answer was taken")?;
        let output = child.wait_with_output().context("waiting for skiff-load")?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("{}", why.trim().trim_start_matches("Error: "));
        }
        serde_json::from_slice(&output.stdout).context("reading the answer")
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

const NAME: &str = "bench";
const GROUP: &str = "skiff-measured";
/// The group that Skiff gives the pods of a cluster of that name.
const PODS_GROUP: &str = "skiff-bench";
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// A Wasm host stays for ten seconds after its last container.
const PODS_END_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A throw-away cluster of Skiff: control plane and node are one process, and one forwards to it.
pub(super) struct Skiff<'a> {
    tools: &'a Tools,
    /// Flags by their variables, where a cluster is to be other than usual.
    flags: &'a [(&'a str, &'a str)],
    is_down: bool,
}

impl<'a> Skiff<'a> {
    pub(super) fn prepare(tools: &'a Tools) -> Result<Skiff<'a>> {
        let group = group();
        fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
        Ok(Skiff { tools, flags: &[], is_down: false })
    }

    pub(super) fn up(tools: &'a Tools) -> Result<Skiff<'a>> {
        Skiff::up_with(tools, &[])
    }

    pub(super) fn up_with(tools: &'a Tools, flags: &'a [(&'a str, &'a str)]) -> Result<Skiff<'a>> {
        let mut skiff = Skiff::prepare(tools)?;
        skiff.flags = flags;
        skiff.launch()?;
        Ok(skiff)
    }

    /// Returns when the node is ready.
    pub(super) fn launch(&self) -> Result<()> {
        let mut up = in_group(&group(), Command::new("env"), &self.tools.skiff);
        up.args(["up", "--name", NAME, "--registries"]).arg(&self.tools.served.registries);
        up.envs(self.flags.iter().copied());
        output(&mut up).map(drop)
    }

    pub(super) fn side(&self) -> Side {
        let data = Path::new("/var/lib/skiff/clusters").join(NAME);
        Side {
            who: Who::Skiff,
            netns: Path::new("/run/skiff/clusters").join(NAME).join("net"),
            kubeconfig: data.join("kubeconfig.inside"),
            groups: vec![group(), accounting_root().join(PODS_GROUP)],
        }
    }

    /// The process that is both control plane and node.
    pub(super) fn server_pid(&self) -> Result<u64> {
        let path = Path::new("/var/lib/skiff/clusters").join(format!("{NAME}.json"));
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let cluster: Value =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        cluster["server"]["pid"].as_u64().with_context(|| format!("{} names no server", path.display()))
    }

    /// Waits until nothing runs that belongs to a pod.
    pub(super) fn await_no_pods(&self) -> Result<()> {
        let group = accounting_root().join(PODS_GROUP);
        let end = Instant::now() + PODS_END_TIMEOUT;
        while has_processes(&group) {
            ensure!(Instant::now() < end, "processes of pods are still there, in {}", group.display());
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    pub(super) fn down(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        if self.is_down {
            return Ok(());
        }
        self.is_down = true;
        down(&self.tools.skiff)
    }
}

impl Drop for Skiff<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            eprintln!("cleaning up after Skiff: {error:#}");
        }
    }
}

fn group() -> PathBuf {
    accounting_root().join(GROUP)
}

/// In a group or in one below it.
fn has_processes(group: &Path) -> bool {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    !own.trim().is_empty()
        || below.map(|entry| entry.path()).any(|path| path.is_dir() && has_processes(&path))
}

fn down(skiff: &Path) -> Result<()> {
    if Path::new("/run/skiff/clusters").join(NAME).exists() {
        output(Command::new(skiff).args(["down", "--name", NAME]))?;
    }
    remove_group(&group())
}

/// Removes what a run that was killed has left of Skiff's side.
pub(super) fn clean() -> Result<()> {
    if !Path::new("/run/skiff/clusters").join(NAME).exists() && !group().exists() {
        return Ok(());
    }
    let built = [program("release")?, program("debug")?];
    let skiff = built.iter().find(|path| path.exists()).context("no skiff is built to remove its cluster")?;
    down(skiff)
}

pub(super) fn peers_side(peers: &Peers) -> Side {
    Side {
        who: Who::Upstream,
        netns: peers.netns(),
        kubeconfig: peers.kubeconfig(),
        groups: vec![peers.group()],
    }
}

/// Upstream's side with these parts running.
pub(super) fn peers_up(tools: &Tools, parts: &[Part]) -> Result<Peers> {
    let mut peers = Peers::prepare(&tools.programs, parts, Some(&tools.served))?;
    let side = peers_side(&peers);
    peers.launch(parts, || api_ready(tools, &side))?;
    Ok(peers)
}

pub(super) fn api_ready(tools: &Tools, side: &Side) -> Result<()> {
    side.ask(tools, READY_TIMEOUT, &words("ready")).map(drop)
}

/// Both sides, both running.
pub(super) struct Both<'a> {
    pub(super) skiff: Skiff<'a>,
    pub(super) peers: Peers,
}

impl<'a> Both<'a> {
    pub(super) fn up(tools: &'a Tools, parts: &[Part]) -> Result<Both<'a>> {
        // The peers first: building one takes its time, and no cluster should wait for it.
        let peers = peers_up(tools, parts)?;
        Ok(Both { skiff: Skiff::up(tools)?, peers })
    }

    pub(super) fn sides(&self) -> [Side; 2] {
        [self.skiff.side(), peers_side(&self.peers)]
    }

    /// Asks both at once for what is not measured; both must succeed.
    pub(super) fn prepare(&self, tools: &Tools, timeout: Duration, arguments: &[String]) -> Result<()> {
        let mut answers = self.try_prepare(tools, timeout, arguments).into_iter();
        answers.try_for_each(|(who, answer)| answer.with_context(|| format!("preparing {}", who.text())))
    }

    /// The same where one side may well be unable to.
    pub(super) fn try_prepare(
        &self,
        tools: &Tools,
        timeout: Duration,
        arguments: &[String],
    ) -> [(Who, Result<()>); 2] {
        let asked = self.sides().map(|side| (side.who, side.ask_later(tools, timeout, arguments)));
        asked.map(|(who, later)| (who, later.and_then(|later| later.answer().map(drop))))
    }

    pub(super) fn down(self) -> Result<()> {
        let skiff = self.skiff.down();
        self.peers.down()?;
        skiff
    }
}
