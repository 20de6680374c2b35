//! One run of upstream's suite within the network of a cluster.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::programs::Programs;

/// Which tests of a set.
pub(super) enum Selection {
    /// Of a SIG, or whose name matches, or both, or all.
    Matching { sig: Option<String>, focus: Option<String> },
    /// Exactly these.
    Listed(Vec<String>),
}

pub(super) struct Suite<'a> {
    pub(super) programs: &'a Programs,
    pub(super) netns: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) results: &'a Path,
    /// ginkgo's filter, which holds whatever is selected.
    pub(super) labels: &'a str,
    /// How many tests run at once, but for those that are [Serial].
    pub(super) procs: usize,
    pub(super) timeout: Duration,
}

const REPORT: &str = "report.json";
/// Before the names of the reports of those that wait for ever.
const ENDLESS: &str = "endless-";
const JUNIT: &str = "junit.xml";
pub(super) const LOG: &str = "e2e.log";
/// Of those that wait for ever.
const ENDLESS_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// The longest a test waits for its turn to end once the suite's own time is over.
const GRACE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);
/// Tests wait more than they work: for pods, for time-outs.
const PROCESSES_PER_CORE: usize = 4;

pub(super) fn procs() -> usize {
    PROCESSES_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from)
}

impl Selection {
    /// Reads a list that says what to run: one name a line, as `failed.txt` of an earlier run has them.
    pub(super) fn of_file(path: &Path) -> Result<Selection> {
        let selection = Selection::of_list(path)?;
        if selection.names().is_empty() {
            bail!("{} lists no test", path.display());
        }
        Ok(selection)
    }

    /// Reads a list that may be empty.
    pub(super) fn of_list(path: &Path) -> Result<Selection> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Selection::Listed(lines.map(str::to_owned).collect()))
    }

    /// Whether it is all there is.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Selection::Matching { sig: None, focus: None })
    }

    /// The names that are listed.
    pub(super) fn names(&self) -> &[String] {
        match self {
            Selection::Listed(names) => names,
            Selection::Matching { .. } => &[],
        }
    }

    /// One expression: ginkgo runs what matches *any* of several.
    fn expression(&self) -> Option<String> {
        match self {
            Selection::Matching { sig: None, focus: None } => None,
            Selection::Matching { sig: None, focus: Some(focus) } => Some(focus.clone()),
            Selection::Matching { sig: Some(sig), focus } => {
                let sig = sig.trim_start_matches("sig-");
                let rest = focus.as_ref().map(|focus| format!(".*({focus})")).unwrap_or_default();
                Some(format!(r"\[sig-{}\]{rest}", escaped(sig)))
            }
            // What is matched is the name with the suite's before it.
            Selection::Listed(names) => {
                let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
                Some(format!(r"^[^\[]*({})$", names.join("|")))
            }
        }
    }
}

/// Where a run may have left reports.
pub(super) fn reports(results: &Path) -> [PathBuf; 2] {
    ["", ENDLESS].map(|prefix| results.join(format!("{prefix}{REPORT}")))
}

/// A text as an expression of Go that matches just it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// One run of ginkgo.
struct Part {
    /// Before the names of its reports.
    prefix: &'static str,
    focus: Option<String>,
    skip: Option<String>,
    procs: usize,
    timeout: Duration,
}

impl Suite<'_> {
    /// Runs all that is selected, whatever the outcome of the tests. Answers the reports.
    ///
    /// ginkgo knows a time limit for a suite and none for a test, and some tests have none of their own: those of
    /// `endless` are the last of a whole run.
    pub(super) fn run(&self, selection: &Selection, endless: &Selection) -> Result<Vec<PathBuf>> {
        let whole = Part {
            prefix: "",
            focus: selection.expression(),
            skip: None,
            procs: self.procs,
            timeout: self.timeout,
        };
        let parts = if selection.is_whole() && !endless.names().is_empty() {
            let last = Part {
                prefix: ENDLESS,
                focus: endless.expression(),
                skip: None,
                procs: endless.names().len().max(1),
                timeout: ENDLESS_TIMEOUT,
            };
            vec![Part { skip: endless.expression(), ..whole }, last]
        } else {
            vec![whole]
        };
        parts.iter().try_for_each(|part| self.run_part(part))?;
        Ok(parts.iter().map(|part| self.results.join(format!("{}{REPORT}", part.prefix))).collect())
    }

    fn run_part(&self, part: &Part) -> Result<()> {
        let path = self.results.join(LOG);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let mut child = self
            .command(part)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting nsenter, of the package util-linux")?;
        // ginkgo ends the suite at the timeout and writes its report; this is for a ginkgo that does not.
        if wait(&mut child, Instant::now() + part.timeout + GRACE)?.is_none() {
            let ginkgo = child.id().to_string();
            // Its processes too: it waits for them, whatever it is told. Status 1 is that there are none.
            Command::new("pkill").args(["-INT", "-P", &ginkgo]).status().context("starting pkill")?;
            crate::command::run(Command::new("kill").args(["-INT", &ginkgo]))?;
            if wait(&mut child, Instant::now() + GRACE)?.is_none() {
                child.kill().context("ending ginkgo")?;
                child.wait().context("waiting for ginkgo")?;
            }
        }
        Ok(())
    }

    /// The suite dials nodes and pods, so it runs where they are; ginkgo runs what is [Serial] last and alone.
    fn command(&self, part: &Part) -> Command {
        let home = self.results.join("home");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search: Vec<PathBuf> =
            [self.programs.bin()].into_iter().chain(std::env::split_paths(&path)).collect();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.display()))
            .arg(self.programs.path("ginkgo"))
            .args(["run", "--silence-skips", "--no-color"])
            .arg(format!("--label-filter={}", self.labels))
            .arg(format!("--procs={}", part.procs))
            .arg(format!("--timeout={}s", part.timeout.as_secs()))
            .arg(format!("--json-report={}{REPORT}", part.prefix))
            .arg(format!("--junit-report={}{JUNIT}", part.prefix))
            .arg(flag("--output-dir", self.results));
        for (flag, expression) in [("focus", &part.focus), ("skip", &part.skip)] {
            if let Some(expression) = expression {
                command.arg(format!("--{flag}={expression}"));
            }
        }
        command
            .arg(self.programs.path("e2e.test"))
            .arg("--")
            .arg(flag("--kubeconfig", &self.kubeconfig))
            .arg(flag("--kubectl-path", &self.programs.path("kubectl")))
            .arg(flag("--e2e-output-dir", self.results))
            // A cluster that is not up fails the run now, not in half an hour.
            .args(["--node-schedulable-timeout=2m", "--system-pods-startup-timeout=2m"])
            .args(["--provider=skeleton", "--dns-domain=cluster.local", "--disable-log-dump"])
            .arg("--dump-logs-on-failure=false");
        command.env("TZ", "UTC").env("HOME", home).env("KUBECONFIG", &self.kubeconfig);
        if let Ok(search) = std::env::join_paths(search) {
            command.env("PATH", search);
        }
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "KUBE_TEST_REPO_LIST"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn wait(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        match child.try_wait().context("waiting for ginkgo")? {
            None if Instant::now() < deadline => std::thread::sleep(POLL),
            ended => return Ok(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selection;

    fn matching(sig: Option<&str>, focus: Option<&str>) -> Option<String> {
        Selection::Matching { sig: sig.map(Into::into), focus: focus.map(Into::into) }.expression()
    }

    #[test]
    fn sig_and_focus_narrow_each_other() {
        assert_eq!(matching(None, None), None);
        assert_eq!(matching(None, Some("a|b")).as_deref(), Some("a|b"));
        assert_eq!(matching(Some("sig-apps"), None).as_deref(), Some(r"\[sig-apps\]"));
        assert_eq!(matching(Some("apps"), Some("a|b")).as_deref(), Some(r"\[sig-apps\].*(a|b)"));
    }

    #[test]
    fn a_listed_name_matches_only_itself() {
        let listed = Selection::Listed(vec!["[sig-node] a.b (c)".into(), "d".into()]);
        assert_eq!(listed.expression().as_deref(), Some(r"^[^\[]*(\[sig-node\] a\.b \(c\)|d)$"));
    }
}
