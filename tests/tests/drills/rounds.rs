//! The drills of `cargo xtask drills`, a few rounds of each.

use std::time::Duration;

use anyhow::Result;
use skiff_tests::drills::FileSystem;
use skiff_tests::rounds::{self, Case, Report, Shape, Who};

/// Long enough for every part of the cluster to have looked at its clock or its link.
const MOMENT: Duration = Duration::from_secs(3);

#[test]
fn every_acknowledged_write_outlives_a_power_cut_on_ext4_and_on_xfs_and_the_cluster_starts_again()
-> Result<()> {
    rounds::power(&[FileSystem::Ext4, FileSystem::Xfs], 4)?.require()
}

#[test]
fn a_cluster_is_whole_within_a_minute_of_its_clocks_being_right_and_no_pod_moves() -> Result<()> {
    let case = |who, shift| Case { who, shift };
    rounds::clock(&[case(Who::Both, "+400d"), case(Who::Agent, "-1d")], MOMENT)?.require()
}

#[test]
fn a_server_that_first_boots_in_1970_makes_no_authority_until_its_clock_is_right() -> Result<()> {
    let mut report = Report::new(&["first boots"]);
    rounds::first_boots(&mut report, &[1970], MOMENT)?;
    report.require()
}

#[test]
fn pods_of_two_nodes_meet_within_thirty_seconds_of_a_link_being_up_again() -> Result<()> {
    rounds::link(&[Shape::Segment, Shape::Routed], 1, MOMENT)?.require()
}

#[test]
fn a_node_that_is_given_another_address_is_reached_there_within_thirty_seconds_without_a_restart()
-> Result<()> {
    rounds::address(2)?.require()
}

#[test]
fn pods_of_both_runtimes_and_of_the_nodes_own_network_come_back_after_restarts_of_the_machine() -> Result<()>
{
    rounds::reboot(2)?.require()
}
