//! The controllers and the scheduler against a real API server, in one process: what they make of each other's work.
//!
//! A test reads as a story: [`ControlPlane::start`], [`create`], [`until`], [`ControlPlane::stop`]. There is no kubelet:
//! a bound pod stays as it is until the test says otherwise ([`ControlPlane::run_pods`], [`ControlPlane::end_pods`]),
//! so that what must wait for it can be seen waiting.
//!
//! [`clients`] are stories of stock programs, over TLS and with hollow nodes.

mod plane;
mod rights;

mod autoscaling;
mod clients;
mod cron;
mod custom;
mod daemons;
mod disruption;
mod garbage;
mod kinds;
mod leaders;
mod namespaces;
mod nodes;
mod scheduling;
mod services;
mod stateful;
mod volumes;
mod workloads;

use plane::{ControlPlane, create, is_bound, is_ending, node, pod, until};
