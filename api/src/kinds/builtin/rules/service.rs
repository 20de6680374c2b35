//! Services and their endpoints.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::format::{Format, endpoint_ip_faults, parse_ip};
use super::path::{Faults, Path, entries, has, list, number, text};
use super::walk::{Below, Walk};

pub(super) fn service<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let old = walk.old.map(|old| &old["spec"]);
    let faults = &mut walk.faults;
    let (type_, is_headless) = (text(value, "type"), text(value, "clusterIP") == "None");
    match type_ {
        "LoadBalancer" | "NodePort" if is_headless => {
            let why = format!("may not be set to 'None' for {type_} services");
            let field = path.child("clusterIPs");
            faults.invalid(&field.index(0), &json!("None"), &why);
        }
        "ExternalName" => external_name(faults, value, path),
        _ => {}
    }
    node_ports(faults, value, &path.child("ports"));
    affinity(faults, value, &path.child("sessionAffinityConfig"));
    if type_ != "ExternalName" {
        addresses(faults, value, old, path);
    }
    let field = path.child("externalIPs");
    for (at, ip) in list(value, "externalIPs").iter().enumerate() {
        let field = field.index(at);
        match Format::Ip.fault(ip.as_str().unwrap_or_default()).filter(|_| !was_there(old, "externalIPs", ip))
        {
            Some(fault) => faults.invalid(&field, ip, &fault),
            None => {
                endpoint_ip_faults(ip.as_str().unwrap_or_default())
                    .iter()
                    .for_each(|fault| faults.invalid(&field, ip, fault));
            }
        }
    }
    source_ranges(faults, value, old, &path.child("LoadBalancerSourceRanges"));
    if has(value, "allocateLoadBalancerNodePorts") && type_ != "LoadBalancer" {
        let field = path.child("allocateLoadBalancerNodePorts");
        faults.forbidden(&field, "may only be used when `type` is 'LoadBalancer'");
    }
    balancer_class(faults, value, old, &path.child("loadBalancerClass"));
    traffic(faults, value, path);
    Below::All
}

/// What a list has had before may stay in it.
fn was_there(old: Option<&Value>, field: &str, value: &Value) -> bool {
    old.is_some_and(|old| list(old, field).contains(value))
}

fn external_name(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const WHY: &str = "may not be set for ExternalName services";
    // One address stands in the list of all, too.
    if !list(value, "clusterIPs").is_empty() || !text(value, "clusterIP").is_empty() {
        faults.forbidden(&path.child("clusterIPs"), WHY);
    }
    if !list(value, "ipFamilies").is_empty() {
        faults.forbidden(&path.child("ipFamilies"), WHY);
    }
    if has(value, "ipFamilyPolicy") {
        faults.forbidden(&path.child("ipFamilyPolicy"), WHY);
    }
    let name = text(value, "externalName");
    let bare = name.strip_suffix('.').unwrap_or(name);
    if !bare.is_empty()
        && let Some(fault) = Format::Subdomain.fault(bare)
    {
        faults.invalid(&path.child("externalName"), &bare.into(), &fault);
    }
}

fn node_ports(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    let mut seen = HashSet::new();
    for (at, port) in list(value, "ports").iter().enumerate() {
        let (given, path) = (number(port, "nodePort"), path.index(at));
        if given == 0 {
            continue;
        }
        if text(value, "type") == "ClusterIP" {
            faults.forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
        if !seen.insert((text(port, "protocol"), given)) {
            faults.duplicate(&path.child("nodePort"), &json!(given));
        }
    }
}

fn affinity(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const MAX_SECONDS: i64 = 86_400;
    const WHY: &str = "when session affinity type is ClientIP";
    let config = &value["sessionAffinityConfig"];
    match text(value, "sessionAffinity") {
        "None" if has(value, "sessionAffinityConfig") => {
            faults.forbidden(path, "must not be set when session affinity is None");
        }
        "ClientIP" => {
            let client = path.child("clientIP");
            let seconds = &config["clientIP"]["timeoutSeconds"];
            if config.is_null() {
                faults.required(path, WHY);
            } else if !has(config, "clientIP") {
                faults.required(&client, WHY);
            } else if seconds.is_null() {
                faults.required(&client.child("timeoutSeconds"), WHY);
            } else if !(1..=MAX_SECONDS).contains(&seconds.as_i64().unwrap_or(0)) {
                let why = format!("must be greater than 0 and less than {MAX_SECONDS}");
                faults.invalid(&client.child("timeoutSeconds"), seconds, &why);
            }
        }
        _ => {}
    }
}

pub(super) fn addresses(faults: &mut Faults, value: &Value, old: Option<&Value>, path: &Path<'_>) {
    const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
    const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    let (ip, ips, field) = (text(value, "clusterIP"), list(value, "clusterIPs"), path.child("clusterIPs"));
    if ip.is_empty() && !ips.is_empty() {
        faults.invalid(&field, &value["clusterIPs"], "must be empty when `clusterIP` is not specified");
    } else if !ip.is_empty() && ips.first().is_some_and(|first| first != ip) {
        faults.invalid(&field, &value["clusterIPs"], "first value must match `clusterIP`");
    }
    let (families, mut seen) = (path.child("ipFamilies"), HashSet::new());
    for (at, family) in list(value, "ipFamilies").iter().enumerate() {
        let name = family.as_str().unwrap_or_default();
        if !FAMILIES.contains(&name) {
            faults.not_supported(&families.index(at), family, &FAMILIES);
        }
        if !seen.insert(name) {
            faults.duplicate(&families.index(at), family);
        }
    }
    if has(value, "ipFamilyPolicy") && !POLICIES.contains(&text(value, "ipFamilyPolicy")) {
        faults.not_supported(&path.child("ipFamilyPolicy"), &value["ipFamilyPolicy"], &POLICIES);
    }
    let all = ips.iter().map(|ip| ip.as_str().unwrap_or_default());
    let all: Vec<&str> = if ips.is_empty() && !ip.is_empty() { vec![ip] } else { all.collect() };
    let mut is_sound = true;
    for (at, ip) in all.iter().enumerate() {
        let field = field.index(at);
        if *ip == "None" {
            if all.len() > 1 {
                faults.invalid(&field, &(*ip).into(), "'None' must be the first and only value");
            }
        } else if let Some(fault) =
            Format::Ip.fault(ip).filter(|_| !was_there(old, "clusterIPs", &(*ip).into()))
        {
            is_sound = false;
            faults.invalid(&field, &(*ip).into(), &fault);
        }
    }
    if all.len() > 2 {
        faults.invalid(&field, &value["clusterIPs"], "may only hold up to 2 values");
    }
    let families: HashSet<bool> = all.iter().filter_map(|ip| parse_ip(ip)).map(|ip| ip.is_ipv4()).collect();
    if is_sound && all.len() == 2 && families.len() == 1 {
        let why = "may specify no more than one IP for each IP family";
        faults.invalid(&field, &value["clusterIPs"], why);
    }
}

fn source_ranges(faults: &mut Faults, value: &Value, old: Option<&Value>, path: &Path<'_>) {
    let ranges = list(value, "loadBalancerSourceRanges");
    if ranges.is_empty() {
        return;
    }
    if text(value, "type") != "LoadBalancer" {
        faults.forbidden(path, "may only be used when `type` is 'LoadBalancer'");
    }
    let is_new = |range: &Value| !was_there(old, "loadBalancerSourceRanges", range);
    for (at, range) in ranges.iter().enumerate().filter(|(_, range)| is_new(range)) {
        let range = range.as_str().unwrap_or_default().trim();
        if let Some(fault) = Format::Cidr.fault(range) {
            faults.invalid(&path.index(at), &range.into(), &fault);
        }
    }
}

fn balancer_class(faults: &mut Faults, value: &Value, old: Option<&Value>, path: &Path<'_>) {
    let is_balancer = text(value, "type") == "LoadBalancer";
    if let Some(old) = old
        && is_balancer
        && text(old, "type") == "LoadBalancer"
        && old.get("loadBalancerClass") != value.get("loadBalancerClass")
    {
        let shown = value.get("loadBalancerClass").unwrap_or(&Value::Null);
        faults.invalid(path, shown, "may not change once set");
    }
    if let Some(class) = value["loadBalancerClass"].as_str() {
        if !is_balancer {
            return faults.forbidden(path, "may only be used when `type` is 'LoadBalancer'");
        }
        if let Some(fault) = Format::Qualified.fault(class) {
            faults.invalid(path, &class.into(), &fault);
        }
    }
}

fn traffic(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const POLICIES: [&str; 2] = ["Cluster", "Local"];
    let type_ = text(value, "type");
    let is_external = matches!(type_, "LoadBalancer" | "NodePort")
        || (type_ == "ClusterIP" && !list(value, "externalIPs").is_empty());
    let (policy, field) = (text(value, "externalTrafficPolicy"), path.child("externalTrafficPolicy"));
    match (is_external, policy) {
        (false, "") => {}
        (false, _) => {
            faults.invalid(&field, &policy.into(), "may only be set for externally-accessible services")
        }
        (true, "") => faults.required(&field, ""),
        (true, _) if !POLICIES.contains(&policy) => faults.not_supported(&field, &policy.into(), &POLICIES),
        (true, _) => {}
    }
    let health = number(value, "healthCheckNodePort");
    let field = path.child("healthCheckNodePort");
    let is_checked = type_ == "LoadBalancer" && policy == "Local";
    if !is_checked && health != 0 {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        faults.invalid(&field, &json!(health), why);
    } else if is_checked && health != 0 && !super::table::is_port(health) {
        faults.invalid(&field, &json!(health), super::table::PORT_RANGE);
    }
}

pub(super) fn subset<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    // What was stored when the rules were others may stay.
    if walk.old.is_some_and(|old| old["subsets"] == walk.root["subsets"]) {
        return Below::Nothing;
    }
    if list(value, "addresses").is_empty() && list(value, "notReadyAddresses").is_empty() {
        walk.faults.required(path, "must specify `addresses` or `notReadyAddresses`");
    }
    let ports = list(value, "ports");
    if ports.len() > 1 {
        let field = path.child("ports");
        for (at, _) in ports.iter().enumerate().filter(|(_, port)| text(port, "name").is_empty()) {
            walk.faults.required(&field.index(at).child("name"), "");
        }
    }
    Below::All
}

pub(super) fn endpoint<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let ip = text(value, "ip");
    for fault in endpoint_ip_faults(ip).iter().filter(|_| parse_ip(ip).is_some()) {
        walk.faults.invalid(&path.child("ip"), &ip.into(), fault);
    }
    Below::All
}

/// What an annotation of a Service says about where it may be reached from.
pub(super) fn annotations(faults: &mut Faults, service: &Value) {
    const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let spec = &service["spec"];
    if !list(spec, "loadBalancerSourceRanges").is_empty() {
        return;
    }
    let (root, meta) = (Path::ROOT, &service["metadata"]);
    let (meta_at, key) = (root.child("metadata"), RANGES);
    let field = meta_at.child("annotations");
    let field = field.key(key);
    for (_, ranges) in entries(meta, "annotations").filter(|(key, _)| *key == RANGES) {
        if text(spec, "type") != "LoadBalancer" {
            faults.forbidden(&field, "may only be used when `type` is 'LoadBalancer'");
        }
        let ranges = ranges.as_str().unwrap_or_default().trim();
        for range in ranges.split(',').map(str::trim).filter(|_| !ranges.is_empty()) {
            if let Some(fault) = Format::Cidr.fault(range) {
                faults.invalid(&field, &range.into(), &fault);
            }
        }
    }
}
