//! Forgetting UDP flows whose endpoint has gone.
//!
//! A UDP client that keeps sending from one port keeps its tracked flow alive, and with it the address of an
//! endpoint that may no longer exist. TCP heals by itself: the next connection is a new flow.

use std::collections::BTreeSet;
use std::process::Stdio;

use tokio::process::Command;
use tracing::debug;

use super::plan::Frontend;

pub(super) async fn forget(stale: &BTreeSet<Frontend>) {
    for frontend in stale {
        let status = Command::new("conntrack")
            .args(["-D", "-p", "udp", "--orig-dst"])
            .arg(frontend.ip.to_string())
            .arg("--dport")
            .arg(frontend.port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await;
        // It exits with 1 if there was no such flow.
        if let Err(error) = status {
            debug!(%error, "cannot run conntrack; stale UDP flows end by their own time-out");
            return;
        }
    }
}
