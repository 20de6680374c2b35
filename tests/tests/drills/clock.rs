//! Clocks that are off.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::TestCluster;
use skiff_tests::drills::{OwnClock, ShiftedClock};

const HOUR: Duration = Duration::from_secs(3600);
/// Less than what is signed is good for.
const LITTLE: Duration = Duration::from_secs(60);

#[test]
fn credentials_by_a_clock_that_is_an_hour_off_are_refused_and_by_one_a_minute_late_taken() -> Result<()> {
    let cluster = TestCluster::start("drill-clock")?;
    for clock in [ShiftedClock::Ahead(HOUR), ShiftedClock::Behind(HOUR)] {
        for credential in [clock.certificate(&cluster)?, clock.token(&cluster)?] {
            let path = credential.path().to_string_lossy().into_owned();
            let error = cluster.kubectl_fails(&["--kubeconfig", &path, "get", "pods"])?;
            let is_clear = error.contains("Unauthorized") || error.contains("must be logged in");
            ensure!(is_clear, "{clock:?}: {error}");
        }
    }
    let credential = ShiftedClock::Behind(LITTLE).certificate(&cluster)?;
    let path = credential.path().to_string_lossy().into_owned();
    cluster.kubectl(&["--kubeconfig", &path, "get", "pods"])?;
    let credential = ShiftedClock::Behind(LITTLE).token(&cluster)?;
    let path = credential.path().to_string_lossy().into_owned();
    let who = cluster.kubectl(&["--kubeconfig", &path, "auth", "whoami"])?;
    ensure!(who.contains("system:serviceaccount:default:default"), "{who}");
    cluster.stop()
}

#[test]
fn a_server_whose_clock_is_set_shows_good_certificates_at_once_and_needs_no_restart_once_it_is_right()
-> Result<()> {
    let cluster = TestCluster::start("drill-clock-set")?;
    let clock = OwnClock::new()?;
    cluster.server()?.kill()?;
    let environment = clock.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    cluster.up_with(&environment)?;
    let server = cluster.server_pid()?;
    for shift in ["+400d", "-1d", "+1h"] {
        // `kubectl` goes by the machine's clock: what a clock elsewhere signs is mostly no good to it.
        let kubeconfig = || std::fs::read(cluster.data_dir().join("kubeconfig.inside"));
        let before = kubeconfig()?;
        clock.set(shift)?;
        if shift != "+1h" {
            cluster.wait_for(&format!("certificates by a clock that is {shift} off"), || {
                Ok((kubeconfig()? != before).then_some(()))
            })?;
        }
        clock.set("+0")?;
        cluster.wait_for(&format!("the API to be reached after {shift}"), || {
            Ok(cluster.kubectl(&["get", "nodes"]).ok().filter(|nodes| nodes.contains(" Ready ")))
        })?;
        ensure!(cluster.server_pid()? == server, "the server was started anew");
        // With the administrator's new certificate as well.
        let inside = cluster.data_dir().join("kubeconfig.inside");
        let copy = tempfile::NamedTempFile::new()?;
        let path = copy.path().to_string_lossy().into_owned();
        cluster.wait_for("the administrator's new kubeconfig", || {
            let text = std::fs::read_to_string(&inside)?.replace("127.0.0.1", &api_address(&cluster)?);
            std::fs::write(copy.path(), text)?;
            Ok(cluster.kubectl(&["--kubeconfig", &path, "get", "nodes"]).ok())
        })?;
    }
    cluster.stop()
}

/// Where the forwarder publishes the API.
fn api_address(cluster: &TestCluster) -> Result<String> {
    let text = std::fs::read_to_string(cluster.kubeconfig())?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("server: https://")).context("no server")?;
    Ok(line.split(':').next().unwrap_or_default().to_owned())
}
