//! `cargo xtask kubectl`: upstream's own command suite of kubectl (`test/cmd` of the pinned module, read at test time) against
//! Skiff's API server and controllers.
//!
//! ```text
//! module cache ─ copy of what the suite reads ─┐
//! skiff-suite (server, one token) ─ port ──────┴─▶ tests/suite/run.sh ─ verdicts ─ held against tests/suite/failing.txt
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{cache, cargo, program, root, run as execute};
use crate::conformance;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these functions, as `run_pod_tests,run_crd_tests`
    #[arg(long, default_value = "")]
    only: String,
}

/// What of upstream's tree the suite reads.
const PARTS: [&str; 5] =
    ["hack", "test/cmd", "test/fixtures", "test/e2e/testing-manifests", "third_party/forked/shell2junit"];
const START_TIMEOUT: Duration = Duration::from_secs(60);
const SUITE_TIMEOUT: Duration = Duration::from_secs(45 * 60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn run(options: &Options) -> Result<()> {
    let (sources, bin) = conformance::kubectl()?;
    execute(cargo().args(["build", "-p", "skiff-suite"]))?;
    let place = cache()?.join("kubectl");
    let (tree, logs, temp) = (place.join("tree"), place.join("logs"), place.join("tmp"));
    for dir in [&tree, &logs, &temp] {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    copy(&sources, &bin, &tree)?;
    let mut server = Server::start(&temp, &logs)?;
    let suite = suite(options, &tree, &logs, &temp, &server);
    server.stop();
    suite?;
    judge(&logs, options.only.is_empty())
}

fn copy(sources: &Path, bin: &Path, tree: &Path) -> Result<()> {
    for part in PARTS {
        let to = tree.join(part);
        let parent = to.parent().context("a part without a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        execute(Command::new("cp").arg("-r").arg(sources.join(part)).arg(&to))?;
    }
    // What Go unpacks is for nobody to write to; the suite writes beside what it reads.
    execute(Command::new("chmod").args(["-R", "u+w"]).arg(tree))?;
    // Nor does it keep what may be run.
    execute(Command::new("chmod").args(["-R", "u+x"]).arg(tree.join("test/fixtures/pkg/kubectl/plugins")))?;
    let to = tree.join("_output/bin");
    fs::create_dir_all(&to).with_context(|| format!("creating {}", to.display()))?;
    for name in ["kubectl", "kubectl-convert"] {
        fs::copy(bin.join(name), to.join(name)).with_context(|| format!("copying {name}"))?;
    }
    Ok(())
}

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Path, logs: &Path) -> Result<Server> {
        let port_file = folder.join("port");
        let log_file = logs.join("server.log");
        let log = fs::File::create(&log_file).context("creating the server's log")?;
        let suite = program("debug")?.with_file_name("skiff-suite");
        // In a network of its own, so that nothing the suite does leaves the machine.
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(suite);
        command.arg("--folder").arg(folder).stdin(Stdio::null());
        command.stdout(log.try_clone().context("a second handle of the log")?).stderr(log);
        let mut child = command.spawn().context("starting skiff-suite")?;
        let begun = Instant::now();
        loop {
            let port = fs::read_to_string(&port_file).ok().and_then(|text| text.parse().ok());
            if let Some(port) = port {
                return Ok(Server { child, port });
            }
            if child.try_wait().context("looking after skiff-suite")?.is_some()
                || begun.elapsed() > START_TIMEOUT
            {
                _ = child.kill();
                bail!("skiff-suite does not serve; its log is {}", log_file.display());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn stop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn suite(options: &Options, tree: &Path, logs: &Path, temp: &Path, server: &Server) -> Result<()> {
    let seconds = SUITE_TIMEOUT.as_secs().to_string();
    let output = fs::File::create(logs.join("suite.log")).context("creating the suite's log")?;
    let network = format!("--net=/proc/{}/ns/net", server.child.id());
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", &seconds, "nsenter", &network, "bash"])
        .arg(root().join("tests/suite/run.sh"));
    command
        .env("ROOT", tree)
        .env("LOGS", logs)
        .env("SERVER_PORT", server.port.to_string())
        .env("ONLY", &options.only)
        .env("TMPDIR", temp);
    command.stdin(Stdio::null()).stderr(output);
    let status = command.status().context("starting the suite")?;
    ensure!(
        status.success(),
        "the suite ended early ({status}); its log is {}",
        logs.join("suite.log").display()
    );
    Ok(())
}

fn judge(logs: &Path, is_whole: bool) -> Result<()> {
    let verdicts = fs::read_to_string(logs.join("verdicts")).context("reading the verdicts")?;
    let mut failed = BTreeSet::new();
    let mut n_passed = 0;
    for line in verdicts.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["passed", ..] => n_passed += 1,
            ["failed", name, ..] => _ = failed.insert(name),
            _ => bail!("no verdict: {line}"),
        }
    }
    let list = root().join("tests/suite/failing.txt");
    let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let expected: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect();
    println!("{n_passed} of {} functions passed; logs are in {}", n_passed + failed.len(), logs.display());
    for name in &failed {
        println!("failed: {name}: {}", expected.get(name).unwrap_or(&"NOT EXPECTED"));
    }
    let better: Vec<_> = expected.keys().filter(|name| is_whole && !failed.contains(**name)).collect();
    ensure!(better.is_empty(), "these pass now, and go from {}: {better:?}", list.display());
    let worse: Vec<_> = failed.iter().filter(|name| !expected.contains_key(**name)).collect();
    ensure!(worse.is_empty(), "these should pass: {worse:?}");
    Ok(())
}
