//! Defaults of pods that depend on their other fields, and of the templates of pods.
//!
//! A template gets less: what only counts for a pod that exists (requests out of limits, ports of the host's network,
//! `enableServiceLinks`) would stand in the template as if its author had said it, and be in the way of the next `kubectl apply`.
//!
//! Source: `SetDefaults_Pod`, `SetDefaults_Container`, `SetDefaults_Volume` of `pkg/apis/core/v1`, and its conversions.

use serde_json::{Map, Value, json};

use crate::Object;
use crate::resources::{self, Resources};

const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Of a pod.
pub(crate) fn pod(pod: &mut Object) {
    addresses(pod);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec_of_any(spec);
    for container in containers(spec, &CONTAINERS) {
        requests_out_of_limits(container);
    }
    if spec.get("enableServiceLinks").is_none_or(Value::is_null) {
        spec.insert("enableServiceLinks".into(), true.into());
    }
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for container in containers(spec, &CONTAINERS) {
            ports_of_the_host(container);
        }
    }
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|s| s < 0) {
        spec.insert("terminationGracePeriodSeconds".into(), 1.into());
    }
    resources_of_the_whole(pod);
}

/// A pod's address stands in two fields, of which the old one leads: who writes that alone means both. (`hostIP` and `hostIPs`
/// are never made alike; that they are is checked.)
fn addresses(pod: &mut Object) {
    let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) else { return };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let (old, listed) = (text(status.get("podIP")), status.get("podIPs").and_then(|ips| ips.get(0)));
    let first = text(listed.and_then(|ip| ip.get("ip")));
    if old.is_empty() && !first.is_empty() {
        status.insert("podIP".into(), first.into());
    } else if !old.is_empty() && (listed.is_none() || old != first) {
        status.insert("podIPs".into(), json!([{ "ip": old }]));
    }
}

/// What pods and templates have in common, and all that templates get.
pub(super) fn spec_of_any(spec: &mut Map<String, Value>) {
    // The old name of the service account and the new one are kept alike.
    let named = |field: &str| spec.get(field).filter(|name| name.as_str().is_some_and(|n| !n.is_empty()));
    if let Some(account) = named("serviceAccountName").or(named("serviceAccount")).cloned() {
        spec.insert("serviceAccountName".into(), account.clone());
        spec.insert("serviceAccount".into(), account);
    }
    for container in containers(spec, &["initContainers", "containers", "ephemeralContainers"]) {
        if container["imagePullPolicy"].as_str().is_none_or(str::is_empty) {
            container["imagePullPolicy"] =
                pull_policy(container["image"].as_str().unwrap_or_default()).into();
        }
    }
    let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten().filter_map(Value::as_object_mut) {
        if !volume.iter().any(|(name, source)| name != "name" && !source.is_null()) {
            volume.insert("emptyDir".into(), Value::Object(Map::new()));
        }
        if let Some(image) = volume.get_mut("image").filter(|image| image.is_object())
            && image["pullPolicy"].as_str().is_none_or(str::is_empty)
        {
            image["pullPolicy"] = pull_policy(image["reference"].as_str().unwrap_or_default()).into();
        }
    }
}

fn containers<'s>(
    spec: &'s mut Map<String, Value>,
    lists: &'s [&str],
) -> impl Iterator<Item = &'s mut Value> {
    let lists = spec.iter_mut().filter(move |(name, _)| lists.contains(&name.as_str()));
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten().filter(|container| container.is_object())
}

fn requests_out_of_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(Value::Object(limits)) = resources.get("limits") else { return };
    let mut requests = limits.clone();
    if let Some(Value::Object(said)) = resources.get("requests") {
        requests.extend(said.iter().map(|(name, amount)| (name.clone(), amount.clone())));
    }
    if !requests.is_empty() {
        resources.insert("requests".into(), Value::Object(requests));
    }
}

fn ports_of_the_host(container: &mut Value) {
    let ports = container.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter(|port| port.is_object()) {
        if port["hostPort"].as_i64().unwrap_or_default() == 0 {
            port["hostPort"] = port["containerPort"].clone();
        }
    }
}

/// Where a pod says something of its whole, the rest follows from its containers or its own limits.
pub(crate) fn resources_of_the_whole(pod: &mut Object) {
    let is_huge = |name: &str| name.starts_with("hugepages-");
    let side = |pod: &Object, side: &str| Resources::from_json(&pod["spec"]["resources"][side]);
    if pod["spec"].get("resources").is_none_or(|resources| !resources.is_object()) {
        return;
    }
    let (mut limits, mut requests) = (side(pod, "limits"), side(pod, "requests"));
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    for (name, amount) in resources::sum_of_containers(pod, "limits").iter().filter(|(n, _)| is_huge(n)) {
        if requests.get(name).is_none() && limits.get(name).is_none() {
            limits.set(name, amount);
        }
    }
    if limits.is_empty() {
        return;
    }
    let asked = resources::sum_of_containers(pod, "requests");
    let asked = asked.only(|name| matches!(name, "cpu" | "memory"));
    let limited = limits.only(|name| matches!(name, "cpu" | "memory") || is_huge(name));
    for (name, amount) in asked.iter().chain(limited.iter()) {
        if requests.get(name).is_none() {
            requests.set(name, amount);
        }
    }
    pod["spec"]["resources"]["limits"] = limits.to_json();
    if !requests.is_empty() {
        pod["spec"]["resources"]["requests"] = requests.to_json();
    }
}

/// Images that may change under their name are always asked for again.
fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

/// Whether a reference names the tag `latest`, or neither tag nor digest. What is no reference names nothing.
fn is_latest(image: &str) -> bool {
    let (named, has_digest) = match image.split_once('@') {
        Some((named, _)) => (named, true),
        None => (image, false),
    };
    let (path, last) = named.rsplit_once('/').unwrap_or(("", named));
    let (name, tag) = match last.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (last, None),
    };
    const MAX_BYTES: usize = 255;
    if named.starts_with('/') {
        return false;
    }
    // Only the host in front, which has a dot, a port or a capital, or is `localhost`, is not part of the name.
    let is_host = |text: &str| {
        text.contains(['.', ':']) || text == "localhost" || text.chars().any(|c| c.is_ascii_uppercase())
    };
    let (host, repository) = match path.split_once('/') {
        Some((host, rest)) if is_host(host) => (host, rest),
        None if is_host(path) => (path, ""),
        _ => ("docker.io", path),
    };
    // A name alone is one of the library of that host.
    let library = if path.is_empty() { "library/".len() } else { 0 };
    let bytes =
        host.len() + 1 + library + repository.len() + usize::from(!repository.is_empty()) + name.len();
    let is_repository = repository.is_empty() || repository.split('/').all(is_component);
    bytes <= MAX_BYTES
        && is_domain(host)
        && is_component(name)
        && is_repository
        && tag.map_or(!has_digest, |tag| tag == "latest")
}

/// Words with dots between them, and a port that has a digit.
fn is_domain(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(is_inner) && !word.starts_with('-') && !word.ends_with('-')
    };
    // An address of the newer family has brackets; what is between them is not looked at.
    let is_bracketed = host.starts_with('[');
    is_bracketed
        || (name.split('.').all(is_word) && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Words of small letters and digits, with a dot, one or two underscores or any hyphens between them.
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !(bytes.first().is_some_and(|b| is_word(*b)) && bytes.last().is_some_and(|b| is_word(*b))) {
        return false;
    }
    bytes.split(|b| is_word(*b)).all(|between| match between {
        [] | b"." | b"_" | b"__" => true,
        hyphens => hyphens.iter().all(|b| *b == b'-'),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Kinds, default};

    fn defaulted(kind: &str, object: Value) -> Value {
        let kinds = Kinds::builtin();
        let kind = kinds.iter().find(|k| k.kind == kind).unwrap();
        let mut object = object;
        default::apply(kind, &mut object);
        object
    }

    fn spec() -> Value {
        json!({
            "hostNetwork": true,
            "terminationGracePeriodSeconds": -1,
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}],
            "initContainers": [{"name": "i", "image": "i:1", "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "v"}],
        })
    }

    #[test]
    fn a_pod_gets_what_follows_from_its_other_fields() {
        let pod = defaulted("Pod", json!({"spec": spec()}));
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(spec["initContainers"][0]["resources"]["requests"], json!({"cpu": "1"}));
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(spec["enableServiceLinks"], true);
        assert_eq!(spec["terminationGracePeriodSeconds"], 1);
        assert_eq!(spec["volumes"][0], json!({"name": "v", "emptyDir": {}}));
    }

    #[test]
    fn the_template_of_a_pod_keeps_what_its_author_said() {
        let template = json!({"spec": spec()});
        let of = |object: &Value, path: &str| object.pointer(path).cloned().unwrap();
        let nested = json!({"spec": {"template": template}});
        let cron = json!({"spec": {"jobTemplate": {"spec": {"template": template}}}});
        for (kind, object, path) in [
            ("Deployment", &nested, "/spec/template/spec"),
            ("ReplicaSet", &nested, "/spec/template/spec"),
            ("DaemonSet", &nested, "/spec/template/spec"),
            ("StatefulSet", &nested, "/spec/template/spec"),
            ("Job", &nested, "/spec/template/spec"),
            ("ReplicationController", &nested, "/spec/template/spec"),
            ("CronJob", &cron, "/spec/jobTemplate/spec/template/spec"),
            ("PodTemplate", &json!({"template": template}), "/template/spec"),
        ] {
            let spec = of(&defaulted(kind, object.clone()), path);
            assert_eq!(spec["containers"][0]["resources"]["requests"], json!({"cpu": "500m"}), "{kind}");
            assert_eq!(spec["initContainers"][0]["resources"].get("requests"), None, "{kind}");
            assert_eq!(spec["containers"][0]["ports"][0].get("hostPort"), None, "{kind}");
            assert_eq!(spec.get("enableServiceLinks"), None, "{kind}");
            assert_eq!(spec["terminationGracePeriodSeconds"], -1, "{kind}");
            assert_eq!(spec["dnsPolicy"], "ClusterFirst", "{kind}");
            assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always", "{kind}");
            assert_eq!(spec["volumes"][0]["emptyDir"], json!({}), "{kind}");
        }
    }

    #[test]
    fn what_is_said_of_the_whole_pod_is_filled_in_from_its_containers() {
        let pod = |whole: Value| {
            let container = json!({"name": "c", "image": "i", "resources": {
                "requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"hugepages-2Mi": "4Mi"}}});
            let pod = json!({"spec": {"resources": whole, "containers": [container]}});
            defaulted("Pod", pod)["spec"]["resources"].clone()
        };
        assert_eq!(
            pod(json!({"limits": {"cpu": "2"}})),
            json!({"limits": {"cpu": "2", "hugepages-2Mi": "4Mi"},
                "requests": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi"}})
        );
        assert_eq!(pod(json!({})), json!({}), "nothing is said of the whole");
    }

    #[test]
    fn only_names_that_may_change_are_always_pulled() {
        for (image, wanted) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("registry:5000/a/nginx", true),
            ("Registry.example/a/nginx", true),
            ("nginx:latest@sha256:00", true),
            ("nginx:1.2", false),
            ("nginx@sha256:00", false),
            ("registry:5000/nginx:1", false),
            ("Nginx", false),
            ("http://x", false),
            ("a.b-/x", false),
            ("", false),
        ] {
            assert_eq!(is_latest(image), wanted, "{image}");
        }
    }
}
