//! `LimitRanger`: what a namespace's LimitRanges fill in, and what they refuse.
//!
//! Source: upstream's `plugin/pkg/admission/limitranger`.

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::quantity::Quantity;
use skiff_api::resources::{self, Overhead, Resources};
use skiff_api::{Kind, Object, Status};

use crate::call::is_core;
use crate::lister::Lister;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn limit_ranges(lister: &Lister, namespace: &str) -> Result<Vec<Object>, Status> {
    let (_, all) = lister.cache("", "v1", "limitranges")?.snapshot_of(Some(namespace))?;
    Ok(all.values().filter(|entry| entry.namespace() == namespace).map(|entry| entry.parse()).collect())
}

/// Gives a new pod's containers the requests and limits that they leave open.
pub(super) fn default_limits(lister: &Lister, pod: &mut Object) -> Result<(), Status> {
    for range in limit_ranges(lister, pod.namespace())? {
        fill_in(pod, &range);
    }
    Ok(())
}

/// Refuses a pod or claim that is outside of what its namespace allows.
pub(crate) fn check_limits(lister: &Lister, kind: &Kind, object: &Object) -> Result<(), Status> {
    let faults: fn(&Object, &Object) -> Vec<String> = match kind.kind.as_str() {
        "Pod" if is_core(kind, "Pod") => pod_faults,
        "PersistentVolumeClaim" if is_core(kind, "PersistentVolumeClaim") => claim_faults,
        _ => return Ok(()),
    };
    for range in limit_ranges(lister, object.namespace())? {
        let mut faults = faults(&range, object);
        let mut said = std::collections::HashSet::new();
        faults.retain(|fault| said.insert(fault.clone()));
        let why = match faults.as_slice() {
            [] => continue,
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        return Err(Status::forbidden(&kind.group, &kind.plural, object.name(), &why));
    }
    Ok(())
}

fn limits_of<'r>(range: &'r Object, kind: &'static str) -> impl Iterator<Item = &'r Value> {
    let limits = range["spec"]["limits"].as_array().into_iter().flatten();
    limits.filter(move |limit| limit["type"] == kind)
}

fn fill_in(pod: &mut Object, range: &Object) {
    let mut defaults: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
    for limit in limits_of(range, "Container") {
        for (field, side) in [("default", "limits"), ("defaultRequest", "requests")] {
            let amounts = limit[field].as_object().cloned().into_iter().flatten();
            defaults.entry(side).or_default().extend(amounts);
        }
    }
    let mut done = Vec::new();
    for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (side, said) in [("requests", "request"), ("limits", "limit")] {
                let mut set = Vec::new();
                for (resource, amount) in defaults.get(side).into_iter().flatten() {
                    if container["resources"][side][resource].is_null() {
                        container["resources"][side][resource] = amount.clone();
                        set.push(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    let name = container["name"].as_str().unwrap_or_default();
                    done.push(format!("{} {said} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !done.is_empty() {
        pod["metadata"]["annotations"][ANNOTATION] =
            format!("LimitRanger plugin set: {}", done.join("; ")).into();
    }
}

/// What is asked for and what it is limited to.
struct Asked {
    requests: Resources,
    limits: Resources,
}

fn pod_faults(range: &Object, pod: &Object) -> Vec<String> {
    let mut faults = Vec::new();
    for limit in range["spec"]["limits"].as_array().into_iter().flatten() {
        match limit["type"].as_str().unwrap_or_default() {
            "Container" => {
                for field in ["containers", "initContainers"] {
                    for container in pod["spec"][field].as_array().into_iter().flatten() {
                        let side = |side: &str| Resources::from_json(&container["resources"][side]);
                        let asked = Asked { requests: side("requests"), limits: side("limits") };
                        faults.extend(faults_of(limit, "Container", &asked));
                    }
                }
            }
            "Pod" => {
                let asked = Asked {
                    requests: resources::pod_requests(pod, Overhead::Ignored),
                    limits: resources::pod_limits(pod, Overhead::Ignored),
                };
                faults.extend(faults_of(limit, "Pod", &asked));
            }
            _ => {}
        }
    }
    faults
}

/// Of claims only what they request counts.
fn claim_faults(range: &Object, claim: &Object) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = Resources::from_json(&claim["spec"]["resources"]["requests"]);
    let asked = Asked { requests, limits: Resources::default() };
    let mut faults = Vec::new();
    for limit in limits_of(range, KIND) {
        for (resource, least) in Resources::from_json(&limit["min"]).iter() {
            faults.extend(below(KIND, resource, least, &asked));
        }
        for (resource, most) in Resources::from_json(&limit["max"]).iter() {
            match asked.requests.get(resource) {
                None => faults.push(unsaid("maximum", resource, KIND, most, "request")),
                Some(request) if request > most => {
                    faults.push(format!(
                        "maximum {resource} usage per {KIND} is {most}, but request is {request}"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    faults
}

fn faults_of(limit: &Value, kind: &str, asked: &Asked) -> Vec<String> {
    let of = |field: &str| Resources::from_json(&limit[field]);
    let mut faults = Vec::new();
    for (resource, least) in of("min").iter() {
        faults.extend(below(kind, resource, least, asked));
    }
    for (resource, most) in of("max").iter() {
        faults.extend(above(kind, resource, most, asked));
    }
    for (resource, ratio) in of("maxLimitRequestRatio").iter() {
        faults.extend(apart(kind, resource, ratio, asked));
    }
    faults
}

fn unsaid(bound: &str, resource: &str, kind: &str, enforced: Quantity, what: &str) -> String {
    format!("{bound} {resource} usage per {kind} is {enforced}.  No {what} is specified")
}

fn below(kind: &str, resource: &str, least: Quantity, asked: &Asked) -> Option<String> {
    let Some(request) = asked.requests.get(resource) else {
        return Some(unsaid("minimum", resource, kind, least, "request"));
    };
    let too_low = |what: &str, amount: Quantity| {
        format!("minimum {resource} usage per {kind} is {least}, but {what} is {amount}")
    };
    if request < least {
        return Some(too_low("request", request));
    }
    asked.limits.get(resource).filter(|limit| *limit < least).map(|limit| too_low("limit", limit))
}

fn above(kind: &str, resource: &str, most: Quantity, asked: &Asked) -> Option<String> {
    let Some(limit) = asked.limits.get(resource) else {
        return Some(unsaid("maximum", resource, kind, most, "limit"));
    };
    let too_high = |what: &str, amount: Quantity| {
        format!("maximum {resource} usage per {kind} is {most}, but {what} is {amount}")
    };
    if limit > most {
        return Some(too_high("limit", limit));
    }
    asked.requests.get(resource).filter(|request| *request > most).map(|request| too_high("request", request))
}

fn apart(kind: &str, resource: &str, most: Quantity, asked: &Asked) -> Option<String> {
    let rule = format!("{resource} max limit to request ratio per {kind} is {most}");
    let of = |amounts: &Resources| amounts.get(resource).filter(|amount| !amount.is_zero());
    let Some(request) = of(&asked.requests) else {
        return Some(format!("{rule}, but no request is specified or request is 0"));
    };
    let Some(limit) = of(&asked.limits) else {
        return Some(format!("{rule}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.millis() as f64 / request.millis() as f64;
    (ratio * 1000.0 > most.millis() as f64).then(|| format!("{rule}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(limit: Value) -> Object {
        json!({"spec": {"limits": [limit]}})
    }

    fn pod(resources: Value) -> Object {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn what_a_container_leaves_open_is_filled_in_and_noted() {
        let range = range(json!({"type": "Container", "default": {"cpu": "500m", "memory": "500Mi"},
            "defaultRequest": {"cpu": "100m", "memory": "200Mi"}}));
        let mut pod = pod(json!({"requests": {"memory": "150Mi", "cpu": "300m"}, "limits": {"cpu": "300m"}}));
        pod["spec"]["initContainers"] = json!([{"name": "i"}]);
        fill_in(&mut pod, &range);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"memory": "150Mi", "cpu": "300m"}, "limits": {"cpu": "300m", "memory": "500Mi"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory limit for container c; cpu, memory request for init container i; \
             cpu, memory limit for init container i"
        );
    }

    #[test]
    fn what_is_outside_the_limits_is_named() {
        let faults = |limit: Value, resources: Value| pod_faults(&range(limit), &pod(resources));
        let small = json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"memory": "1Gi"}});
        assert_eq!(
            faults(small.clone(), json!({"requests": {"cpu": "10m"}, "limits": {"memory": "2Gi"}})),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum memory usage per Container is 1Gi, but limit is 2Gi"
            ]
        );
        assert_eq!(
            faults(small, json!({})),
            [
                "minimum cpu usage per Container is 50m.  No request is specified",
                "maximum memory usage per Container is 1Gi.  No limit is specified"
            ]
        );
        let even = json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "1500m"}});
        assert_eq!(
            faults(even.clone(), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})),
            ["cpu max limit to request ratio per Pod is 1500m, but provided ratio is 2.000000"]
        );
        assert_eq!(faults(even, json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3"}})), [""; 0]);
    }

    #[test]
    fn claims_are_bounded_by_what_they_request() {
        let range = range(
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}),
        );
        let faults = |storage: &str| {
            claim_faults(&range, &json!({"spec": {"resources": {"requests": {"storage": storage}}}}))
        };
        assert_eq!(faults("1Gi"), [""; 0]);
        assert_eq!(
            faults("3Gi"),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(
            faults("1Mi"),
            ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"]
        );
    }
}
