//! A pod's status: made from what runs, and written to the API.
//!
//! [`containers`] turns runtime containers into container statuses, [`generate`] adds phase and
//! conditions; both are pure. [`writer`] owns the patches.

pub(crate) mod containers;
pub(crate) mod generate;
pub(crate) mod termination;
pub(crate) mod writer;

pub(crate) use generate::{generate, hold_back_terminal, rejected, terminate};
pub(crate) use writer::StatusWriter;

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};

use crate::given::{Given, InProgress, Pending};
use crate::snapshot::{ContainerInfo, PodSnapshot};

/// Why a container that should run does not: `state.waiting` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What probes say about a running container.
pub(crate) trait Readiness {
    fn started(&self, spec: &Container, status: &ContainerInfo) -> bool;
    fn ready(&self, spec: &Container, status: &ContainerInfo) -> bool;
}

/// Everything a status follows from.
pub(crate) struct StatusInputs<'a> {
    pub(crate) pod: &'a Pod,
    /// The status that was generated last, or the API's where none was.
    pub(crate) old: &'a PodStatus,
    pub(crate) snapshot: &'a PodSnapshot,
    pub(crate) waiting: &'a HashMap<String, Waiting>,
    pub(crate) readiness: &'a dyn Readiness,
    /// All containers have ended and none starts again, whatever the restart policy says.
    pub(crate) pod_is_over: bool,
    /// `activeDeadlineSeconds` have passed.
    pub(crate) past_deadline: bool,
    /// Why the pod is evicted, if it is.
    pub(crate) evicted: Option<&'a str>,
    /// What the containers that run are given.
    pub(crate) given: &'a Given,
    /// What was asked for and is not there to be given.
    pub(crate) pending: Option<&'a Pending>,
    /// What is about to be given.
    pub(crate) resizing: Option<&'a InProgress>,
    pub(crate) node_ips: &'a [IpAddr],
    pub(crate) now: Timestamp,
}
