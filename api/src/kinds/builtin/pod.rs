//! Pods, and what every kind with a pod template shares.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::{Value, json};

use super::{kind as declare, rules};
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{NONE, condition, int_at, items_at, since_text, str_at, text_or};
use crate::{Cause, Kind, Object, default};

pub(super) fn kind() -> Kind {
    declare("", "v1", "Pod", "pods")
        .short(&["po"])
        .category("all")
        .subresources(&[
            "attach",
            "binding",
            "ephemeralcontainers",
            "eviction",
            "exec",
            "log",
            "portforward",
            "proxy",
            "resize",
            "status",
        ])
        .fields(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ])
        .strategy(&Pods)
        .columns(vec![
            Column::name(),
            Column::new("Ready", "string", |o, _| {
                let summary = Summary::of(o);
                format!("{}/{}", summary.n_ready, summary.n_containers).into()
            }),
            Column::new("Status", "string", |o, _| Summary::of(o).status.into()),
            Column::new("Restarts", "string", |o, now| Summary::of(o).restarts(now).into()),
            Column::age(),
            Column::new("IP", "string", |o, _| {
                let first = str_at(o, "/status/podIPs/0/ip");
                if first.is_empty() { text_or(o, "/status/podIP", NONE) } else { first.into() }
            })
            .wide(),
            Column::new("Node", "string", |o, _| text_or(o, "/spec/nodeName", NONE)).wide(),
            Column::new("Nominated Node", "string", |o, _| text_or(o, "/status/nominatedNodeName", NONE))
                .wide(),
            Column::new("Readiness Gates", "string", |o, _| readiness_gates(o)).wide(),
        ])
}

fn readiness_gates(pod: &Object) -> Value {
    let gates = items_at(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let met =
        |gate: &&Value| condition(pod, str_at(gate, "/conditionType")).is_some_and(|c| c["status"] == "True");
    format!("{}/{}", gates.iter().filter(met).count(), gates.len()).into()
}

/// What the columns of a pod say, worked out as upstream's printer does.
struct Summary {
    n_ready: usize,
    n_containers: usize,
    status: String,
    n_restarts: i64,
    /// When the last container that was restarted had ended.
    last_restart: String,
}

impl Summary {
    fn of(pod: &Object) -> Summary {
        let mut summary = Summary {
            n_ready: 0,
            n_containers: items_at(pod, "/spec/containers").len(),
            status: str_at(pod, "/status/phase").to_owned(),
            n_restarts: 0,
            last_restart: String::new(),
        };
        let reason = str_at(pod, "/status/reason");
        if !reason.is_empty() {
            summary.status = reason.to_owned();
        }
        let gated = condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated");
        if gated {
            summary.status = "SchedulingGated".into();
        }
        let initialized = condition(pod, "Initialized").is_some_and(|c| c["status"] == "True");
        if !summary.init_containers(pod) || initialized {
            summary.containers(pod);
        }
        let ended = matches!(str_at(pod, "/status/phase"), "Succeeded" | "Failed");
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if pod["status"]["reason"] == "NodeLost" {
                summary.status = "Unknown".into();
            } else if !ended {
                summary.status = "Terminating".into();
            }
        }
        summary
    }

    fn restarts(&self, now_s: i64) -> String {
        if self.n_restarts == 0 || self.last_restart.is_empty() {
            return self.n_restarts.to_string();
        }
        format!("{} ({} ago)", self.n_restarts, since_text(&self.last_restart, now_s))
    }

    fn count_restarts(&mut self, container: &Value) {
        self.n_restarts += int_at(container, "/restartCount");
        let ended = str_at(container, "/lastState/terminated/finishedAt");
        // RFC 3339 in UTC compares as text.
        if ended > self.last_restart.as_str() {
            self.last_restart = ended.to_owned();
        }
    }

    /// Whether an init container still holds the pod up; the status then says which.
    fn init_containers(&mut self, pod: &Object) -> bool {
        let specs = items_at(pod, "/spec/initContainers");
        let is_sidecar = |container: &Value| {
            specs.iter().any(|s| s["name"] == container["name"] && s["restartPolicy"] == "Always")
        };
        self.n_containers += specs.iter().filter(|s| s["restartPolicy"] == "Always").count();
        for (at, container) in items_at(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(container);
            if is_sidecar(container) && container["started"] == true {
                self.n_ready += usize::from(container["ready"] == true);
                continue;
            }
            let terminated = &container["state"]["terminated"];
            let waiting = str_at(container, "/state/waiting/reason");
            if !terminated.is_null() {
                if int_at(terminated, "/exitCode") == 0 {
                    continue;
                }
                self.status = format!("Init:{}", terminated_reason(terminated));
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                self.status = format!("Init:{waiting}");
            } else {
                self.status = format!("Init:{at}/{}", specs.len());
            }
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Object) {
        let mut running = false;
        for container in items_at(pod, "/status/containerStatuses").iter().rev() {
            self.count_restarts(container);
            let waiting = str_at(container, "/state/waiting/reason");
            let terminated = &container["state"]["terminated"];
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if !terminated.is_null() {
                self.status = terminated_reason(terminated);
            } else if container["ready"] == true && !container["state"]["running"].is_null() {
                running = true;
                self.n_ready += 1;
            }
        }
        // A pod of which one container has completed still runs with the others.
        if self.status == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            self.status = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
}

fn terminated_reason(terminated: &Value) -> String {
    match (str_at(terminated, "/reason"), int_at(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int_at(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Object) {
        default::pod(object);
    }

    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({"phase": "Pending", "qosClass": qos_class(&object["spec"])});
        select_by_own_labels(object);
        if items_at(object, "/spec/schedulingGates").is_empty() {
            return;
        }
        object["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastTransitionTime": object["metadata"]["creationTimestamp"],
        }]);
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        rules::pod_update::check(new, old)
    }

    fn prepare_part_update(&self, subresource: &str, new: &mut Object, written: &Object) {
        match subresource {
            "ephemeralcontainers" => rules::pod_parts::take_ephemeral(new, written),
            "resize" => {
                rules::pod_parts::take_resources(new, written);
                default::resources_of_the_whole(new);
            }
            _ => {}
        }
    }

    fn validate_part_update(&self, subresource: &str, new: &Object, old: &Object) -> Vec<Cause> {
        match subresource {
            "ephemeralcontainers" => rules::pod_parts::check_ephemeral(new, old),
            "resize" => rules::pod_parts::check_resize(new, old),
            _ => Vec::new(),
        }
    }

    fn prepare_status_update(&self, new: &mut Object, old: &Object) {
        let (status, was) = (&mut new["status"], &old["status"]);
        if status["qosClass"].is_null() {
            status["qosClass"] = was["qosClass"].clone();
        }
        // Who does not know these fields takes nothing from the pod; an empty list does.
        for field in ["resourceClaimStatuses", "extendedResourceClaimStatus"] {
            if status[field].is_null() && !was[field].is_null() {
                status[field] = was[field].clone();
            }
        }
        keep_observed_generations(status, was);
    }

    fn deletion_grace_seconds(&self, object: &Object, requested: Option<i64>) -> Option<i64> {
        let ended = matches!(str_at(object, "/status/phase"), "Succeeded" | "Failed");
        if ended || str_at(object, "/spec/nodeName").is_empty() {
            return Some(0);
        }
        let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        // A negative period in a spec means one second.
        Some(requested.unwrap_or(if own < 0 { 1 } else { own }))
    }

    fn field(&self, object: &Object, field: &str) -> String {
        match field {
            "spec.hostNetwork" => (object["spec"]["hostNetwork"] == true).to_string(),
            "status.podIPs" => {
                let ips = items_at(object, "/status/podIPs").iter().map(|ip| str_at(ip, "/ip"));
                ips.collect::<Vec<_>>().join(",")
            }
            other => str_at(object, &format!("/{}", other.replace('.', "/"))).to_owned(),
        }
    }
}

/// Which generation a status and each of its conditions is of stays where a writer says nothing of it, as those do that do not
/// know the field. A type of condition may occur more than once: the first is the successor of the first.
fn keep_observed_generations(status: &mut Value, was: &Value) {
    const FIELD: &str = "observedGeneration";
    let keep = |now: &mut Value, before: Option<i64>| {
        if int_at(now, "/observedGeneration") == 0
            && let (Some(before), Some(now)) = (before.filter(|before| *before != 0), now.as_object_mut())
        {
            now.insert(FIELD.into(), before.into());
        }
    };
    keep(status, was[FIELD].as_i64());
    let mut before: HashMap<&str, VecDeque<i64>> = HashMap::new();
    for condition in items_at(was, "/conditions") {
        let of_type = before.entry(str_at(condition, "/type")).or_default();
        of_type.push_back(int_at(condition, "/observedGeneration"));
    }
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let last = before.get_mut(str_at(condition, "/type")).and_then(VecDeque::pop_front);
        keep(condition, last);
    }
}

/// Writes what `matchLabelKeys` and `mismatchLabelKeys` mean for this pod into the selectors beside them.
fn select_by_own_labels(pod: &mut Object) {
    let labels = pod["metadata"]["labels"].clone();
    let spec = &mut pod["spec"];
    for which in ["podAffinity", "podAntiAffinity"] {
        for (terms, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "/podAffinityTerm"),
        ] {
            let path = format!("/affinity/{which}/{terms}");
            for term in spec.pointer_mut(&path).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(term) = term.pointer_mut(inner) {
                    add_own_labels(term, &labels);
                }
            }
        }
    }
    let constraints = spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut);
    constraints.into_iter().flatten().for_each(|constraint| add_own_labels(constraint, &labels));
}

fn add_own_labels(term: &mut Value, labels: &Value) {
    if !term["labelSelector"].is_object() {
        return;
    }
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items_at(term, &format!("/{field}")).to_vec() {
            let value = key.as_str().and_then(|key| labels.get(key));
            if let Some(value) = value {
                let selector = &mut term["labelSelector"];
                if !selector["matchExpressions"].is_array() {
                    selector["matchExpressions"] = json!([]);
                }
                if let Some(expressions) = selector["matchExpressions"].as_array_mut() {
                    expressions.push(json!({"key": key, "operator": operator, "values": [value]}));
                }
            }
        }
    }
}

/// Guaranteed, Burstable or BestEffort.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers = items_at(spec, "/containers").iter().chain(items_at(spec, "/initContainers"));
    // What is asked for the pod as a whole counts alone, even where that is nothing.
    let holders: Vec<&Value> = match &spec["resources"] {
        Value::Null => containers.map(|container| &container["resources"]).collect(),
        whole => vec![whole],
    };
    let amount = |holder: &Value, side: &str, of: &str| {
        holder[side][of].as_str().filter(|q| *q != "0").map(str::to_owned)
    };
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let any = holders.iter().any(|holder| {
        COUNTED
            .iter()
            .any(|of| amount(holder, "requests", of).is_some() || amount(holder, "limits", of).is_some())
    });
    let all = holders.iter().all(|holder| {
        COUNTED.iter().all(|of| {
            let limit = amount(holder, "limits", of);
            limit.is_some() && limit == amount(holder, "requests", of)
        })
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What is wrong with a template, wherever it lies.
pub(super) fn validate_template(template: &Value, path: &str) -> Vec<Cause> {
    rules::check_template(template, path)
}

const SYSCTL_MAX_BYTES: usize = 253;

/// Which of them a node lets a pod set is the node's to say.
pub(super) fn validate_sysctls(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    let is_hosts = |field: &str| spec[field] == true;
    let mut seen = HashSet::new();
    for (at, sysctl) in items_at(spec, "/securityContext/sysctls").iter().enumerate() {
        let (path, value) = (format!("{path}[{at}].name"), &sysctl["name"]);
        let name = value.as_str().unwrap_or_default();
        if name.is_empty() {
            causes.push(Cause::required(path, ""));
            continue;
        }
        if !is_sysctl_name(name) {
            let detail = format!(
                "must have at most {SYSCTL_MAX_BYTES} characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            );
            causes.push(Cause::invalid(&path, value, &detail));
        } else if !seen.insert(name) {
            causes.push(Cause::duplicate(&path, value));
        }
        for (field, prefixes) in [
            ("hostNetwork", ["net."].as_slice()),
            ("hostIPC", &["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."]),
        ] {
            let name = name.replace('/', ".");
            if is_hosts(field) && prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                causes.push(Cause::invalid(
                    &path,
                    value,
                    &format!("may not be specified when '{field}' is true"),
                ));
            }
        }
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= SYSCTL_MAX_BYTES
        && name.split(['.', '/']).all(|part| {
            is_edge(part.chars().next()) && is_edge(part.chars().next_back()) && part.chars().all(is_inner)
        })
}

/// A workload's selector must be there, must be unchangeable, and must match its own template.
///
/// `kind` is what upstream calls it there.
pub(super) fn validate_selector(object: &Object, kind: &str) -> Vec<Cause> {
    let selector = &object["spec"]["selector"];
    let is_empty = items_at(selector, "/matchExpressions").is_empty()
        && selector["matchLabels"].as_object().is_none_or(|labels| labels.is_empty());
    let is_daemon = kind == "daemonset";
    let mut causes = Vec::new();
    match (selector.is_null(), is_empty) {
        (true, _) if !is_daemon => causes.push(Cause::required("spec.selector", "")),
        (false, true) => {
            let why = format!("empty selector is invalid for {kind}");
            causes.push(Cause::invalid("spec.selector", selector, &why));
        }
        _ => {}
    }
    if !rules::is_selector(selector) {
        if !is_daemon {
            causes.push(Cause::invalid("spec.selector", selector, "invalid label selector"));
        }
        return causes;
    }
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    let matches = |parsed: crate::LabelSelector| parsed.matches(|key| labels[key].as_str());
    if !crate::LabelSelector::from_json(selector).is_ok_and(matches) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
    }
    causes
}

/// A selector never changes once it has been written.
pub(super) fn immutable_selector(new: &Object, old: &Object) -> Vec<Cause> {
    if new["spec"]["selector"] == old["spec"]["selector"] {
        return Vec::new();
    }
    vec![Cause::invalid("spec.selector", &new["spec"]["selector"], "field is immutable")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::validate_sysctls;

    fn faults(spec: serde_json::Value) -> Vec<String> {
        let mut causes = Vec::new();
        validate_sysctls(&spec, "sysctls", &mut causes);
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn the_name_of_a_sysctl_is_a_path_of_small_words() {
        let names =
            ["kernel.shmmax", "net/ipv4/conf/eth0.7/arp_filter", "a-b_c.d", "foo-", "bar..", "Net.a", ""];
        let sysctls: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let faults = faults(json!({"securityContext": {"sysctls": sysctls}}));
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(
            faults[0]
                .starts_with("sysctls[3].name: Invalid value: \"foo-\": must have at most 253 characters")
        );
        assert!(faults[3].starts_with("sysctls[6].name: Required value"), "{faults:?}");
    }

    #[test]
    fn a_pod_sets_nothing_in_a_namespace_of_the_host() {
        let sysctls = json!([{"name": "net.a", "value": "1"}, {"name": "kernel.shmmax", "value": "1"}]);
        let with = |field: &str| {
            let mut spec = json!({"securityContext": {"sysctls": sysctls}});
            spec[field] = true.into();
            faults(spec)
        };
        let message =
            "sysctls[0].name: Invalid value: \"net.a\": may not be specified when 'hostNetwork' is true";
        assert_eq!(with("hostNetwork"), [message]);
        assert_eq!(with("hostIPC").len(), 1);
    }

    #[test]
    fn a_sysctl_is_named_once() {
        let sysctls = json!([{"name": "net.a", "value": "1"}, {"name": "net.a", "value": "2"}]);
        let faults = faults(json!({"securityContext": {"sysctls": sysctls}}));
        assert_eq!(faults, ["sysctls[1].name: Duplicate value: \"net.a\""]);
    }
}
