//! Pods and what their templates share.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, Path, entries, has, is_true, list, text};
use super::walk::{Below, Walk};
use super::{amounts, container, scheduling};
use crate::meta;

/// A pod spec, as what lies below it must know it.
#[derive(Clone)]
pub(super) struct Pod<'v> {
    pub(super) spec: &'v Value,
    /// The volumes that may be mounted: those without a fault of their own.
    pub(super) volumes: Rc<HashMap<&'v str, &'v Value>>,
    pub(super) claims: Rc<HashSet<&'v str>>,
    pub(super) containers: Containers,
}

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Containers {
    Main,
    Init,
    Ephemeral,
}

impl<'v> Pod<'v> {
    pub(super) fn of(spec: &'v Value) -> Pod<'v> {
        let claims = list(spec, "resourceClaims").iter().map(|claim| text(claim, "name"));
        Pod {
            spec,
            volumes: Rc::default(),
            claims: Rc::new(claims.filter(|name| !name.is_empty()).collect()),
            containers: Containers::Main,
        }
    }

    pub(super) fn has_host_users(&self) -> bool {
        self.spec.get("hostUsers") != Some(&Value::Bool(false))
    }

    pub(super) fn grace_seconds(&self) -> Option<i64> {
        self.spec["terminationGracePeriodSeconds"].as_i64()
    }
}

const MIRROR: &str = "kubernetes.io/config.mirror";

/// What holds for pods and not for templates.
pub(super) fn pod<'v>(walk: &mut Walk<'v>, pod: &'v Value) -> Below {
    let (root, spec) = (Path::ROOT, &pod["spec"]);
    let (meta, at) = (root.child("metadata"), root.child("spec"));
    annotations(walk, &pod["metadata"], spec, &meta.child("annotations"));
    if text(spec, "serviceAccountName").is_empty() {
        let volumes = at.child("volumes");
        for (n, volume) in list(spec, "volumes").iter().enumerate() {
            let path = volumes.index(n);
            let (projected, sources) = (path.child("projected"), list(&volume["projected"], "sources"));
            let field = projected.child("sources");
            for (n, _) in sources.iter().enumerate().filter(|(_, source)| has(source, "serviceAccountToken"))
            {
                let why = "must not be specified when serviceAccountName is not set";
                walk.faults.forbidden(&field.index(n).child("serviceAccountToken"), why);
            }
        }
    }
    if walk.old.is_none() {
        if !list(spec, "ephemeralContainers").is_empty() {
            walk.faults.forbidden(&at.child("ephemeralContainers"), "cannot be set on create");
        }
        if !text(spec, "nodeName").is_empty() && !list(spec, "schedulingGates").is_empty() {
            let why = "cannot be set until all schedulingGates have been cleared";
            walk.faults.forbidden(&at.child("nodeName"), why);
        }
    }
    Below::All
}

/// Annotations that say something about the pod.
fn annotations(walk: &mut Walk<'_>, meta: &Value, spec: &Value, path: &Path<'_>) {
    let all = &meta["annotations"];
    if has(all, MIRROR) && text(spec, "nodeName").is_empty() {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        walk.faults.invalid(&path.key(MIRROR), &all[MIRROR], why);
    }
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = all.get(COST).and_then(Value::as_str)
        && (cost.parse::<i32>().is_err()
            || cost.starts_with('+')
            || (cost.len() > 1 && cost.starts_with('0')))
    {
        walk.faults.invalid(&path.key(COST), &cost.into(), "must be a 32bit integer");
    }
}

/// Templates are checked where their kinds ask for it, which know what more there is to them.
pub(super) fn template<'v>(walk: &mut Walk<'v>, template: &'v Value, path: &Path<'_>) -> Below {
    if !std::ptr::eq(template, walk.root) {
        return Below::Nothing;
    }
    let meta = &template["metadata"];
    let (labels, notes) = (path.child("labels"), path.child("annotations"));
    for cause in meta::validate_labels(&meta["labels"], &labels.to_string())
        .into_iter()
        .chain(meta::validate_annotations(&meta["annotations"], &notes.to_string()))
    {
        walk.faults.push(cause);
    }
    annotations(walk, meta, &template["spec"], &notes);
    let spec = path.child("spec");
    if !list(&template["spec"], "ephemeralContainers").is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        walk.faults.forbidden(&spec.child("ephemeralContainers"), why);
    }
    if !has(template, "spec") {
        walk.faults.required(&spec.child("containers"), "");
    }
    Below::But(vec!["metadata"])
}

/// Processes of a Windows host: all containers of a pod are such, or none.
fn host_processes(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    let of = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"].as_bool();
    let pod = of(spec);
    let (mut n_containers, mut n_processes) = (0, 0);
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        let field = path.child(kind);
        for (at, container) in list(spec, kind).iter().enumerate() {
            n_containers += 1;
            let own = of(container);
            n_processes += usize::from(own.or(pod) == Some(true));
            if own.is_some() && pod.is_some() && own != pod {
                let (path, why) =
                    (field.index(at), "pod hostProcess value must be identical if both are specified");
                let (context, options) = (path.child("securityContext"), "windowsOptions");
                faults.invalid(&context.child(options).child("hostProcess"), &json!(own), why);
            }
        }
    }
    if n_processes == 0 {
        return;
    }
    if n_processes != n_containers {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        faults.invalid(path, &json!(""), why);
    }
    if !is_true(spec, "hostNetwork") {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        faults.invalid(&path.child("hostNetwork"), &json!(false), why);
    }
}

/// Who looks over another container's shoulder looks over that of one that is there for long.
fn targets(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    let field = path.child("ephemeralContainers");
    let others = ["containers", "initContainers"].into_iter().flat_map(|kind| list(spec, kind));
    let names: HashSet<&str> = others.map(|container| text(container, "name")).collect();
    for (at, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !names.contains(target) {
            faults.not_found(&field.index(at).child("targetContainerName"), &target.into());
        }
    }
}

pub(super) fn spec<'v>(walk: &mut Walk<'v>, spec: &'v Value, path: &Path<'_>) -> Below {
    targets(&mut walk.faults, spec, path);
    host_processes(&mut walk.faults, spec, path);
    volumes(walk, spec, path);
    containers(walk, spec, path);
    let faults = &mut walk.faults;
    let is_pod = walk.is_pod;
    host_network(faults, spec, is_pod, &path.child("containers"));
    gates(faults, spec, &path.child("schedulingGates"));
    duplicate_names(faults, list(spec, "resourceClaims"), &path.child("resourceClaims"));
    claims(faults, spec, &path.child("resourceClaims"));
    scheduling::spreads(
        faults,
        list(spec, "topologySpreadConstraints"),
        &path.child("topologySpreadConstraints"),
    );
    dns_policy(faults, spec, path);
    os(faults, spec, path);
    pod_resources(faults, spec, &path.child("resources"));
    file_keys(faults, spec, path);
    host_users(faults, spec, path);
    if has(spec, "overhead") {
        let overhead = json!({"limits": spec["overhead"]});
        amounts::requirements(&overhead, &HashSet::new(), &path.child("overhead"), faults);
    }
    if has(spec, "hostnameOverride") {
        hostname_override(faults, spec, &path.child("hostnameOverride"));
    }
    if list(spec, "containers").is_empty() {
        walk.faults.required(&path.child("containers"), "");
    }
    Below::But(vec!["volumes", "containers", "initContainers", "ephemeralContainers", "resources"])
}

/// Checks the volumes, and remembers those that containers may mount.
fn volumes<'v>(walk: &mut Walk<'v>, spec: &'v Value, path: &Path<'_>) {
    let (field, mut good) = (path.child("volumes"), HashMap::new());
    for (at, volume) in list(spec, "volumes").iter().enumerate() {
        let (path, name) = (field.index(at), text(volume, "name"));
        let before = walk.faults.causes.len();
        walk.value("core.v1.Volume", volume, &path);
        if name.is_empty() {
            walk.faults.required(&path.child("name"), "");
        } else if let Some(fault) = Format::Label.fault(name) {
            walk.faults.invalid(&path.child("name"), &name.into(), &fault);
        }
        if good.contains_key(name) {
            walk.faults.duplicate(&path.child("name"), &name.into());
        }
        if walk.faults.causes.len() == before {
            good.insert(name, volume);
        }
    }
    if let Some(pod) = &mut walk.pod {
        pod.volumes = Rc::new(good);
    }
}

fn containers<'v>(walk: &mut Walk<'v>, spec: &'v Value, path: &Path<'_>) {
    let mut names: HashSet<&str> = HashSet::new();
    for (field, type_, which) in [
        ("containers", "core.v1.Container", Containers::Main),
        ("initContainers", "core.v1.Container", Containers::Init),
        ("ephemeralContainers", "core.v1.EphemeralContainer", Containers::Ephemeral),
    ] {
        if let Some(pod) = &mut walk.pod {
            pod.containers = which;
        }
        let list_path = path.child(field);
        let mut host_ports = HashSet::new();
        for (at, container) in list(spec, field).iter().enumerate() {
            let path = list_path.index(at);
            walk.value(type_, container, &path);
            let name = text(container, "name");
            if !names.insert(name) && (which != Containers::Init || !name.is_empty()) {
                walk.faults.duplicate(&path.child("name"), &name.into());
            }
            if which == Containers::Init {
                // Each init container is alone when it runs; the first of the list is the one that is named.
                host_ports.clear();
                container::host_ports(&mut walk.faults, container, &mut host_ports, &list_path.index(0));
            } else if which == Containers::Main {
                container::host_ports(&mut walk.faults, container, &mut host_ports, &path);
            }
        }
    }
}

fn host_network(faults: &mut Faults, spec: &Value, is_pod: bool, path: &Path<'_>) {
    if !is_true(spec, "hostNetwork") {
        return;
    }
    for (at, container) in list(spec, "containers").iter().enumerate() {
        let path = path.index(at);
        let ports = path.child("ports");
        for (at, port) in list(container, "ports").iter().enumerate() {
            let (host, own) =
                (port["hostPort"].as_i64().unwrap_or(0), port["containerPort"].as_i64().unwrap_or(0));
            if (is_pod || host != 0) && host != own {
                let why = "must match `containerPort` when `hostNetwork` is true";
                faults.invalid(&ports.index(at).child("hostPort"), &json!(host), why);
            }
        }
    }
}

fn gates(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    let mut seen = HashSet::new();
    for (at, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let (path, name) = (path.index(at), text(gate, "name"));
        if let Some(fault) = Format::Qualified.fault(name) {
            faults.invalid(&path, &name.into(), &fault);
        }
        if !seen.insert(name) {
            faults.duplicate(&path, &name.into());
        }
    }
}

fn duplicate_names(faults: &mut Faults, items: &[Value], path: &Path<'_>) {
    let mut seen = HashSet::new();
    for (at, item) in items.iter().enumerate() {
        let name = text(item, "name");
        if !name.is_empty() && !seen.insert(name) {
            faults.duplicate(&path.index(at).child("name"), &name.into());
        }
    }
}

fn claims(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    for (at, claim) in list(spec, "resourceClaims").iter().enumerate() {
        let why = match (has(claim, "resourceClaimName"), has(claim, "resourceClaimTemplateName")) {
            (true, true) => {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            }
            (false, false) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            _ => continue,
        };
        faults.invalid(&path.index(at), claim, why);
    }
}

fn dns_policy(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    if text(spec, "dnsPolicy") != "None" {
        return;
    }
    let field = path.child("dnsConfig");
    if !has(spec, "dnsConfig") {
        faults.required(&field, "must provide `dnsConfig` when `dnsPolicy` is None");
    } else if list(&spec["dnsConfig"], "nameservers").is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        faults.required(&field.child("nameservers"), why);
    }
}

pub(super) fn dns<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const MAX_NAMESERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_CHARS: usize = 2048;
    let is_bare = list(value, "nameservers").is_empty()
        && walk.pod.as_ref().is_some_and(|pod| text(pod.spec, "dnsPolicy") == "None");
    if is_bare {
        return Below::Nothing;
    }
    let (servers, searches) = (list(value, "nameservers"), list(value, "searches"));
    let field = path.child("nameservers");
    if servers.len() > MAX_NAMESERVERS {
        let why = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        walk.faults.invalid(&field, &value["nameservers"], &why);
    }
    for (at, server) in servers.iter().enumerate() {
        if let Some(fault) = Format::Ip.fault(server.as_str().unwrap_or_default()) {
            walk.faults.invalid(&field.index(at), server, &fault);
        }
    }
    let field = path.child("searches");
    if searches.len() > MAX_SEARCHES {
        let why = format!("must not have more than {MAX_SEARCHES} search paths");
        walk.faults.invalid(&field, &value["searches"], &why);
    }
    let texts = || searches.iter().map(|search| search.as_str().unwrap_or_default());
    if texts().map(|text| text.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        let why = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        walk.faults.invalid(&field, &value["searches"], &why);
    }
    for (at, search) in texts().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        if let Some(fault) = Format::SubdomainUnderscore.fault(search) {
            walk.faults.invalid(&field.index(at), &search.into(), &fault);
        }
    }
    let field = path.child("options");
    for (at, _) in
        list(value, "options").iter().enumerate().filter(|(_, option)| text(option, "name").is_empty())
    {
        walk.faults.required(&field.index(at), "must not be empty");
    }
    Below::Nothing
}

pub(super) fn security<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("supplementalGroups");
    for (at, group) in list(value, "supplementalGroups").iter().enumerate() {
        if !group.as_i64().is_some_and(|group| (0..=2_147_483_647).contains(&group)) {
            walk.faults.invalid(&field.index(at), group, "must be between 0 and 2147483647, inclusive");
        }
    }
    let Some(spec) = walk.pod.as_ref().map(|pod| pod.spec) else { return Below::All };
    if is_true(spec, "shareProcessNamespace") && is_true(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        walk.faults.invalid(&path.parent().child("shareProcessNamespace"), &json!(true), why);
    }
    let (spec, mut causes) = (
        json!({
            "securityContext": {"sysctls": value["sysctls"]}, "hostNetwork": spec["hostNetwork"], "hostIPC": spec["hostIPC"],
        }),
        Vec::new(),
    );
    super::super::pod::validate_sysctls(&spec, &path.child("sysctls").to_string(), &mut causes);
    causes.into_iter().for_each(|cause| walk.faults.push(cause));
    Below::All
}

fn os(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    if !has(spec, "os") {
        return;
    }
    let name = text(&spec["os"], "name");
    let windows = |holder: &Value| has(&holder["securityContext"], "windowsOptions");
    match name {
        "" => faults.required(&path.child("os").child("name"), ""),
        "linux" => {
            let why = "windows options cannot be set for a linux pod";
            if windows(spec) {
                faults.forbidden(&path.child("securityContext").child("windowsOptions"), why);
            }
            each_container(spec, path, |container, path| {
                if windows(container) {
                    faults.forbidden(&path.child("securityContext").child("windowsOptions"), why);
                }
            });
        }
        "windows" => windows_pod(faults, spec, path),
        _ => faults.not_supported(&path.child("os"), &name.into(), &["linux", "windows"]),
    }
}

fn each_container(spec: &Value, path: &Path<'_>, mut visit: impl FnMut(&Value, &Path<'_>)) {
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        let path = path.child(field);
        for (at, container) in list(spec, field).iter().enumerate() {
            visit(container, &path.index(at));
        }
    }
}

fn windows_pod(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    const WHY: &str = "cannot be set for a windows pod";
    const POD: [&str; 11] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    const CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let field = path.child("securityContext");
    for name in POD.iter().filter(|name| has(&spec["securityContext"], name)) {
        faults.forbidden(&field.child(name), WHY);
    }
    for name in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
        let is_set = if name.starts_with("hostP") || name == "hostIPC" {
            is_true(spec, name)
        } else {
            has(spec, name)
        };
        if is_set {
            faults.forbidden(&path.child(name), WHY);
        }
    }
    each_container(spec, path, |container, path| {
        let field = path.child("securityContext");
        for name in CONTAINER.iter().filter(|name| has(&container["securityContext"], name)) {
            faults.forbidden(&field.child(name), WHY);
        }
    });
}

/// What a pod as a whole may have: less kinds than a container, and no less than its containers ask for.
fn pod_resources(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    let value = &spec["resources"];
    if !value.is_object() {
        return;
    }
    if has(value, "claims") {
        faults.forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    for side in ["limits", "requests"] {
        let field = path.child(side);
        for (name, _) in entries(value, side) {
            if amounts::is_container_resource(name)
                && !matches!(name.as_str(), "cpu" | "memory")
                && !name.starts_with("hugepages-")
            {
                let supported = ["cpu", "memory"];
                faults.not_supported(&field.key(name), &name.as_str().into(), &supported);
            }
        }
    }
    amounts::requirements(value, &HashSet::new(), path, faults);
}

/// Variables that are read from a file need the volume that holds it.
fn file_keys(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    let volumes: HashMap<&str, &Value> =
        list(spec, "volumes").iter().map(|volume| (text(volume, "name"), volume)).collect();
    each_container(spec, path, |container, path| {
        let path = path.child("env");
        for (at, variable) in list(container, "env").iter().enumerate() {
            let file = &variable["valueFrom"]["fileKeyRef"];
            if file.is_null() {
                continue;
            }
            let (path, name) = (path.index(at), text(file, "volumeName"));
            let path = path.child("valueFrom");
            let path = path.child("fileKeyRef");
            let field = path.child("volumeName");
            match volumes.get(name) {
                None => faults.not_found(&field, &name.into()),
                Some(volume) if !has(volume, "emptyDir") => {
                    faults.invalid(&field, &name.into(), "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    });
}

fn host_users(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    if spec.get("hostUsers") != Some(&Value::Bool(false)) {
        return;
    }
    const WHY: &str = "when `hostUsers` is false";
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if is_true(spec, field) {
            faults.forbidden(&path.child(shown), WHY);
        }
    }
    each_container(spec, path, |container, path| {
        if !list(container, "volumeDevices").is_empty() {
            faults.forbidden(&path.child("volumeDevices"), WHY);
        }
    });
}

fn hostname_override(faults: &mut Faults, spec: &Value, path: &Path<'_>) {
    const MAX_BYTES: usize = 64;
    let name = text(spec, "hostnameOverride");
    if is_true(spec, "setHostnameAsFQDN") {
        faults.forbidden(path, "may not be specified when setHostnameAsFQDN is true");
    }
    if is_true(spec, "hostNetwork") {
        faults.forbidden(path, "may not be specified when hostNetwork is true");
    }
    if name.len() > MAX_BYTES {
        faults.too_long(path, MAX_BYTES);
    }
    if let Some(fault) = Format::Subdomain.fault(name) {
        faults.invalid(path, &name.into(), &fault);
    }
}

/// What an update may not do to the annotations of a pod.
pub(super) fn annotation_changes(new: &Value, old: &Value) -> Vec<crate::Cause> {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let path = Path::ROOT.child("metadata");
    let (path, mut faults) = (path.child("annotations"), Faults::default());
    if entries(old, "annotations")
        .any(|(key, value)| key == MIRROR && new["annotations"].get(key) != Some(value))
    {
        faults.forbidden(&path.key(MIRROR), "may not remove or update mirror pod annotation");
    }
    if has(&new["annotations"], MIRROR) && !has(&old["annotations"], MIRROR) {
        faults.forbidden(&path.key(MIRROR), "may not add mirror pod annotation");
    }
    faults.causes
}
