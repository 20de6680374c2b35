//! What the guest said, kept by platform in `docs/platforms/`, and the page that shows all of them.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::share::Share;
use crate::command::{output, root};

/// What `run.sh` writes a claim: its name, `held` or `failed`, and a figure or the reason.
pub(super) struct Claim {
    text: String,
    held: bool,
    figure: String,
}

pub(super) struct Results {
    /// Such as `Linux 6.1.0-49-amd64, cgroup v2, systemd 252`.
    platform: String,
    claims: Vec<Claim>,
}

fn claims(text: &str) -> Result<Vec<Claim>> {
    let claim = |line: &str| {
        let mut parts = line.splitn(3, '\t');
        let (text, held) = (parts.next()?.to_owned(), parts.next()? == "held");
        Some(Claim { text, held, figure: parts.next()?.trim().to_owned() })
    };
    text.lines().map(|line| claim(line).with_context(|| format!("the guest wrote {line:?}"))).collect()
}

impl Results {
    pub(super) fn read(share: &Share) -> Result<Results> {
        let read = |name: &str| {
            let path = share.out().join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let claims = claims(&read("results")?)?;
        ensure!(
            share.out().join("done").exists(),
            "the guest did not come to its end; see {}",
            share.out().display()
        );
        ensure!(!claims.is_empty(), "the guest tried no claim");
        Ok(Results { platform: read("platform")?.trim().to_owned(), claims })
    }

    pub(super) fn n_failed(&self) -> usize {
        self.claims.iter().filter(|claim| !claim.held).count()
    }

    pub(super) fn print(&self) {
        for Claim { text, held, figure } in &self.claims {
            println!("{} {text}: {figure}", if *held { "held  " } else { "FAILED" });
        }
    }

    /// Replaces what was known of this platform.
    pub(super) fn record(&self) -> Result<()> {
        let dir = folder();
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let path = dir.join("x86-64.txt");
        let mut text = format!("{} on x86-64, Skiff {}\n", self.platform, commit()?);
        for Claim { text: claim, held, figure } in &self.claims {
            writeln!(text, "{claim}\t{}\t{figure}", if *held { "held" } else { "failed" })?;
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn folder() -> PathBuf {
    root().join("docs/platforms")
}

fn commit() -> Result<String> {
    let mut git = Command::new("git");
    let text = output(git.current_dir(root()).args(["describe", "--always", "--dirty", "--abbrev=7"]))?;
    Ok(text.trim().to_owned())
}

/// Writes docs/platforms.md from all that is recorded.
pub(super) fn write() -> Result<()> {
    let entries = fs::read_dir(folder()).context("listing docs/platforms")?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut page = "# Platforms\n\nThe output of `cargo xtask guest`: claims that a Debian guest with its own kernel and \
                    systemd judges, in qemu.\nThe server is run there by its unit, on the guest's own network.\n"
        .to_owned();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let (head, rest) = text.split_once('\n').context("a platform has a first line")?;
        write!(page, "\n## {head}\n\n| claim | | figure |\n|---|---|---|\n")?;
        for Claim { text, held, figure } in claims(rest)? {
            let figure = figure.replace('|', "\\|");
            writeln!(page, "| {text} | {} | {figure} |", if held { "held" } else { "**failed**" })?;
        }
    }
    let path = root().join("docs/platforms.md");
    fs::write(&path, page).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_a_name_an_outcome_and_a_figure() {
        let read = claims("a b\theld\t3 s\nc\tfailed\t\n").unwrap();
        let read: Vec<_> = read.iter().map(|c| (c.text.as_str(), c.held, c.figure.as_str())).collect();
        assert_eq!(read, [("a b", true, "3 s"), ("c", false, "")]);
        assert!(claims("a b").is_err());
    }
}
