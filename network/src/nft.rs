//! Runs `nft`: one script is one transaction.

use std::process::Stdio;
use std::time::Duration;

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
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NftError::Start)?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // nft may end early over a fault; what it says on stderr is the better error.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        child.wait_with_output().await.map_err(NftError::Talk)
    };
    let output = tokio::time::timeout(TIMEOUT, talk).await.map_err(|_| NftError::Timeout)??;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect();
    Err(NftError::Refused { n_lines: script.lines().count(), message })
}
