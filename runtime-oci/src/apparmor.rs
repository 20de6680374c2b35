//! The AppArmor profile of containers that ask for no other, as containerd and Docker have one each.
//!
//! It is in the kernel from the start of the node until the machine's end: containers of another node may be confined by it.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

pub(crate) const DEFAULT_PROFILE: &str = "skiff-default";

const TEXT: &str = include_str!("apparmor.txt");
/// An emulated processor compiles it in some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("run apparmor_parser (install the package apparmor)")]
    Run(#[source] std::io::Error),
    #[error("apparmor_parser took longer than {} s", PATIENCE.as_secs())]
    Late,
    #[error("apparmor_parser: {0}")]
    Refused(String),
}

/// Loads the profile, in place of the last version's; answers whether containers can be confined by it. That they cannot is no
/// reason to run none, as upstream's runtimes see it.
pub(crate) async fn load() -> bool {
    let loaded = tokio::time::timeout(PATIENCE, parse()).await.unwrap_or(Err(LoadError::Late));
    if let Err(error) = &loaded {
        let error = skiff_cri::whole(error);
        tracing::warn!(error, "no AppArmor profile for containers: RuntimeDefault confines nothing");
    }
    loaded.is_ok()
}

async fn parse() -> Result<(), LoadError> {
    let mut parser = Command::new("apparmor_parser");
    // Replaced in the kernel, whatever the cache holds.
    parser.args(["--replace", "--skip-cache"]).kill_on_drop(true);
    parser.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = parser.spawn().map_err(LoadError::Run)?;
    if let Some(mut input) = child.stdin.take() {
        // Should it end without reading, its own words say why.
        _ = input.write_all(TEXT.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(LoadError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LoadError::Refused(said.trim().chars().take(500).collect()))
}
