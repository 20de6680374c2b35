//! A node's link goes down and comes up again.
//!
//! With a link that goes down its routes go, those of the machine and those to other nodes' pods. The machine's network manager,
//! which the drill stands for, puts back the default route and knows nothing of the others.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{ROUTE, Report, TwoNodes, healed, ip, median_and_longest, n_moved, seconds};
use crate::TestCluster;

/// How two nodes are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// On one segment: pods meet by routes.
    Segment,
    /// With a router between them: pods meet in VXLAN.
    Routed,
}

/// After the link is up.
const AIM: Duration = Duration::from_secs(30);

/// What happens to the link.
#[derive(Clone, Copy)]
enum Fault {
    /// `ip link set eth0 down` on the node.
    Down,
    /// The other end, as when a cable is pulled.
    Carrier,
}

/// Takes the second node's link down for `down`, so often, and waits until the nodes' pods meet and people get into them.
///
/// # Errors
/// If the clusters cannot be made, or their links cannot be set.
pub fn link(shapes: &[Shape], n_rounds: usize, down: Duration) -> Result<Report> {
    let mut report = Report::new(&[
        "nodes",
        "fault",
        "rounds",
        "for, s",
        "whole again after the link was up, median and longest, s",
        "pods that moved or started anew",
    ]);
    for shape in shapes {
        let cluster = match shape {
            Shape::Segment => TestCluster::start_nodes("drill-link", 2)?,
            Shape::Routed => TestCluster::start_routed("drill-link-routed", 2)?,
        };
        let two = TwoNodes::start(&cluster)?;
        rounds(&mut report, &two, *shape, Fault::Down, n_rounds, down)?;
        if *shape == Shape::Segment {
            rounds(&mut report, &two, *shape, Fault::Carrier, n_rounds, down)?;
        }
        cluster.stop()?;
    }
    Ok(report)
}

fn rounds(
    report: &mut Report,
    two: &TwoNodes<'_>,
    shape: Shape,
    fault: Fault,
    n_rounds: usize,
    down: Duration,
) -> Result<()> {
    let node = two.cluster.node(2).netns;
    let lan = two.cluster.netns().parent().context("no directory")?.join("lan");
    let before = two.summary()?;
    let mut times = Vec::new();
    for _ in 0..n_rounds {
        match fault {
            Fault::Down => ip(&node, "link set eth0 down")?,
            Fault::Carrier => ip(&lan, "link set node2 down")?,
        }
        // This wait is what the drill is about.
        std::thread::sleep(down);
        match fault {
            Fault::Down => {
                ip(&node, "link set eth0 up")?;
                ip(&node, ROUTE)?;
            }
            Fault::Carrier => ip(&lan, "link set node2 up")?,
        }
        times.extend(healed(|| Ok(two.is_whole())));
    }
    let n_slow = n_rounds - times.iter().filter(|took| **took <= AIM).count();
    let after = two.summary()?;
    let n_moved = n_moved(&before, &after);
    let (median, longest) = median_and_longest(&mut times);
    let nodes = if shape == Shape::Segment { "on a segment" } else { "with a router between" };
    let what = match fault {
        Fault::Down => "set down on the node",
        Fault::Carrier => "no carrier",
    };
    report.row(vec![
        nodes.to_owned(),
        what.to_owned(),
        n_rounds.to_string(),
        seconds(down),
        format!("{median}, {longest}"),
        n_moved.to_string(),
    ]);
    report.aim(n_slow == 0, || format!("{nodes}, {what}: {n_slow} times not within {} s", AIM.as_secs()));
    report.aim(n_moved == 0, || format!("{nodes}, {what}: {n_moved} pods moved or started anew"));
    Ok(())
}
