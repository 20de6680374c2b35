//! The address of the cluster's DNS, which is each node's own: pods reach it like any address of their gateway.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use skiff_network::LOOK_EVERY;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::complaint::Complaint;

/// Gives this machine the address.
pub(crate) fn claim(address: Ipv4Addr) -> Result<()> {
    let status = Command::new("ip")
        .args(["address", "replace", &format!("{address}/32"), "dev", "lo"])
        .status()
        .context("running ip; install the package iproute2")?;
    ensure!(status.success(), "ip address replace {address}/32 dev lo failed");
    Ok(())
}

/// Gives it back until `shutdown`, should somebody take it away. What listens there goes on then.
pub(crate) async fn keep(address: Ipv4Addr, shutdown: CancellationToken) {
    let mut complaint = Complaint::default();
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if !is_lost(address) {
            continue;
        }
        match claim_again(address) {
            Ok(()) => info!(%address, "the address of the cluster's DNS had been taken away; it is back"),
            Err(error) if complaint.is_due() => {
                warn!(%address, error = format!("{error:#}"), "the address of the cluster's DNS is gone; trying again");
            }
            Err(_) => {}
        }
    }
}

/// Only an address of this machine can be bound to.
fn is_lost(address: Ipv4Addr) -> bool {
    UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

/// The link may have been taken down, too.
fn claim_again(address: Ipv4Addr) -> Result<()> {
    claim(address)?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("running ip")?;
    ensure!(status.success(), "ip link set lo up failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use skiff_network::netns;

    use super::*;

    /// Removed when the test ends, however it ends.
    struct Namespace(tempfile::TempDir);

    impl Namespace {
        fn path(&self) -> std::path::PathBuf {
            self.0.path().join("node")
        }
    }

    impl Drop for Namespace {
        fn drop(&mut self) {
            let _ = netns::remove(&self.path());
        }
    }

    #[test]
    fn an_address_that_is_taken_away_is_back_at_the_next_look() {
        let namespace = Namespace(tempfile::tempdir().unwrap());
        netns::create(&namespace.path()).unwrap();
        let story = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let address = Ipv4Addr::new(10, 43, 0, 10);
                claim(address).unwrap();
                assert!(!is_lost(address));
                let stop = CancellationToken::new();
                let keeping = tokio::spawn(keep(address, stop.clone()));
                let gone = Command::new("ip").args(["address", "flush", "dev", "lo"]).status().unwrap();
                assert!(gone.success() && is_lost(address));
                tokio::time::sleep(LOOK_EVERY + LOOK_EVERY / 2).await;
                assert!(!is_lost(address));
                stop.cancel();
                keeping.await.unwrap();
            });
        };
        netns::within(&namespace.path(), story).unwrap();
    }
}
