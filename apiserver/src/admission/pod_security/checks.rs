//! What the levels `baseline` and `restricted` have against a pod.
//!
//! Source: upstream's Pod Security Standards, to the wording of its refusals.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Level, Version};

/// A pod, or what a template makes one of.
#[derive(Clone, Copy)]
pub(super) struct Pod<'p> {
    pub(super) metadata: &'p Value,
    pub(super) spec: &'p Value,
}

/// Why a check refuses a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) detail: String,
}

type CheckPod = fn(Pod<'_>) -> Option<Refusal>;

struct Check {
    id: &'static str,
    level: Level,
    /// From which minor version of the policy on each form of it counts.
    forms: &'static [(u32, CheckPod)],
    /// A check of `baseline` that this one of `restricted` stands in for.
    instead_of: &'static str,
}

const fn baseline(id: &'static str, forms: &'static [(u32, CheckPod)]) -> Check {
    Check { id, level: Level::Baseline, forms, instead_of: "" }
}

const fn restricted(id: &'static str, instead_of: &'static str, forms: &'static [(u32, CheckPod)]) -> Check {
    Check { id, level: Level::Restricted, forms, instead_of }
}

/// In the order in which refusals name them.
const CHECKS: &[Check] = &[
    baseline("appArmorProfile", &[(0, app_armor_profile)]),
    baseline("capabilities_baseline", &[(0, added_capabilities)]),
    baseline("hostNamespaces", &[(0, host_namespaces)]),
    baseline("hostPathVolumes", &[(0, host_path_volumes)]),
    baseline("hostPorts", &[(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, hosts_of_probes)]),
    baseline("privileged", &[(0, privileged)]),
    baseline("procMount", &[(0, proc_mount), (35, proc_mount_of_host_users)]),
    baseline("seLinuxOptions", &[(0, selinux_options), (31, selinux_options_with_engine)]),
    baseline("seccompProfile_baseline", &[(0, seccomp_annotations), (19, seccomp_profile)]),
    baseline("sysctls", &[(0, sysctls::<5>), (27, sysctls::<6>), (29, sysctls::<10>), (32, sysctls::<12>)]),
    baseline("windowsHostProcess", &[(0, host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        "",
        &[(8, privilege_escalation), (25, |pod| on_linux(pod, privilege_escalation))],
    ),
    restricted(
        "capabilities_restricted",
        "capabilities_baseline",
        &[(22, dropped_capabilities), (25, |pod| on_linux(pod, dropped_capabilities))],
    ),
    restricted("procMount_restricted", "procMount", &[(35, proc_mount)]),
    restricted("restrictedVolumes", "hostPathVolumes", &[(0, volume_types)]),
    restricted("runAsNonRoot", "", &[(0, run_as_non_root), (35, |pod| of_host_users(pod, run_as_non_root))]),
    restricted("runAsUser", "", &[(23, run_as_user), (35, |pod| of_host_users(pod, run_as_user))]),
    restricted(
        "seccompProfile_restricted",
        "seccompProfile_baseline",
        &[(19, seccomp_profile_set), (25, |pod| on_linux(pod, seccomp_profile_set))],
    ),
];

/// Everything that a level has against a pod, as of a version.
pub(super) fn evaluate(level: Level, version: Version, pod: Pod<'_>) -> Vec<Refusal> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let minor = match version {
        Version::Latest => u32::MAX,
        Version::Minor(minor) => minor,
    };
    let form = |check: &Check| check.forms.iter().rev().find(|(from, _)| *from <= minor).map(|(_, form)| *form);
    let counts = |check: &&Check| check.level <= level && form(check).is_some();
    let replaced: BTreeSet<&str> = CHECKS.iter().filter(counts).map(|check| check.instead_of).collect();
    let left = CHECKS.iter().filter(counts).filter(|check| !replaced.contains(check.id));
    left.filter_map(&form).filter_map(|check| check(pod)).collect()
}

impl<'p> Pod<'p> {
    fn containers(self) -> impl Iterator<Item = &'p Value> {
        let of = move |field: &str| self.spec[field].as_array().into_iter().flatten();
        of("initContainers").chain(of("containers")).chain(of("ephemeralContainers"))
    }

    /// The names of the containers of which this holds.
    fn containers_that(self, holds: impl FnMut(&&'p Value) -> bool) -> Vec<&'p str> {
        self.containers().filter(holds).map(name).collect()
    }

    fn security(self) -> &'p Value {
        &self.spec["securityContext"]
    }
}

fn name(object: &Value) -> &str {
    object["name"].as_str().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().map(text)
}

fn on_linux(pod: Pod<'_>, check: CheckPod) -> Option<Refusal> {
    if pod.spec["os"]["name"] == "windows" { None } else { check(pod) }
}

/// Users of a namespace of its own are nobody on the node.
fn of_host_users(pod: Pod<'_>, check: CheckPod) -> Option<Refusal> {
    if pod.spec["hostUsers"] == false { None } else { check(pod) }
}

fn plural<'t>(one: &'t str, several: &'t str, count: usize) -> &'t str {
    if count == 1 { one } else { several }
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    quoted.join(", ")
}

fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// The pod and containers that set something they must not.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let pod = pod.then(|| "pod".to_owned());
    let names = (!names.is_empty()).then(|| containers(names));
    let setters: Vec<String> = pod.into_iter().chain(names).collect();
    (!setters.is_empty()).then(|| setters.join(" and "))
}

fn refuse(reason: &str, detail: String) -> Option<Refusal> {
    Some(Refusal { reason: reason.to_owned(), detail })
}

fn app_armor_profile(pod: Pod<'_>) -> Option<Refusal> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let mut is_bad = |security: &Value| {
        let profile = &security["appArmorProfile"];
        let bad = !profile.is_null() && !matches!(text(&profile["type"]), "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(text(&profile["type"]).to_owned());
        }
        bad
    };
    let of_pod = is_bad(pod.security());
    let names = pod.containers_that(|container| is_bad(&container["securityContext"]));
    let mut setters: Vec<String> = setters(of_pod, &names).into_iter().collect();
    let annotations = pod.metadata["annotations"].as_object().into_iter().flatten();
    let mut annotations: Vec<String> = annotations
        .map(|(key, value)| (key, text(value)))
        .filter(|(key, value)| {
            let is_allowed = value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/");
            key.starts_with(ANNOTATION) && !is_allowed
        })
        .map(|(key, value)| format!("{key}={}", Value::from(value)))
        .collect();
    annotations.sort_unstable();
    if !annotations.is_empty() {
        setters.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if setters.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(annotations).collect();
    refuse(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(values)),
    )
}

fn added_capabilities(pod: Pod<'_>) -> Option<Refusal> {
    const DEFAULT: &[&str] = &[
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let detail = added(pod, DEFAULT)?;
    refuse("non-default capabilities", detail)
}

/// Containers that add capabilities beyond some.
fn added(pod: Pod<'_>, allowed: &[&str]) -> Option<String> {
    let mut forbidden = BTreeSet::new();
    let names = pod.containers_that(|container| {
        let added = texts(&container["securityContext"]["capabilities"]["add"]);
        let beyond: Vec<&str> = added.filter(|capability| !allowed.contains(capability)).collect();
        forbidden.extend(beyond.iter().copied());
        !beyond.is_empty()
    });
    (!names.is_empty()).then(|| {
        let names = containers(&names);
        format!("{names} must not include {} in securityContext.capabilities.add", quoted(forbidden))
    })
}

fn dropped_capabilities(pod: Pod<'_>) -> Option<Refusal> {
    let keeping = pod.containers_that(|container| {
        let mut dropped = texts(&container["securityContext"]["capabilities"]["drop"]);
        !dropped.any(|capability| capability == "ALL")
    });
    let keeping = (!keeping.is_empty()).then(|| {
        format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping))
    });
    let details: Vec<String> = keeping.into_iter().chain(added(pod, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { refuse("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: Pod<'_>) -> Option<Refusal> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec[*field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() { None } else { refuse("host namespaces", shared.join(", ")) }
}

fn host_path_volumes(pod: Pod<'_>) -> Option<Refusal> {
    let volumes = pod.spec["volumes"].as_array().into_iter().flatten();
    let names: Vec<&str> = volumes.filter(|volume| !volume["hostPath"].is_null()).map(name).collect();
    if names.is_empty() {
        return None;
    }
    refuse("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names)))
}

fn host_ports(pod: Pod<'_>) -> Option<Refusal> {
    let mut ports = BTreeSet::new();
    let names = pod.containers_that(|container| {
        let all = container["ports"].as_array().into_iter().flatten();
        let of_host: Vec<i64> =
            all.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0).collect();
        // As texts, whose order upstream's is.
        ports.extend(of_host.iter().map(i64::to_string));
        !of_host.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let (uses, port) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    refuse("hostPort", format!("{} {uses} {port} {}", containers(&names), ports.join(", ")))
}

fn hosts_of_probes(pod: Pod<'_>) -> Option<Refusal> {
    const HANDLERS: &[&[&str]] = &[
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for container in pod.containers() {
        for path in HANDLERS {
            let handler = path.iter().fold(container, |value, field| &value[*field]);
            for host in ["httpGet", "tcpSocket"].map(|how| text(&handler[how]["host"])) {
                if !host.is_empty() {
                    names.insert(name(container));
                    hosts.insert(host);
                }
            }
        }
    }
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let uses = plural("uses", "use", names.len());
    let host = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    refuse("probe or lifecycle host", format!("{} {uses} {host} {}", containers(&names), quoted(hosts)))
}

fn privileged(pod: Pod<'_>) -> Option<Refusal> {
    let names = pod.containers_that(|container| container["securityContext"]["privileged"] == true);
    if names.is_empty() {
        return None;
    }
    refuse("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount(pod: Pod<'_>) -> Option<Refusal> {
    let mut kinds = BTreeSet::new();
    let names = pod.containers_that(|container| {
        let kind = &container["securityContext"]["procMount"];
        let is_bad = !kind.is_null() && kind != "Default";
        if is_bad {
            kinds.insert(text(kind));
        }
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    let names = containers(&names);
    refuse("procMount", format!("{names} must not set securityContext.procMount to {}", quoted(kinds)))
}

fn proc_mount_of_host_users(pod: Pod<'_>) -> Option<Refusal> {
    of_host_users(pod, proc_mount)
}

fn selinux_options(pod: Pod<'_>) -> Option<Refusal> {
    selinux(pod, &["", "container_t", "container_init_t", "container_kvm_t"])
}

fn selinux_options_with_engine(pod: Pod<'_>) -> Option<Refusal> {
    selinux(pod, &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"])
}

fn selinux(pod: Pod<'_>, allowed: &[&str]) -> Option<Refusal> {
    let (mut types, mut sets_user, mut sets_role) = (BTreeSet::new(), false, false);
    let mut is_bad = |security: &Value| {
        let options = &security["seLinuxOptions"];
        let of = text(&options["type"]);
        let (bad_type, user, role) =
            (!allowed.contains(&of), !text(&options["user"]).is_empty(), !text(&options["role"]).is_empty());
        if bad_type {
            types.insert(of.to_owned());
        }
        sets_user |= user;
        sets_role |= role;
        bad_type || user || role
    };
    let of_pod = is_bad(pod.security());
    let names = pod.containers_that(|container| is_bad(&container["securityContext"]));
    let setters = setters(of_pod, &names)?;
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    data.extend(sets_user.then(|| "user may not be set".to_owned()));
    data.extend(sets_role.then(|| "role may not be set".to_owned()));
    let data = data.join("; ");
    refuse("seLinuxOptions", format!("{setters} set forbidden securityContext.seLinuxOptions: {data}"))
}

fn seccomp_annotations(pod: Pod<'_>) -> Option<Refusal> {
    const OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let keys = pod.containers().map(|container| format!("{OF_CONTAINER}{}", name(container)));
    let mut forbidden = BTreeSet::new();
    for key in keys.chain([OF_POD.to_owned()]) {
        let Some(value) = pod.metadata["annotations"][&key].as_str() else { continue };
        let is_allowed = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
        if !is_allowed {
            forbidden.insert(format!("{key}={}", Value::from(value)));
        }
    }
    if forbidden.is_empty() {
        return None;
    }
    let annotations = plural("annotation", "annotations", forbidden.len());
    let forbidden: Vec<String> = forbidden.into_iter().collect();
    refuse("seccompProfile", format!("forbidden {annotations} {}", forbidden.join(", ")))
}

fn is_allowed_seccomp(profile: &Value) -> bool {
    matches!(text(&profile["type"]), "RuntimeDefault" | "Localhost")
}

fn seccomp_profile(pod: Pod<'_>) -> Option<Refusal> {
    let mut values = BTreeSet::new();
    let mut is_bad = |security: &Value| {
        let profile = &security["seccompProfile"];
        let is_bad = !profile.is_null() && !is_allowed_seccomp(profile);
        if is_bad {
            values.insert(text(&profile["type"]).to_owned());
        }
        is_bad
    };
    let of_pod = is_bad(pod.security());
    let names = pod.containers_that(|container| is_bad(&container["securityContext"]));
    let setters = setters(of_pod, &names)?;
    let values = quoted(values);
    refuse("seccompProfile", format!("{setters} must not set securityContext.seccompProfile.type to {values}"))
}

fn seccomp_profile_set(pod: Pod<'_>) -> Option<Refusal> {
    if let Some(refusal) = seccomp_profile(pod) {
        return Some(refusal);
    }
    // What is set is allowed.
    let is_set = |security: &Value| !security["seccompProfile"].is_null();
    if is_set(pod.security()) {
        return None;
    }
    let names = pod.containers_that(|container| !is_set(&container["securityContext"]));
    if names.is_empty() {
        return None;
    }
    let names = containers(&names);
    refuse(
        "seccompProfile",
        format!(
            "pod or {names} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

/// The first ones were safe from the first, the others came with later versions.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls<const SAFE: usize>(pod: Pod<'_>) -> Option<Refusal> {
    let safe = SAFE_SYSCTLS.get(..SAFE).unwrap_or_default();
    let all = pod.security()["sysctls"].as_array().into_iter().flatten().map(name);
    let forbidden: Vec<&str> = all.filter(|name| !safe.contains(name)).collect();
    if forbidden.is_empty() { None } else { refuse("forbidden sysctls", forbidden.join(", ")) }
}

fn host_process(pod: Pod<'_>) -> Option<Refusal> {
    let is_bad = |security: &Value| security["windowsOptions"]["hostProcess"] == true;
    let names = pod.containers_that(|container| is_bad(&container["securityContext"]));
    let setters = setters(is_bad(pod.security()), &names)?;
    refuse("hostProcess", format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: Pod<'_>) -> Option<Refusal> {
    let names =
        pod.containers_that(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() {
        return None;
    }
    let names = containers(&names);
    refuse(
        "allowPrivilegeEscalation != false",
        format!("{names} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn volume_types(pod: Pod<'_>) -> Option<Refusal> {
    const ALLOWED: &[&str] = &[
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    const KNOWN: &[&str] = &[
        "hostPath",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "gitRepo",
        "nfs",
        "iscsi",
        "glusterfs",
        "rbd",
        "flexVolume",
        "cinder",
        "cephfs",
        "flocker",
        "fc",
        "azureFile",
        "vsphereVolume",
        "quobyte",
        "azureDisk",
        "photonPersistentDisk",
        "portworxVolume",
        "scaleIO",
        "storageos",
    ];
    let first = |volume: &Value, kinds: &'static [&'static str]| {
        kinds.iter().find(|kind| !volume[**kind].is_null()).copied()
    };
    let volumes = pod.spec["volumes"].as_array().into_iter().flatten();
    let bad: Vec<&Value> = volumes.filter(|volume| first(volume, ALLOWED).is_none()).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = bad.iter().map(|volume| first(volume, KNOWN).unwrap_or("unknown")).collect();
    let volume = plural("volume", "volumes", bad.len());
    let (uses, kind) = (
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
    );
    let names = quoted(bad.iter().map(|volume| name(volume)));
    refuse("restricted volume types", format!("{volume} {names} {uses} {kind} {}", quoted(kinds)))
}

fn run_as_non_root(pod: Pod<'_>) -> Option<Refusal> {
    const REASON: &str = "runAsNonRoot != true";
    let of = |security: &Value| security["runAsNonRoot"].as_bool();
    let of_pod = of(pod.security());
    let bad = pod.containers_that(|container| of(&container["securityContext"]) == Some(false));
    if let Some(setters) = setters(of_pod == Some(false), &bad) {
        return refuse(REASON, format!("{setters} must not set securityContext.runAsNonRoot=false"));
    }
    if of_pod == Some(true) {
        return None;
    }
    let unset = pod.containers_that(|container| of(&container["securityContext"]).is_none());
    if unset.is_empty() {
        return None;
    }
    refuse(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&unset)))
}

fn run_as_user(pod: Pod<'_>) -> Option<Refusal> {
    let is_root = |security: &Value| security["runAsUser"].as_i64() == Some(0);
    let names = pod.containers_that(|container| is_root(&container["securityContext"]));
    let setters = setters(is_root(pod.security()), &names)?;
    refuse("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}
