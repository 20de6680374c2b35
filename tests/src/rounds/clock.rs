//! Clocks that are set while everything runs, of the server, of an agent, and of both.
//!
//! The wall clock of a process is its own here ([`OwnClock`]); the monotonic one, which measures, is the machine's, as when a clock
//! is set.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Report, TwoNodes, healed, lives, n_moved, seconds};
use crate::TestCluster;
use crate::drills::{OwnClock, Started};

/// Whose clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Server,
    Agent,
    Both,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Server => "server",
            Who::Agent => "agent",
            Who::Both => "both",
        }
    }
}

/// A clock that is off for a while.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub who: Who,
    /// Such as `+400d`.
    pub shift: &'static str,
}

impl Case {
    /// All that there are.
    pub fn all() -> Vec<Case> {
        let shifts = ["+1h", "-1h", "+1d", "-1d", "+400d", "-400d"];
        let of = |who| shifts.into_iter().map(move |shift| Case { who, shift });
        [Who::Server, Who::Agent, Who::Both].into_iter().flat_map(of).collect()
    }
}

/// After the clock is right.
const AIM: Duration = Duration::from_secs(60);

/// Sets clocks of a cluster of two nodes, right again after `off`, and waits until all is as it was.
///
/// # Errors
/// If the cluster cannot be made, or what it has cannot be asked for.
pub fn clock(cases: &[Case], off: Duration) -> Result<Report> {
    let mut report = Report::new(&[
        "clock of",
        "set by",
        "for, s",
        "whole again after the clock was right, s",
        "pods that moved or started anew",
        "processes that ended",
    ]);
    let cluster = TestCluster::start_nodes("drill-clocks", 2)?;
    let (server_clock, agent_clock) = (OwnClock::new()?, OwnClock::new()?);
    cluster.server()?.kill()?;
    start_by(&cluster, &server_clock)?;
    cluster.agent(2)?.kill()?;
    start_by(&cluster, &agent_clock)?;
    let two = TwoNodes::start(&cluster)?;
    for Case { who, shift } in cases {
        let (server, agent, before) = (cluster.server()?, cluster.agent(2)?, two.summary()?);
        let clocks: &[&OwnClock] = match who {
            Who::Server => &[&server_clock],
            Who::Agent => &[&agent_clock],
            Who::Both => &[&server_clock, &agent_clock],
        };
        let set = |shift: &str| clocks.iter().try_for_each(|clock| clock.set(shift));
        set(shift)?;
        // This wait is what the drill is about.
        std::thread::sleep(off);
        set("+0")?;
        let healed = healed(|| Ok(two.is_whole() && has_said_so(&cluster)?));
        let after = if healed.is_some() { two.summary()? } else { Vec::new() };
        let n_moved = n_moved(&before, &after);
        let n_ended =
            [&server, &agent].into_iter().map(lives).filter(|lives| !matches!(lives, Ok(true))).count();
        report.row(vec![
            who.name().to_owned(),
            (*shift).to_owned(),
            seconds(off),
            healed.map_or_else(|| "not in time".to_owned(), seconds),
            n_moved.to_string(),
            n_ended.to_string(),
        ]);
        let which = format!("{} {shift}", who.name());
        report.aim(healed.is_some_and(|took| took <= AIM), || {
            format!("{which}: not whole within {} s", AIM.as_secs())
        });
        report.aim(n_moved == 0, || format!("{which}: {n_moved} pods moved or started anew"));
        report.aim(n_ended == 0, || format!("{which}: {n_ended} processes ended"));
        ensure!(healed.is_some(), "{which}: the cluster is not whole again; see {report:?}");
    }
    cluster.stop_changed()?;
    Ok(report)
}

/// Boots a new cluster's server by a clock that shows a time long before the program was built, and sets it right after `off`.
/// Until then there must be no authority: it would be of that time for as long as the cluster lives.
///
/// # Errors
/// If the cluster cannot be made.
pub fn first_boots(report: &mut Report, years: &[u16], off: Duration) -> Result<()> {
    for year in years {
        let cluster = TestCluster::start(&format!("drill-{year}"))?;
        first_boot(report, &cluster, *year, off)?;
        cluster.stop_changed()?;
    }
    Ok(())
}

fn first_boot(report: &mut Report, cluster: &TestCluster, year: u16, off: Duration) -> Result<()> {
    let server = cluster.server()?;
    let arguments = server.arguments()?;
    server.kill()?;
    let data = cluster.data_dir();
    std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
    std::fs::create_dir(&data).with_context(|| format!("creating {}", data.display()))?;
    let (clock, logs) = (OwnClock::new()?, tempfile::tempdir()?);
    clock.set(&shift_to(year)?)?;
    let log = logs.path().join("server.log");
    let mut server = Started::like(&arguments, &cluster.netns(), &log, &clock.environment())?;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let waits = healed(|| Ok(said().contains("waiting for the clock"))).is_some();
    // This wait is what the drill is about.
    std::thread::sleep(off);
    let is_early = data.join("pki/ca.crt").exists();
    clock.set("+0")?;
    let whole = healed(|| Ok(cluster.kubectl_inside(&["get", "nodes"])?.contains(" Ready ")));
    let n_ended = usize::from(!server.runs()?);
    report.row(vec![
        "server, at its first boot".to_owned(),
        format!("to {year}"),
        seconds(off),
        whole.map_or_else(|| "not in time".to_owned(), seconds),
        "–".to_owned(),
        n_ended.to_string(),
    ]);
    report.aim(waits && !is_early, || format!("first boot in {year}: it did not wait for its clock"));
    report.aim(whole.is_some_and(|took| took <= AIM) && n_ended == 0, || {
        format!("first boot in {year}: not whole within {} s", AIM.as_secs())
    });
    ensure!(whole.is_some(), "first boot in {year}:\n{}", said());
    Ok(())
}

/// From now to the first days of a year.
fn shift_to(year: u16) -> Result<String> {
    let then: jiff::Timestamp = format!("{year:04}-01-02T00:00:00Z").parse().context("a year")?;
    Ok(format!("-{}d", jiff::Timestamp::now().duration_since(then).as_hours() / 24))
}

/// Starts what of the cluster does not run, with a clock of its own.
fn start_by(cluster: &TestCluster, clock: &OwnClock) -> Result<()> {
    let environment = clock.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    cluster.up_with(&environment)
}

/// Whether both nodes have renewed their Lease by a clock that is right.
fn has_said_so(cluster: &TestCluster) -> Result<bool> {
    const RECENT: Duration = Duration::from_secs(30);
    let leases = cluster.get(&["leases", "-n", "kube-node-lease"])?;
    let leases = leases["items"].as_array().cloned().unwrap_or_default();
    let mut are_recent = leases.len() == 2;
    for lease in leases {
        let text = lease["spec"]["renewTime"].as_str().context("a Lease without a time")?;
        let renewed: jiff::Timestamp = text.parse().context("a Lease's time")?;
        let now = jiff::Timestamp::now();
        are_recent &= now.duration_since(renewed).unsigned_abs() < RECENT;
    }
    Ok(are_recent)
}
