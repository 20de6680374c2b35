//! What counts against a ResourceQuota: which objects, and how much of each resource.
//!
//! Source: upstream's quota evaluators (`pkg/quota/v1/evaluator/core`). Devices of resource claims are not counted,
//! only the claims.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::Object;
use crate::kinds::qos_class;
use crate::meta::Meta;
use crate::quantity::Quantity;
use crate::resources::{self, Overhead, Resources};

const POD_RESOURCES: &[&str] = &[
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Of these a quota makes each container say how much it wants.
const MUST_BE_SAID: &[&str] =
    &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const SERVICE_RESOURCES: &[&str] =
    &["count/services", "services", "services.nodeports", "services.loadbalancers"];
const CLAIM_RESOURCES: &[&str] = &["persistentvolumeclaims", "requests.storage"];
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const REQUESTS: &str = "requests.";
const HUGE_PAGES: &str = "hugepages-";

/// How the objects of one resource count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evaluator {
    Pods,
    Services,
    Claims,
    /// One each, under these names.
    Objects(Vec<String>),
}

impl Evaluator {
    /// `None` for what no quota counts.
    pub fn of(group: &str, plural: &str) -> Option<Evaluator> {
        match (group, plural) {
            ("" | "events.k8s.io", "events") | ("", "bindings" | "componentstatuses") => None,
            ("authentication.k8s.io" | "authorization.k8s.io", _) => None,
            ("", "pods") => Some(Evaluator::Pods),
            ("", "services") => Some(Evaluator::Services),
            ("", "persistentvolumeclaims") => Some(Evaluator::Claims),
            ("", "configmaps" | "resourcequotas" | "replicationcontrollers" | "secrets") => {
                Some(Evaluator::Objects(vec![format!("count/{plural}"), plural.to_owned()]))
            }
            ("", _) => Some(Evaluator::Objects(vec![format!("count/{plural}")])),
            _ => Some(Evaluator::Objects(vec![format!("count/{plural}.{group}")])),
        }
    }

    /// Whether these objects count under a resource's name.
    pub fn counts(&self, name: &str) -> bool {
        match self {
            Evaluator::Pods => {
                POD_RESOURCES.contains(&name)
                    || name.starts_with(HUGE_PAGES)
                    || name.strip_prefix(REQUESTS).is_some_and(|of| {
                        of.starts_with(HUGE_PAGES)
                            || of.starts_with("deviceclass.resource.kubernetes.io/")
                            || !resources::is_native(of)
                    })
            }
            Evaluator::Services => SERVICE_RESOURCES.contains(&name),
            Evaluator::Claims => {
                let plain = name.split_once(STORAGE_CLASS).map_or(name, |(_, of_class)| of_class);
                name == "count/persistentvolumeclaims" || CLAIM_RESOURCES.contains(&plain)
            }
            Evaluator::Objects(names) => names.iter().any(|own| own == name),
        }
    }

    /// What an object counts for.
    pub fn usage(&self, object: &Object, now: Timestamp) -> Resources {
        match self {
            Evaluator::Pods => pod_usage(object, now),
            Evaluator::Services => service_usage(object),
            Evaluator::Claims => claim_usage(object),
            Evaluator::Objects(names) => {
                let mut usage = Resources::default();
                names.iter().for_each(|name| usage.count(name, 1));
                usage
            }
        }
    }

    /// Whether an object is within all scopes of a quota's spec; one without scopes takes in everything.
    pub fn is_in_scope(&self, quota: &Object, object: &Object) -> bool {
        scopes(quota).iter().all(|scope| match self {
            Evaluator::Pods => scope.takes_pod(object),
            Evaluator::Claims => scope.takes_claim(object),
            Evaluator::Services | Evaluator::Objects(_) => false,
        })
    }

    /// What a quota of resources wants a new object to say and it does not, as a sentence.
    pub fn fault(&self, required: &[&str], object: &Object) -> Option<String> {
        if *self != Evaluator::Pods || object["spec"]["resources"].as_object().is_some_and(|r| !r.is_empty())
        {
            return None;
        }
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for field in ["containers", "initContainers"] {
            for container in object["spec"][field].as_array().into_iter().flatten() {
                let side = |side: &str| Resources::from_json(&container["resources"][side]);
                let said = compute_usage(&side("requests"), &side("limits"));
                let wanted = required.iter().filter(|name| MUST_BE_SAID.contains(name));
                for name in wanted.filter(|name| said.get(name).is_none()) {
                    missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
                }
            }
        }
        let parts: Vec<String> = missing
            .iter()
            .map(|(name, of)| format!("{name} for: {}", of.iter().copied().collect::<Vec<_>>().join(",")))
            .collect();
        (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
    }
}

/// What all objects that a quota takes in come to, of one kind: zero of each of `names` at least.
pub fn total<'o>(
    evaluator: &Evaluator,
    quota: &Object,
    names: &[&str],
    objects: impl Iterator<Item = &'o Object>,
    now: Timestamp,
) -> Resources {
    let mut total = Resources::default();
    names.iter().for_each(|name| total.count(*name, 0));
    for object in objects.filter(|object| evaluator.is_in_scope(quota, object)) {
        total.add(&evaluator.usage(object, now).only(|name| names.contains(&name)));
    }
    total
}

/// Whether a pod still counts for more than being there.
pub fn is_charged(pod: &Object, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return false;
    }
    // One that its node does not end in time must not keep its successor from being made.
    let meta = pod.meta();
    let since: Option<Timestamp> = meta["deletionTimestamp"].as_str().and_then(|at| at.parse().ok());
    match (since, meta["deletionGracePeriodSeconds"].as_i64()) {
        (Some(since), Some(grace_s)) => {
            since.checked_add(SignedDuration::from_secs(grace_s)).is_ok_and(|end| now <= end)
        }
        _ => true,
    }
}

/// Whether a pod ends by itself after some time.
pub fn is_terminating(pod: &Object) -> bool {
    pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
}

fn pod_usage(pod: &Object, now: Timestamp) -> Resources {
    let mut usage = Resources::default();
    usage.count("count/pods", 1);
    if is_charged(pod, now) {
        let requests = resources::pod_requests(pod, Overhead::Counted);
        let limits = resources::pod_limits(pod, Overhead::Counted);
        usage.add(&compute_usage(&requests, &limits));
    }
    usage
}

fn compute_usage(requests: &Resources, limits: &Resources) -> Resources {
    let mut usage = Resources::default();
    usage.count("pods", 1);
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(request) = requests.get(name) {
            usage.set(name, request);
            usage.set(format!("{REQUESTS}{name}"), request);
        }
        if let Some(limit) = limits.get(name) {
            usage.set(format!("limits.{name}"), limit);
        }
    }
    for (name, request) in requests.iter() {
        if name.starts_with(HUGE_PAGES) {
            usage.set(name, request);
        }
        if name.starts_with(HUGE_PAGES)
            || name.starts_with("deviceclass.resource.kubernetes.io/")
            || resources::is_extended(name)
        {
            usage.set(format!("{REQUESTS}{name}"), request);
        }
    }
    usage
}

fn service_usage(service: &Object) -> Resources {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = i64::try_from(ports.len()).unwrap_or(i64::MAX);
    let chosen = ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let (node_ports, balancers) = match service["spec"]["type"].as_str() {
        Some("NodePort") => (all, 0),
        // Ports are not given out yet when this is asked: what counts is that they will be.
        Some("LoadBalancer") if service["spec"]["allocateLoadBalancerNodePorts"] == false => {
            (i64::try_from(chosen).unwrap_or(i64::MAX), 1)
        }
        Some("LoadBalancer") => (all, 1),
        _ => (0, 0),
    };
    let mut usage = Resources::default();
    usage.count("count/services", 1);
    usage.count("services", 1);
    usage.count("services.nodeports", node_ports);
    usage.count("services.loadbalancers", balancers);
    usage
}

fn claim_usage(claim: &Object) -> Resources {
    let mut usage = Resources::default();
    usage.count("count/persistentvolumeclaims", 1);
    usage.count("persistentvolumeclaims", 1);
    let annotated = &claim.meta()["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = annotated.as_str().or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    if !class.is_empty() {
        usage.count(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), 1);
    }
    let storage = |list: &Value| list["storage"].as_str().and_then(|text| text.parse::<Quantity>().ok());
    if let Some(asked) = storage(&claim["spec"]["resources"]["requests"]) {
        let given = storage(&claim["status"]["allocatedResources"]);
        let counted = given.filter(|given| *given > asked).unwrap_or(asked).rounded_up();
        usage.set("requests.storage", counted);
        if !class.is_empty() {
            usage.set(format!("{class}{STORAGE_CLASS}requests.storage"), counted);
        }
    }
    usage
}

/// One condition of a quota's scopes.
struct Scope<'q> {
    name: &'q str,
    operator: &'q str,
    values: Vec<&'q str>,
}

fn scopes(quota: &Object) -> Vec<Scope<'_>> {
    let spec = &quota["spec"];
    let plain = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut scopes: Vec<Scope<'_>> =
        plain.map(|name| Scope { name, operator: "Exists", values: Vec::new() }).collect();
    for expression in spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten() {
        let values = expression["values"].as_array().into_iter().flatten();
        scopes.push(Scope {
            name: expression["scopeName"].as_str().unwrap_or_default(),
            operator: expression["operator"].as_str().unwrap_or_default(),
            values: values.filter_map(Value::as_str).collect(),
        });
    }
    scopes
}

impl Scope<'_> {
    fn takes_pod(&self, pod: &Object) -> bool {
        match self.name {
            "Terminating" => is_terminating(pod),
            "NotTerminating" => !is_terminating(pod),
            "BestEffort" => is_best_effort(pod),
            "NotBestEffort" => !is_best_effort(pod),
            "PriorityClass" => self.takes_values(pod["spec"]["priorityClassName"].as_str().into_iter()),
            "CrossNamespacePodAffinity" => is_affine_across_namespaces(pod),
            _ => false,
        }
    }

    fn takes_claim(&self, claim: &Object) -> bool {
        let status = &claim["status"];
        let classes = [
            &claim["spec"]["volumeAttributesClassName"],
            &status["currentVolumeAttributesClassName"],
            &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
        ];
        self.name == "VolumeAttributesClass"
            && self.takes_values(classes.into_iter().filter_map(Value::as_str))
    }

    /// As a label selector takes a label that has each of the values; none of them is no label.
    fn takes_values<'v>(&self, values: impl Iterator<Item = &'v str>) -> bool {
        let values: Vec<&str> = values.filter(|value| !value.is_empty()).collect();
        let wanted = |value: &&str| self.values.contains(value);
        match self.operator {
            "Exists" => !values.is_empty(),
            "DoesNotExist" => values.is_empty(),
            "In" => values.iter().any(wanted),
            "NotIn" => values.is_empty() || !values.iter().all(wanted),
            _ => false,
        }
    }
}

fn is_best_effort(pod: &Object) -> bool {
    pod["status"]["qosClass"].as_str().unwrap_or_else(|| qos_class(&pod["spec"])) == "BestEffort"
}

fn is_affine_across_namespaces(pod: &Object) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|names| !names.is_empty())
            || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &pod["spec"]["affinity"][kind];
        let list = |field: &str| affinity[field].as_array().map(Vec::as_slice).unwrap_or_default();
        list("requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || list("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn usage(group: &str, plural: &str, object: Value) -> String {
        let evaluator = Evaluator::of(group, plural).expect("counted");
        evaluator.usage(&object, Timestamp::UNIX_EPOCH).to_string()
    }

    fn pod(phase: &str) -> Value {
        json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {
                "requests": {"cpu": "500m", "memory": "252Mi", "example.com/dongle": "2"},
                "limits": {"example.com/dongle": "2"},
            }}]},
            "status": {"phase": phase},
        })
    }

    #[test]
    fn a_pod_counts_for_what_it_asks_for_until_it_has_ended() {
        assert_eq!(
            usage("", "pods", pod("Running")),
            "count/pods=1,cpu=500m,memory=252Mi,pods=1,requests.cpu=500m,requests.example.com/dongle=2,requests.memory=252Mi"
        );
        assert_eq!(usage("", "pods", pod("Succeeded")), "count/pods=1");
        let mut stuck = pod("Running");
        stuck["metadata"]["deletionTimestamp"] = "1969-12-31T23:59:00Z".into();
        stuck["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        assert_eq!(usage("", "pods", stuck.clone()), "count/pods=1");
        stuck["metadata"]["deletionGracePeriodSeconds"] = 90.into();
        assert!(usage("", "pods", stuck).contains("pods=1,requests.cpu"));
    }

    #[test]
    fn a_service_counts_for_the_ports_it_will_get() {
        let of = |kind: &str| {
            usage("", "services", json!({"spec": {"type": kind, "ports": [{}, {"nodePort": 1}]}}))
        };
        assert_eq!(
            of("ClusterIP"),
            "count/services=1,services=1,services.loadbalancers=0,services.nodeports=0"
        );
        assert_eq!(
            of("NodePort"),
            "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2"
        );
        assert_eq!(
            of("LoadBalancer"),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"
        );
        let chosen = json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "ports": [{}, {"nodePort": 30000}]}});
        assert!(usage("", "services", chosen).ends_with("services.nodeports=1"));
    }

    #[test]
    fn a_claim_counts_for_its_class_too() {
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            usage("", "persistentvolumeclaims", claim),
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
             gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
        );
        assert!(Evaluator::Claims.counts("gold.storageclass.storage.k8s.io/requests.storage"));
        assert!(!Evaluator::Claims.counts("gold.storageclass.storage.k8s.io/cpu"));
    }

    #[test]
    fn everything_else_counts_by_its_name() {
        assert_eq!(usage("apps", "replicasets", json!({})), "count/replicasets.apps=1");
        assert_eq!(usage("", "secrets", json!({})), "count/secrets=1,secrets=1");
        assert_eq!(Evaluator::of("", "events"), None);
        assert!(
            Evaluator::Pods.counts("requests.example.com/dongle") && !Evaluator::Pods.counts("example.com/x")
        );
    }

    #[test]
    fn scopes_take_in_what_they_say() {
        let takes = |scope: &str, pod: &Value| {
            Evaluator::Pods.is_in_scope(&json!({"spec": {"scopes": [scope]}}), pod)
        };
        let mut limited = pod("Pending");
        limited["spec"]["activeDeadlineSeconds"] = 3600.into();
        assert!(takes("Terminating", &limited) && !takes("NotTerminating", &limited));
        assert!(takes("NotBestEffort", &limited) && !takes("BestEffort", &limited));
        assert!(takes("BestEffort", &json!({"spec": {"containers": [{}]}})));
        let selects = |operator: &str, values: Value, class: &str| {
            let expression = json!({"scopeName": "PriorityClass", "operator": operator, "values": values});
            let quota = json!({"spec": {"scopeSelector": {"matchExpressions": [expression]}}});
            Evaluator::Pods.is_in_scope(&quota, &json!({"spec": {"priorityClassName": class}}))
        };
        assert!(selects("In", json!(["high"]), "high") && !selects("In", json!(["high"]), "low"));
        assert!(selects("NotIn", json!(["high"]), "low") && selects("NotIn", json!(["high"]), ""));
        assert!(selects("Exists", json!([]), "low") && !selects("Exists", json!([]), ""));
        assert!(Evaluator::Services.is_in_scope(&json!({"spec": {}}), &json!({})));
        assert!(!Evaluator::Services.is_in_scope(&json!({"spec": {"scopes": ["BestEffort"]}}), &json!({})));
    }

    #[test]
    fn a_quota_of_cpu_makes_containers_say_how_much_they_want() {
        let pod = json!({"spec": {"containers": [
            {"name": "b"}, {"name": "a"}, {"name": "c", "resources": {"requests": {"cpu": "1"}}},
        ]}});
        let fault = |required: &[&str]| Evaluator::Pods.fault(required, &pod);
        assert_eq!(fault(&["pods", "ephemeral-storage"]), None);
        assert_eq!(
            fault(&["requests.cpu", "limits.memory"]).as_deref(),
            Some("must specify limits.memory for: a,b,c; requests.cpu for: a,b")
        );
    }
}
