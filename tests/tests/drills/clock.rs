//! Clocks that are off.

use std::time::Duration;

use anyhow::{Result, ensure};
use skiff_tests::TestCluster;
use skiff_tests::drills::ShiftedClock;

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
