//! Runs `nft`: one script is one transaction. And reads what it lists.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run nft; install the package nftables")]
    Start(#[source] std::io::Error),
    #[error("cannot talk to nft")]
    Talk(#[source] std::io::Error),
    #[error("nft refused a change of {n_lines} lines: {message}")]
    Refused { n_lines: usize, message: String },
    #[error("nft did not end within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Ten thousand Services load in about two seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Applies a script, wholly or not at all. An empty script does nothing.
pub(crate) async fn apply(script: &str) -> Result<(), NftError> {
    if script.is_empty() {
        return Ok(());
    }
    run(&["-f", "-"], script).await.map(|_| ())
}

/// What `nft` prints about a table as JSON, without the elements of its sets and maps.
pub(crate) async fn list(table: &str) -> Result<Vec<u8>, NftError> {
    let arguments: Vec<&str> = ["-t", "-j", "list", "table"].into_iter().chain(table.split(' ')).collect();
    run(&arguments, "").await
}

async fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, NftError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NftError::Start)?;
    let stdin = child.stdin.take();
    let write = async move {
        if let Some(mut stdin) = stdin {
            // nft may end early over a fault; what it says on stderr is the better error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    // Both at once: nft may complain more than a pipe holds before it has read everything.
    let talk = async { tokio::join!(write, child.wait_with_output()).1.map_err(NftError::Talk) };
    let output = tokio::time::timeout(TIMEOUT, talk).await.map_err(|_| NftError::Timeout)??;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect();
    Err(NftError::Refused { n_lines: input.lines().count(), message })
}

/// What stands of a table.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// Maps as well.
    pub(crate) sets: BTreeSet<String>,
    /// By chain.
    pub(crate) n_rules: BTreeMap<String, usize>,
}

impl Listed {
    /// Reads what `nft -j list table` prints; `None` if it is no such thing.
    pub(crate) fn parse(json: &[u8]) -> Option<Listed> {
        #[derive(Deserialize)]
        struct Listing {
            nftables: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            chain: Option<Named>,
            set: Option<Named>,
            map: Option<Named>,
            rule: Option<Rule>,
        }
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        #[derive(Deserialize)]
        struct Rule {
            chain: String,
        }
        let listing: Listing = serde_json::from_slice(json).ok()?;
        let mut listed = Listed::default();
        for item in listing.nftables {
            listed.sets.extend(item.set.or(item.map).map(|set| set.name));
            if let Some(chain) = item.chain {
                listed.n_rules.entry(chain.name).or_default();
            }
            if let Some(rule) = item.rule {
                *listed.n_rules.entry(rule.chain).or_default() += 1;
            }
        }
        Some(listed)
    }
}

/// The same in every version of the program, so that a new one finds the chains of the old; and nothing can be
/// named so that its chains are another's.
pub(crate) fn fingerprint(text: &str) -> String {
    Sha256::digest(text).iter().take(10).map(|byte| format!("{byte:02x}")).collect()
}
