//! What the containers of a pod are given, and how that changes while they run.
//!
//! ```text
//!  spec in the API ──Pods: does it fit?──▶ allocated ──Worker: runtime, groups──▶ in force
//! ```
//!
//! A pod's worker sees the pod with what was allocated to it in place of what its spec asks for. What is in force is read
//! again from the pod's own status after a restart of nodelet.
//!
//! Source: kubernetes' `pkg/kubelet/allocation` and `computePodResizeAction`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::pod::{containers, init_containers};
use crate::resources::{ResourceList, milli_value, value};

/// What each container, and the pod as a whole, is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Given {
    containers: BTreeMap<String, ResourceRequirements>,
    pod: Option<ResourceRequirements>,
}

/// The amounts that may change while a container runs: thousandths of a processor, and bytes. Zero where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) cpu_request: i64,
    pub(crate) cpu_limit: i64,
    pub(crate) memory_request: i64,
    pub(crate) memory_limit: i64,
}

impl Amounts {
    fn of(resources: Option<&ResourceRequirements>) -> Amounts {
        let side = |list: Option<&ResourceList>, name: &str, of: fn(&_) -> i64| {
            list.and_then(|list| list.get(name)).map_or(0, of)
        };
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        Amounts {
            cpu_request: side(requests, "cpu", milli_value),
            cpu_limit: side(limits, "cpu", milli_value),
            memory_request: side(requests, "memory", value),
            memory_limit: side(limits, "memory", value),
        }
    }

    /// Of a container: where it has no limit, that of its pod holds.
    fn within(self, pod: Amounts) -> Amounts {
        let or = |own: i64, of_pod: i64| if own == 0 { of_pod } else { own };
        Amounts {
            cpu_limit: or(self.cpu_limit, pod.cpu_limit),
            memory_limit: or(self.memory_limit, pod.memory_limit),
            ..self
        }
    }
}

fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().chain(containers(pod))
}

impl Given {
    /// What a pod's spec says.
    pub(crate) fn of_spec(pod: &Pod) -> Given {
        let of = |c: &Container| (c.name.clone(), c.resources.clone().unwrap_or_default());
        Given {
            containers: resizable(pod).map(of).collect(),
            pod: pod.spec.as_ref().and_then(|s| s.resources.clone()),
        }
    }

    /// What was in force by the pod's status, and what its spec says where that says nothing.
    pub(crate) fn of_status(pod: &Pod) -> Given {
        let mut given = Given::of_spec(pod);
        let Some(status) = &pod.status else { return given };
        let all = [&status.init_container_statuses, &status.container_statuses];
        for container in all.into_iter().flat_map(|list| list.iter().flatten()) {
            if let (Some(known), Some(told)) =
                (given.containers.get_mut(&container.name), container.resources.as_ref())
            {
                *known = told.clone();
            }
        }
        if let (Some(known), Some(told)) = (&mut given.pod, &status.resources) {
            // The status tells more of the whole pod than its spec says.
            for (known, told) in [(&mut known.requests, &told.requests), (&mut known.limits, &told.limits)] {
                for (name, amount) in known.iter_mut().flatten() {
                    if let Some(told) = told.as_ref().and_then(|list| list.get(name)) {
                        amount.clone_from(told);
                    }
                }
            }
        }
        given
    }

    /// The pod as if its spec asked for this.
    pub(crate) fn in_place_of(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let Some(spec) = &mut pod.spec else { return pod };
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(given) = self.containers.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
        if spec.resources.is_some() {
            spec.resources.clone_from(&self.pod);
        }
        pod
    }

    /// The same of a shared pod, which is its own where it asks for nothing else.
    pub(crate) fn on(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if *self == Given::of_spec(pod) { pod.clone() } else { Arc::new(self.in_place_of(pod)) }
    }

    /// Whether a pod asks for what it is given. Amounts count, not how they are written.
    pub(crate) fn is_asked_by(&self, pod: &Pod) -> bool {
        Amounts::of(self.pod.as_ref()) == pod_amounts(pod)
            && resizable(pod)
                .all(|c| Amounts::of(self.containers.get(&c.name)) == Amounts::of(c.resources.as_ref()))
    }

    /// A container was given what its spec says.
    pub(crate) fn set(&mut self, container: &Container) {
        let resources = container.resources.clone().unwrap_or_default();
        self.containers.insert(container.name.clone(), resources);
    }

    /// The pod's own group was given what its spec says.
    pub(crate) fn set_pod(&mut self, pod: &Pod) {
        self.pod = pod.spec.as_ref().and_then(|s| s.resources.clone());
    }

    pub(crate) fn of_container(&self, name: &str) -> Option<&ResourceRequirements> {
        self.containers.get(name)
    }

    /// What a container of a pod has, and what it is to have, if that differs.
    pub(crate) fn change(&self, pod: &Pod, container: &Container) -> Option<(Amounts, Amounts)> {
        let wanted = Amounts::of(container.resources.as_ref()).within(pod_amounts(pod));
        let has = Amounts::of(self.containers.get(&container.name)).within(Amounts::of(self.pod.as_ref()));
        (has != wanted).then_some((has, wanted))
    }

    /// Whether a container must be started anew to be given what its pod asks for.
    pub(crate) fn needs_restart(&self, pod: &Pod, container: &Container) -> bool {
        let Some((has, wanted)) = self.change(pod, container) else { return false };
        let changes = [
            ("cpu", has.cpu_request != wanted.cpu_request || has.cpu_limit != wanted.cpu_limit),
            (
                "memory",
                has.memory_request != wanted.memory_request || has.memory_limit != wanted.memory_limit,
            ),
        ];
        let restarts = |name: &str| {
            let policies = container.resize_policy.iter().flatten();
            let own =
                policies.filter(|policy| policy.resource_name == name).map(|policy| &policy.restart_policy);
            own.into_iter().next().is_some_and(|policy| policy == "RestartContainer")
        };
        changes.into_iter().any(|(name, changes)| changes && restarts(name))
    }
}

fn pod_amounts(pod: &Pod) -> Amounts {
    Amounts::of(pod.spec.as_ref().and_then(|s| s.resources.as_ref()))
}

/// What a container that runs is given, as its status shows it: what was allocated, with the amounts that are in force.
pub(crate) fn shown(
    allocated: &ResourceRequirements,
    in_force: &ResourceRequirements,
) -> ResourceRequirements {
    let mut shown = allocated.clone();
    let sides = [(&mut shown.requests, &in_force.requests), (&mut shown.limits, &in_force.limits)];
    for (shown, in_force) in sides {
        let Some(shown) = shown else { continue };
        for name in ["cpu", "memory"] {
            if let Some(amount) = in_force.as_ref().and_then(|list| list.get(name)) {
                shown.insert(name.to_owned(), amount.clone());
            }
        }
    }
    shown
}

/// A change that does not fit yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pending {
    pub(crate) message: String,
    pub(crate) generation: Option<i64>,
    pub(crate) since: Timestamp,
}

/// What became of the changes that a pod asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resize {
    pub(crate) pending: Option<Pending>,
    /// The generation of the pod that was last allocated what it asks for.
    pub(crate) started: Option<i64>,
}

/// A change that was allocated and is not in force everywhere.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InProgress {
    pub(crate) generation: Option<i64>,
    /// Why not, if it failed.
    pub(crate) error: Option<String>,
    pub(crate) since: Timestamp,
}

/// What an event says of a change, in upstream's form: a sentence, and what the containers ask for as JSON.
pub(crate) fn told(what: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    let of = |list: &[Container]| -> Vec<serde_json::Value> {
        let resources = |c: &Container| c.resources.clone().unwrap_or_default();
        list.iter().map(|c| serde_json::json!({ "name": c.name, "resources": resources(c) })).collect()
    };
    let mut summary = serde_json::Map::new();
    for (name, list) in [("initContainers", of(init_containers(pod))), ("containers", of(containers(pod)))] {
        if !list.is_empty() {
            summary.insert(name.to_owned(), list.into());
        }
    }
    summary.insert("generation".to_owned(), generation.unwrap_or_default().into());
    if !error.is_empty() {
        summary.insert("error".to_owned(), error.into());
    }
    format!("{what}: {}", serde_json::Value::Object(summary))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{pod, typed};

    fn asks(resources: Value, policy: Value) -> Pod {
        typed(pod(
            "p",
            json!({ "containers": [{ "name": "a", "image": "app:1", "resources": resources, "resizePolicy": policy }] }),
        ))
    }

    #[test]
    fn amounts_count_and_not_how_they_are_written() {
        let given = Given::of_spec(&asks(json!({ "requests": { "cpu": "1", "memory": "1Gi" } }), json!([])));
        let same = asks(json!({ "requests": { "cpu": "1000m", "memory": "1024Mi" } }), json!([]));
        assert!(given.is_asked_by(&same));
        assert_eq!(given.change(&same, &containers(&same)[0]), None);
        let more = asks(json!({ "requests": { "cpu": "1001m", "memory": "1024Mi" } }), json!([]));
        assert!(!given.is_asked_by(&more));
        let back = given.in_place_of(&more);
        assert!(given.is_asked_by(&back));
    }

    #[test]
    fn only_the_resource_that_changes_has_its_policy_asked() {
        let policy = json!([{ "resourceName": "cpu", "restartPolicy": "NotRequired" },
            { "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
        let of = |cpu: &str, memory: &str| {
            asks(json!({ "limits": { "cpu": cpu, "memory": memory } }), policy.clone())
        };
        let given = Given::of_spec(&of("1", "1Gi"));
        let restarts = |pod: Pod| given.needs_restart(&pod, &containers(&pod)[0]);
        assert!(!restarts(of("1", "1Gi")));
        assert!(!restarts(of("2", "1Gi")));
        assert!(restarts(of("1", "2Gi")));
    }

    #[test]
    fn what_is_in_force_is_read_from_the_status() {
        let mut asked = asks(json!({ "limits": { "memory": "2Gi" } }), json!([]));
        let status = json!({ "containerStatuses": [{ "name": "a", "image": "app:1", "imageID": "", "ready": true,
            "restartCount": 0, "resources": { "limits": { "memory": "1Gi" } } }] });
        asked.status = Some(serde_json::from_value(status).unwrap());
        let (has, wanted) = Given::of_status(&asked).change(&asked, &containers(&asked)[0]).unwrap();
        assert_eq!((has.memory_limit, wanted.memory_limit), (1 << 30, 2 << 30));
    }

    #[test]
    fn a_limit_of_the_whole_pod_is_a_containers_own_where_it_has_none() {
        let mut whole = asks(json!({}), json!([]));
        let of = |cpu: &str| serde_json::from_value(json!({ "limits": { "cpu": cpu } })).unwrap();
        whole.spec.as_mut().unwrap().resources = Some(of("1"));
        let given = Given::of_spec(&whole);
        whole.spec.as_mut().unwrap().resources = Some(of("2"));
        let (has, wanted) = given.change(&whole, &containers(&whole)[0]).unwrap();
        assert_eq!((has.cpu_limit, wanted.cpu_limit), (1000, 2000));
    }

    #[test]
    fn events_say_what_is_asked_for_as_upstream_writes_it() {
        let pod = asks(json!({ "requests": { "cpu": "1" } }), json!([]));
        assert_eq!(
            told("Pod resize started", &pod, Some(2), ""),
            r#"Pod resize started: {"containers":[{"name":"a","resources":{"requests":{"cpu":"1"}}}],"generation":2}"#
        );
    }
}
