//! Pod Security: what pods a namespace takes, by its labels.
//!
//! Pods are refused by what the namespace enforces; they, and objects with a template of pods, are warned of by what it warns of.
//! Nothing is enforced where nothing is said. What it audits is for the log of audits, which is not built.
//!
//! Source: upstream's PodSecurity admission with its default configuration.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Cause, Kind, Object, Status};

use self::checks::{Pod, Refusal, evaluate};
use crate::call::is_core;
use crate::lister::Lister;

mod checks;

const PREFIX: &str = "pod-security.kubernetes.io/";
const LEVELS: &str = "must be one of privileged, baseline, restricted";
const VERSIONS: &str = "must be \"latest\" or \"v1.x\"";
/// Pods that are looked at when a namespace begins to enforce more, and how long.
const MAX_PODS: usize = 3000;
const PATIENCE: Duration = Duration::from_millis(30);

/// From the loosest to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Latest,
    /// Of `v1`.
    Minor(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    level: Level,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: Mode,
    warn: Mode,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged:",
            Level::Baseline => "baseline:",
            Level::Restricted => "restricted:",
        })?;
        match self.version {
            Version::Latest => f.write_str("latest"),
            Version::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

impl Level {
    fn parse(text: &str) -> Option<Level> {
        Some(match text {
            "privileged" => Level::Privileged,
            "baseline" => Level::Baseline,
            "restricted" => Level::Restricted,
            _ => return None,
        })
    }
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        if text == "latest" {
            return Some(Version::Latest);
        }
        let minor = text.strip_prefix("v1.")?;
        let is_number =
            minor == "0" || (!minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit()));
        if is_number { Some(Version::Minor(minor.parse().ok()?)) } else { None }
    }
}

impl Mode {
    const OPEN: Mode = Mode { level: Level::Privileged, version: Version::Latest };

    /// What it has against a pod.
    fn evaluate(self, pod: Pod<'_>) -> Vec<Refusal> {
        evaluate(self.level, self.version, pod)
    }
}

impl Policy {
    /// Of a namespace's labels, and what is wrong with them. What cannot be read is the strictest where it is enforced, and nothing
    /// where it only warns.
    fn of(namespace: &Object) -> (Policy, Vec<Cause>) {
        let labels = &namespace["metadata"]["labels"];
        let mut causes = Vec::new();
        let mut wrong = |label: &str, why: &str| {
            let key = format!("{PREFIX}{label}");
            causes.push(Cause::invalid(format!("metadata.labels[{key}]"), &labels[&key], why));
        };
        let said = |label: &str| labels[format!("{PREFIX}{label}")].as_str();
        let mut mode = |label: &str, otherwise: Level| {
            let (level, version) = (said(label), said(&format!("{label}-version")));
            let parsed = level.map(Level::parse);
            if parsed == Some(None) {
                wrong(label, LEVELS);
            }
            let parsed_version = version.map(Version::parse);
            if parsed_version == Some(None) {
                wrong(&format!("{label}-version"), VERSIONS);
            }
            let mode = Mode {
                level: parsed.map_or(Level::Privileged, |level| level.unwrap_or(otherwise)),
                version: parsed_version.flatten().unwrap_or(Version::Latest),
            };
            (mode, parsed.flatten().is_some(), version.is_some())
        };
        let (enforce, is_enforced, _) = mode("enforce", Level::Restricted);
        mode("audit", Level::Privileged);
        let (mut warn, _, has_version) = mode("warn", Level::Privileged);
        // Whoever enforces warns of as much.
        if said("warn").is_none() && is_enforced && enforce.level > warn.level {
            warn.level = enforce.level;
            if !has_version {
                warn.version = enforce.version;
            }
        }
        (Policy { enforce, warn }, causes)
    }
}

/// # Errors
/// 403 for a pod that its namespace does not take, 422 for labels of a namespace that cannot be read.
pub(super) fn check(
    lister: &Lister,
    kind: &Kind,
    subresource: &str,
    new: &Object,
    old: Option<&Object>,
) -> Result<(), Status> {
    if is_core(kind, "Namespace") && subresource.is_empty() {
        let (_, wrong) = Policy::of(new);
        let before = old.map(|old| Policy::of(old).1).unwrap_or_default();
        if !wrong.is_empty() && wrong != before {
            return Err(Status::invalid("", &kind.kind, new.name(), wrong));
        }
        return Ok(());
    }
    let is_spec = matches!(subresource, "" | "ephemeralcontainers" | "resize");
    if !is_core(kind, "Pod") || !is_spec || old.is_some_and(|old| !is_significant(new, old)) {
        return Ok(());
    }
    let policy = policy_of(lister, new.namespace())?;
    let refusals = policy.enforce.evaluate(Pod { metadata: new.meta(), spec: &new["spec"] });
    if refusals.is_empty() {
        return Ok(());
    }
    let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, detailed(&refusals));
    Err(Status::forbidden("", &kind.plural, new.name(), &why))
}

/// What a namespace warns of in an object that was written.
pub(super) fn warnings_of(lister: &Lister, kind: &Kind, new: &Object, old: Option<&Object>) -> Vec<String> {
    if is_core(kind, "Namespace") {
        return old.map(|old| warnings_of_stricter(lister, new, old)).unwrap_or_default();
    }
    let Some(pod) = pod_of(kind, new) else { return Vec::new() };
    if is_core(kind, "Pod") && old.is_some_and(|old| !is_significant(new, old)) {
        return Vec::new();
    }
    // Whether it is there was asked before the object was written.
    let Ok(policy) = policy_of(lister, new.namespace()) else { return Vec::new() };
    let refusals = policy.warn.evaluate(pod);
    if refusals.is_empty() {
        return Vec::new();
    }
    vec![format!("would violate PodSecurity \"{}\": {}", policy.warn, detailed(&refusals))]
}

fn policy_of(lister: &Lister, namespace: &str) -> Result<Policy, Status> {
    let entry = lister.cached("namespaces", namespace)?;
    let entry = entry.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    // Most namespaces say nothing, and their objects need not be parsed.
    let says = ["enforce", "warn"].iter().any(|mode| entry.label(&format!("{PREFIX}{mode}")).is_some());
    Ok(if says { Policy::of(&entry.parse()).0 } else { Policy { enforce: Mode::OPEN, warn: Mode::OPEN } })
}

/// The pods that a namespace would no longer take.
fn warnings_of_stricter(lister: &Lister, new: &Object, old: &Object) -> Vec<String> {
    let (now, before) = (Policy::of(new).0.enforce, Policy::of(old).0.enforce);
    let is_looser = now.version == before.version && now.level <= before.level;
    if now == before || now.level == Level::Privileged || is_looser {
        return Vec::new();
    }
    let namespace = new.name();
    let pods = lister.cache("", "v1", "pods");
    let Ok(Ok((_, pods))) = pods.map(|pods| pods.snapshot_of(Some(namespace))) else {
        return vec!["failed to list pods while checking new PodSecurity enforce level".to_owned()];
    };
    let of_namespace = |entry: &&std::sync::Arc<crate::cache::Entry>| entry.namespace() == namespace;
    let end = Instant::now() + PATIENCE;
    let (n_pods, mut n_checked) = (pods.values().filter(of_namespace).count(), 0);
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut owners = HashSet::new();
    let mut replicas = Vec::new();
    // Of each controller one pod first: the others are alike.
    let firsts = pods.values().filter(of_namespace).filter_map(|entry| {
        let pod = entry.parse();
        let owner = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let owner = owner.filter(|owner| owner["controller"] == true).find_map(|owner| owner["uid"].as_str());
        if owner.is_some_and(|owner| !owners.insert(owner.to_owned())) {
            replicas.push(pod);
            return None;
        }
        Some(pod)
    });
    let mut check = |pod: &Object| {
        n_checked += 1;
        let refusals = now.evaluate(Pod { metadata: pod.meta(), spec: &pod["spec"] });
        if !refusals.is_empty() {
            let reasons: Vec<&str> = refusals.iter().map(|refusal| refusal.reason.as_str()).collect();
            let (first, count) =
                found.entry(reasons.join(", ")).or_insert_with(|| (pod.name().to_owned(), 0));
            if pod.name() < first.as_str() {
                pod.name().clone_into(first);
            }
            *count += 1;
        }
        n_checked < MAX_PODS && Instant::now() < end
    };
    let mut go_on = true;
    for pod in firsts {
        go_on = check(&pod);
        if !go_on {
            break;
        }
    }
    let mut rest = replicas.iter();
    while go_on && let Some(pod) = rest.next() {
        go_on = check(pod);
    }
    warnings(namespace, now, found, (n_checked, n_pods))
}

fn warnings(
    namespace: &str,
    now: Mode,
    found: BTreeMap<String, (String, usize)>,
    (n_checked, n_pods): (usize, usize),
) -> Vec<String> {
    let mut warnings = Vec::new();
    if n_checked < n_pods {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {n_checked} of {n_pods} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{now}\""
        ));
    }
    let mut of_pods: Vec<String> = found
        .into_iter()
        .map(|(reasons, (first, count))| match count {
            1 => format!("{first}: {reasons}"),
            2 => format!("{first} (and 1 other pod): {reasons}"),
            _ => format!("{first} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    of_pods.sort_unstable();
    warnings.extend(of_pods);
    warnings
}

fn detailed(refusals: &[Refusal]) -> String {
    let all: Vec<String> = refusals.iter().map(|r| format!("{} ({})", r.reason, r.detail)).collect();
    all.join(", ")
}

/// The pod that an object is or makes.
fn pod_of<'o>(kind: &Kind, object: &'o Object) -> Option<Pod<'o>> {
    let template = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => object,
        ("", "PodTemplate") => &object["template"],
        ("", "ReplicationController")
        | ("apps", "ReplicaSet" | "Deployment" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job") => &object["spec"]["template"],
        ("batch", "CronJob") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template.is_object().then(|| Pod { metadata: &template["metadata"], spec: &template["spec"] })
}

/// Whether an update of a pod is more than what no level has anything against: other images and containers.
fn is_significant(new: &Object, old: &Object) -> bool {
    let images = |pod: &Object, field: &str| -> Vec<(String, String)> {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        containers.map(|container| (text(&container["name"]), text(&container["image"]))).collect()
    };
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .any(|field| images(new, field) != images(old, field))
}

#[cfg(test)]
mod tests;
