//! The Node's status: facts in, status out, with upstream's reasons and messages.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rustix::fs::StatVfsMountFlags;
use serde_json::{Map, Value, json};
use skiff_cri::Cri;
use skiff_cri::v1::{ListImagesRequest, StatusRequest};

use crate::config::Config;
use crate::eviction::Pressure;
use crate::node::machine::Machine;
use crate::resources::ResourceList;
use crate::status::generate::whole_seconds;

/// Upstream shows no more, to keep the object small.
const MAX_IMAGES: usize = 50;
const MAX_NAMES: usize = 5;

/// What is true of this node now.
pub(crate) struct Facts {
    addresses: Vec<NodeAddress>,
    capacity: ResourceList,
    allocatable: ResourceList,
    info: k8s_openapi::api::core::v1::NodeSystemInfo,
    port: u16,
    images: Option<Vec<ContainerImage>>,
    runtime_problems: Vec<String>,
    memory_pressure: bool,
    disk_pressure: bool,
    /// Nothing can be written: what looks at how much is free does not see it.
    disk_is_read_only: bool,
    pid_pressure: bool,
}

impl Facts {
    pub(crate) async fn read(
        config: &Config,
        cri: &dyn Cri,
        machine: &Machine,
        port: u16,
        pressure: &Pressure,
    ) -> Facts {
        let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
        let ips = config.node_ips.iter().take(2).map(|ip| address("InternalIP", ip.to_string()));
        let (problems, images) = futures::join!(runtime_problems(cri), images(cri));
        let disk = rustix::fs::statvfs(&config.root_dir).ok();
        Facts {
            addresses: ips.chain([address("Hostname", config.node_name.clone())]).collect(),
            capacity: machine.capacity(config.max_pods),
            allocatable: machine.allocatable(config.max_pods, &config.eviction_hard),
            info: machine.info.clone(),
            port,
            images,
            runtime_problems: problems,
            memory_pressure: pressure.memory(),
            disk_pressure: pressure.disk(),
            disk_is_read_only: disk
                .as_ref()
                .is_some_and(|disk| disk.f_flag.contains(StatVfsMountFlags::RDONLY)),
            pid_pressure: pressure.pids(),
        }
    }
}

async fn runtime_problems(cri: &dyn Cri) -> Vec<String> {
    match cri.status(StatusRequest::default()).await {
        Err(error) => vec![format!("container runtime is down: {error}")],
        Ok(answer) => {
            let conditions = answer.status.map(|s| s.conditions).unwrap_or_default();
            let broken = conditions.into_iter().filter(|c| !c.status);
            broken
                .map(|c| match c.r#type.as_str() {
                    "NetworkReady" => format!(
                        "container runtime network not ready: NetworkReady=false reason:{} message:{}",
                        c.reason, c.message
                    ),
                    other => format!(
                        "container runtime not ready: {other}=false reason:{} message:{}",
                        c.reason, c.message
                    ),
                })
                .collect()
        }
    }
}

async fn images(cri: &dyn Cri) -> Option<Vec<ContainerImage>> {
    let mut images = cri.list_images(ListImagesRequest::default()).await.ok()?.images;
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let shown = images.into_iter().take(MAX_IMAGES).map(|image| ContainerImage {
        names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_NAMES).collect()),
        size_bytes: i64::try_from(image.size).ok(),
    });
    Some(shown.collect())
}

pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok())?;
    Some(kib * 1024)
}

pub(crate) fn pids_exhausted() -> Option<bool> {
    let max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let n_threads: u64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(n_threads > max / 10 * 9)
}

/// The status that a node is to have, beside the one that the API has. What others wrote into it, such as extended
/// resources, stays; what they wrote over the node's own words does not.
pub(crate) struct NodeStatusMaker {
    known: NodeStatus,
}

impl NodeStatusMaker {
    pub(crate) fn new(known: NodeStatus) -> NodeStatusMaker {
        NodeStatusMaker { known }
    }

    /// The status, and the reasons of events for conditions that changed.
    pub(crate) fn make(&self, facts: &Facts, now: Timestamp) -> (NodeStatus, Vec<&'static str>) {
        let mut events = Vec::new();
        let pressures = [
            ("MemoryPressure", facts.memory_pressure, PRESSURE_WORDS[0]),
            ("DiskPressure", facts.disk_pressure || facts.disk_is_read_only, PRESSURE_WORDS[1]),
            ("PIDPressure", facts.pid_pressure, PRESSURE_WORDS[2]),
        ];
        let mut own = Vec::new();
        for (type_, holds, words) in pressures {
            let word = if holds { words.0 } else { words.1 };
            let more = if type_ == "DiskPressure" && facts.disk_is_read_only { READ_ONLY } else { "" };
            let (condition, changed) =
                self.condition(type_, holds, word.reason, format!("{}{more}", word.message), now);
            if changed {
                events.push(word.event);
            }
            own.push(condition);
        }
        let is_ready = facts.runtime_problems.is_empty();
        let (reason, message) = match is_ready {
            true => ("KubeletReady", "kubelet is posting ready status".to_owned()),
            false => ("KubeletNotReady", aggregate(&facts.runtime_problems)),
        };
        let (condition, changed) = self.condition("Ready", is_ready, reason, message, now);
        if changed {
            events.push(if is_ready { "NodeReady" } else { "NodeNotReady" });
        }
        own.push(condition);
        let status = NodeStatus {
            addresses: Some(facts.addresses.clone()),
            allocatable: Some(overlaid(&self.known.allocatable, &facts.allocatable)),
            capacity: Some(overlaid(&self.known.capacity, &facts.capacity)),
            conditions: Some(self.conditions(own)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(facts.port) }),
            }),
            images: facts.images.clone().or_else(|| self.known.images.clone()),
            node_info: Some(facts.info.clone()),
            ..self.known.clone()
        };
        (status, events)
    }

    fn condition(
        &self,
        type_: &str,
        holds: bool,
        reason: &str,
        message: String,
        now: Timestamp,
    ) -> (NodeCondition, bool) {
        let status = if holds { "True" } else { "False" };
        let old = self.known.conditions.iter().flatten().find(|c| c.type_ == type_);
        let same = old.filter(|c| c.status == status);
        let now = Time(whole_seconds(now));
        let condition = NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(now)),
        };
        (condition, same.is_none())
    }

    /// The node's own conditions in the place of those that it had, beside those of others.
    fn conditions(&self, own: Vec<NodeCondition>) -> Vec<NodeCondition> {
        let mut all = self.known.conditions.clone().unwrap_or_default();
        for condition in own {
            match all.iter_mut().find(|c| c.type_ == condition.type_) {
                Some(place) => *place = condition,
                None => all.push(condition),
            }
        }
        all
    }

    /// The patch to this status. `None` if nothing but heartbeats would change and none is due.
    pub(crate) fn patch(&self, status: &NodeStatus, due: bool) -> Option<Value> {
        let quiet = |status: &NodeStatus| {
            let mut status = status.clone();
            for condition in status.conditions.iter_mut().flatten() {
                condition.last_heartbeat_time = None;
            }
            status
        };
        if !due && quiet(status) == quiet(&self.known) {
            return None;
        }
        let Ok(Value::Object(new)) = serde_json::to_value(status) else { return None };
        let old = serde_json::to_value(&self.known).unwrap_or_default();
        let mut patch: Map<String, Value> =
            new.into_iter().filter(|(key, value)| old.get(key) != Some(value)).collect();
        if let Some(Value::Array(addresses)) = patch.get_mut("addresses") {
            // The list merges by type, of which two may be the same.
            addresses.push(json!({ "$patch": "replace" }));
        }
        Some(Value::Object(patch))
    }
}

fn overlaid(known: &Option<ResourceList>, own: &ResourceList) -> ResourceList {
    let mut all = known.clone().unwrap_or_default();
    all.extend(own.clone());
    all
}

#[derive(Clone, Copy)]
struct Words {
    reason: &'static str,
    message: &'static str,
    event: &'static str,
}

const fn words(reason: &'static str, message: &'static str, event: &'static str) -> Words {
    Words { reason, message, event }
}

const READ_ONLY: &str = ": the file system of the node's data is read-only";

/// For memory, disk and PIDs: with pressure, and without.
const PRESSURE_WORDS: [(Words, Words); 3] = [
    (
        words(
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "NodeHasInsufficientMemory",
        ),
        words(
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
            "NodeHasSufficientMemory",
        ),
    ),
    (
        words("KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"),
        words("KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure"),
    ),
    (
        words(
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "NodeHasInsufficientPID",
        ),
        words("KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"),
    ),
];

/// Several errors as Go's aggregate prints them.
fn aggregate(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(problems: &[&str]) -> Facts {
        Facts {
            addresses: vec![NodeAddress { type_: "Hostname".into(), address: "n".into() }],
            capacity: ResourceList::new(),
            allocatable: ResourceList::new(),
            info: Default::default(),
            port: 10250,
            images: None,
            runtime_problems: problems.iter().map(|p| (*p).to_owned()).collect(),
            memory_pressure: false,
            disk_pressure: false,
            disk_is_read_only: false,
            pid_pressure: false,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_status_is_ready_and_tells_every_condition() {
        let (status, events) = NodeStatusMaker::new(NodeStatus::default()).make(&facts(&[]), at(1));
        assert_eq!(
            events,
            ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"]
        );
        let conditions = status.conditions.unwrap();
        let ready = conditions.last().unwrap();
        assert_eq!(
            (ready.type_.as_str(), ready.status.as_str(), ready.reason.as_deref()),
            ("Ready", "True", Some("KubeletReady"))
        );
    }

    #[test]
    fn a_disk_that_cannot_be_written_is_under_pressure_and_says_why() {
        let facts = Facts { disk_is_read_only: true, ..facts(&[]) };
        let (status, events) = NodeStatusMaker::new(NodeStatus::default()).make(&facts, at(1));
        assert!(events.contains(&"NodeHasDiskPressure"), "{events:?}");
        let conditions = status.conditions.unwrap();
        let disk = conditions.iter().find(|condition| condition.type_ == "DiskPressure").unwrap();
        assert_eq!((disk.status.as_str(), disk.reason.as_deref()), ("True", Some("KubeletHasDiskPressure")));
        assert_eq!(
            disk.message.as_deref(),
            Some("kubelet has disk pressure: the file system of the node's data is read-only")
        );
    }

    #[test]
    fn nothing_is_written_until_something_changes_or_is_due() {
        let maker = NodeStatusMaker::new(NodeStatus::default());
        let (status, _) = maker.make(&facts(&[]), at(1));
        assert!(maker.patch(&status, false).is_some());
        let maker = NodeStatusMaker::new(status);
        let (status, events) = maker.make(&facts(&[]), at(50));
        assert!(events.is_empty());
        assert_eq!(maker.patch(&status, false), None);
        assert!(maker.patch(&status, true).is_some());
    }

    #[test]
    fn a_runtime_that_is_down_makes_the_node_not_ready_and_keeps_the_old_time_else() {
        let (status, _) = NodeStatusMaker::new(NodeStatus::default()).make(&facts(&[]), at(1));
        let maker = NodeStatusMaker::new(status);
        let (status, events) = maker.make(&facts(&["container runtime is down: x"]), at(9));
        assert_eq!(events, ["NodeNotReady"]);
        let conditions = status.conditions.unwrap();
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(1))));
        assert_eq!(conditions[3].message.as_deref(), Some("container runtime is down: x"));
    }

    #[test]
    fn what_others_took_for_unknown_is_said_again_and_what_is_theirs_stays() {
        let (mut known, _) = NodeStatusMaker::new(NodeStatus::default()).make(&facts(&[]), at(1));
        for condition in known.conditions.iter_mut().flatten() {
            condition.status = "Unknown".into();
        }
        let custom = NodeCondition { type_: "Custom".into(), status: "True".into(), ..Default::default() };
        known.conditions.as_mut().unwrap().insert(0, custom.clone());
        known.capacity.as_mut().unwrap().insert("example.com/dongle".into(), Default::default());
        let maker = NodeStatusMaker::new(known);
        let (status, events) = maker.make(&facts(&[]), at(2));
        assert_eq!(events.last(), Some(&"NodeReady"));
        assert!(maker.patch(&status, false).is_some());
        let conditions = status.conditions.clone().unwrap();
        assert_eq!(conditions[0], custom);
        assert_eq!((conditions[4].type_.as_str(), conditions[4].status.as_str()), ("Ready", "True"));
        assert!(status.capacity.as_ref().unwrap().contains_key("example.com/dongle"));
        let maker = NodeStatusMaker::new(status);
        assert_eq!(maker.patch(&maker.make(&facts(&[]), at(3)).0, false), None);
    }
}
