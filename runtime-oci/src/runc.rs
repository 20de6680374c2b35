//! The OCI runtime's command line.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// A log of one command is a few lines.
const MAX_LOG_BYTES: u64 = 64 << 10;

/// The versions that close the escapes of November 2025 (CVE-2025-31133, -52565, -52881).
const FIXED: [(u32, u32, u32); 2] = [(1, 2, 8), (1, 3, 3)];

/// A command of the runtime with its state directory and, where errors are to be read, a log.
pub(crate) fn command(binary: &Path, root: &Path, log: Option<&Path>) -> Command {
    let mut command = Command::new(binary);
    command.env_clear();
    // The runtime looks for nothing but helpers of its own there.
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.arg("--root").arg(root);
    if let Some(log) = log {
        command.args([OsStr::new("--log"), log.as_os_str(), OsStr::new("--log-format"), OsStr::new("json")]);
    }
    command
}

/// The last error of a log, in the words that people search for.
pub(crate) fn error_of(log: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        msg: String,
    }
    let mut text = String::new();
    std::fs::File::open(log).ok()?.take(MAX_LOG_BYTES).read_to_string(&mut text).ok()?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let last = lines.rfind(|line| !matches!(line.level.as_str(), "warning" | "info" | "debug"))?;
    // Creating and starting are one command here and two upstream: name the one that fails.
    Some(last.msg.replacen("runc run failed", "runc create failed", 1).trim().to_owned())
}

/// The version of an installed runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuncVersion {
    /// `runc`, `crun`, …
    pub name: String,
    /// `1.1.5+ds1`.
    pub version: String,
}

impl RuncVersion {
    /// Reads the first line of `--version`: `runc version 1.1.5+ds1`.
    pub(crate) fn parse(text: &str) -> Option<RuncVersion> {
        let mut words = text.lines().next()?.split_whitespace();
        let name = words.next()?.to_owned();
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?.to_owned();
        Some(RuncVersion { name, version })
    }

    /// Whether it is a runc older than the fixes of known escapes. A distribution may have patched it.
    pub fn is_outdated(&self) -> bool {
        if self.name != "runc" {
            return false;
        }
        let mut numbers =
            self.version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        let version: (u32, u32, u32) = (next(), next(), next());
        let [old_line, new_line] = FIXED;
        version < old_line || ((version.0, version.1) == (new_line.0, new_line.1) && version < new_line)
    }
}

impl fmt::Display for RuncVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_escapes_are_outdated() {
        for (version, outdated) in [
            ("1.1.5+ds1", true),
            ("1.2.7", true),
            ("1.2.8", false),
            ("1.3.0", true),
            ("1.3.3", false),
            ("1.4.0-rc.3", false),
        ] {
            let parsed = RuncVersion::parse(&format!("runc version {version}\nspec: 1.0.2\n")).unwrap();
            assert_eq!(parsed.is_outdated(), outdated, "{version}");
        }
        assert!(!RuncVersion::parse("crun version 1.8.1").unwrap().is_outdated());
        assert_eq!(RuncVersion::parse(""), None);
    }

    #[test]
    fn the_last_error_of_a_log_is_told_as_upstream_tells_it() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let lines = r#"{"level":"warning","msg":"hm"}
{"level":"error","msg":"runc run failed: unable to start container process: exec: \"x\": executable file not found in $PATH"}
garbage"#;
        std::fs::write(&log, lines).unwrap();
        let expected = "runc create failed: unable to start container process: exec: \"x\": executable file not found in $PATH";
        assert_eq!(error_of(&log).as_deref(), Some(expected));
        assert_eq!(error_of(&directory.path().join("none")), None);
    }
}
