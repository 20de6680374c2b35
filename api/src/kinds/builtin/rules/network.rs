//! Network policies, ingresses and slices of endpoints.

use serde_json::{Value, json};

use super::format::{Format, endpoint_ip_faults, is_strict_subset, parse_cidr, parse_ip};
use super::path::{Faults, Path, has, list, number, text};
use super::table;
use super::walk::{Below, Walk};

pub(super) fn policy<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const TYPES: [&str; 2] = ["Ingress", "Egress"];
    let (types, field) = (list(value, "policyTypes"), path.child("policyTypes"));
    if types.len() > TYPES.len() {
        walk.faults.invalid(&field, &value["policyTypes"], "may not specify more than two policyTypes");
        return Below::All;
    }
    for (at, type_) in types.iter().enumerate() {
        if !type_.as_str().is_some_and(|type_| TYPES.contains(&type_)) {
            walk.faults.not_supported(&field.index(at), type_, &TYPES);
        }
    }
    Below::All
}

pub(super) fn policy_port<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (port, end) = (&value["port"], &value["endPort"]);
    let (port_at, end_at) = (path.child("port"), path.child("endPort"));
    if !port.is_null() {
        table::port_or_name(port, &port_at, &mut walk.faults);
    }
    let Some(last) = end.as_i64() else { return Below::All };
    match port.as_i64() {
        Some(first) => {
            if last < first {
                walk.faults.invalid(&end_at, end, "must be greater than or equal to `port`");
            }
            if !table::is_port(last) {
                walk.faults.invalid(&end_at, end, table::PORT_RANGE);
            }
        }
        None if port.is_null() => {
            walk.faults.invalid(&end_at, end, "may not be specified when `port` is not specified");
        }
        None => walk.faults.invalid(&end_at, end, "may not be specified when `port` is non-numeric"),
    }
    Below::All
}

pub(super) fn policy_peer<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let n_selectors = ["podSelector", "namespaceSelector"].iter().filter(|field| has(value, field)).count();
    match (n_selectors, has(value, "ipBlock")) {
        (0, false) => walk.faults.required(path, "must specify a peer"),
        (1.., true) => walk.faults.forbidden(path, "may not specify both ipBlock and another peer"),
        _ => {}
    }
    Below::All
}

pub(super) fn block<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (cidr, faults) = (text(value, "cidr"), &mut walk.faults);
    if cidr.is_empty() {
        faults.required(&path.child("cidr"), "");
        return Below::All;
    }
    let Some(whole) = parse_cidr(cidr) else {
        if let Some(fault) = Format::Cidr.fault(cidr) {
            faults.invalid(&path.child("cidr"), &cidr.into(), &fault);
        }
        return Below::All;
    };
    let field = path.child("except");
    for (at, except) in list(value, "except").iter().enumerate() {
        let given = except.as_str().unwrap_or_default();
        match parse_cidr(given) {
            None => {
                let fault = Format::Cidr.fault(given).unwrap_or_default();
                faults.invalid(&field.index(at), except, &fault);
            }
            Some(part) if !is_strict_subset(part, whole) => {
                faults.invalid(&field.index(at), except, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
    Below::All
}

pub(super) fn ingress<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    const CLASS: &str = "kubernetes.io/ingress.class";
    let (root, given) = (Path::ROOT, &value["metadata"]["annotations"][CLASS]);
    let class = &value["spec"]["ingressClassName"];
    if walk.old.is_none() && given.is_string() && class.is_string() && given != class {
        let why = "must match `ingressClassName` when both are specified";
        walk.faults.invalid(&root.child("annotations").child(CLASS), given, why);
    }
    if !has(value, "spec") {
        no_rules(&mut walk.faults, &root.child("spec"));
    }
    Below::All
}

fn no_rules(faults: &mut Faults, path: &Path<'_>) {
    faults.invalid(path, &Value::Null, "either `defaultBackend` or `rules` must be specified");
}

pub(super) fn ingress_spec<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if list(value, "rules").is_empty() && !has(value, "defaultBackend") {
        no_rules(&mut walk.faults, path);
    }
    Below::All
}

/// Of a host that may begin with `*.`.
fn host_fault(host: &str) -> Option<String> {
    if host.contains('*') { Format::WildcardSubdomain.fault(host) } else { Format::Subdomain.fault(host) }
}

pub(super) fn ingress_tls<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("hosts");
    for (at, host) in list(value, "hosts").iter().enumerate() {
        if let Some(fault) = host_fault(host.as_str().unwrap_or_default()) {
            walk.faults.invalid(&field.index(at), host, &fault);
        }
    }
    Below::All
}

pub(super) fn ingress_rule<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (host, field) = (text(value, "host"), path.child("host"));
    if host.is_empty() {
        return Below::All;
    }
    if parse_ip(host).is_some() {
        walk.faults.invalid(&field, &host.into(), "must be a DNS name, not an IP address");
    }
    if let Some(fault) = host_fault(host) {
        walk.faults.invalid(&field, &host.into(), &fault);
    }
    Below::All
}

pub(super) fn ingress_path<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
    let (given, field, faults) = (text(value, "path"), path.child("path"), &mut walk.faults);
    let type_ = value["pathType"].as_str();
    let mut absolute = || {
        if !given.starts_with('/') {
            faults.invalid(&field, &given.into(), "must be an absolute path");
        }
    };
    match type_ {
        None => {
            faults.required(&path.child("pathType"), "pathType must be specified");
            return Below::Nothing;
        }
        Some("Exact" | "Prefix") => {
            absolute();
            for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| given.contains(**part)) {
                faults.invalid(&field, &given.into(), &format!("must not contain '{part}'"));
            }
            for end in ["/..", "/."].iter().filter(|end| given.ends_with(**end)) {
                faults.invalid(&field, &given.into(), &format!("cannot end with '{end}'"));
            }
        }
        Some("ImplementationSpecific") => {
            if !given.is_empty() {
                absolute();
            }
        }
        Some(other) => faults.not_supported(&path.child("pathType"), &other.into(), &TYPES),
    }
    if !has(value, "backend") {
        no_backend(faults, &path.child("backend"));
    }
    Below::All
}

fn no_backend(faults: &mut Faults, path: &Path<'_>) {
    faults.invalid(path, &json!(""), "resource or service backend is required");
}

pub(super) fn ingress_backend<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    match (has(value, "resource"), has(value, "service")) {
        (true, true) => {
            faults.invalid(path, &json!(""), "cannot set both resource and service backends");
            Below::Nothing
        }
        (false, false) => {
            no_backend(faults, path);
            Below::Nothing
        }
        (true, false) => {
            resource(faults, &value["resource"], &path.child("resource"));
            Below::Nothing
        }
        (false, true) => {
            backend_service(faults, &value["service"], path);
            Below::Nothing
        }
    }
}

fn resource(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    if let Some(group) = value["apiGroup"].as_str()
        && let Some(fault) = Format::Subdomain.fault(group)
    {
        faults.invalid(&path.child("apiGroup"), &group.into(), &fault);
    }
    for field in ["kind", "name"] {
        let (given, path) = (text(value, field), path.child(field));
        if given.is_empty() {
            faults.required(&path, "");
        } else if let Some(fault) = Format::PathSegment.fault(given) {
            faults.invalid(&path, &given.into(), &fault);
        }
    }
}

fn backend_service(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    let field = path.child("service");
    match text(value, "name") {
        "" => faults.required(&field.child("name"), ""),
        name => {
            if let Some(fault) = Format::Label.fault(name) {
                faults.invalid(&field.child("name"), &name.into(), &fault);
            }
        }
    }
    let (name, port) = (text(&value["port"], "name"), number(&value["port"], "number"));
    let port_at = field.child("port");
    match (name.is_empty(), port) {
        (true, 0) => faults.required(path, "port name or number is required"),
        (true, port) if !table::is_port(port) => {
            faults.invalid(&port_at.child("number"), &json!(port), table::PORT_RANGE);
        }
        (true, _) => {}
        (false, 0) => {
            if let Some(fault) = Format::PortName.fault(name) {
                faults.invalid(&port_at.child("name"), &name.into(), &fault);
            }
        }
        (false, _) => faults.invalid(path, &json!(""), "cannot set both port name & port number"),
    }
}

pub(super) fn class_parameters<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("namespace");
    let namespace = value["namespace"].as_str();
    match value["scope"].as_str() {
        None => walk.faults.required(&path.child("scope"), ""),
        Some("Namespace") => match namespace {
            None => walk.faults.required(&field, "`parameters.scope` is set to 'Namespace'"),
            Some(namespace) => {
                if let Some(fault) = Format::Label.fault(namespace) {
                    walk.faults.invalid(&field, &namespace.into(), &fault);
                }
            }
        },
        Some("Cluster") => {
            if namespace.is_some() {
                walk.faults.forbidden(&field, "`parameters.scope` is set to 'Cluster'");
            }
        }
        Some(other) => {
            walk.faults.not_supported(&path.child("scope"), &other.into(), &["Cluster", "Namespace"]);
        }
    }
    Below::All
}

pub(super) fn slice<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    const MAX_ENDPOINTS: usize = 1000;
    let root = Path::ROOT;
    let (field, endpoints) = (root.child("endpoints"), list(value, "endpoints"));
    // What was stored when the rules were others may stay.
    if walk.old.is_some_and(|old| old["endpoints"] == value["endpoints"]) {
        return Below::But(vec!["endpoints"]);
    }
    if endpoints.len() > MAX_ENDPOINTS {
        walk.faults.too_many(&field, endpoints.len(), MAX_ENDPOINTS);
        return Below::But(vec!["endpoints"]);
    }
    let type_ = text(value, "addressType");
    for (at, endpoint) in endpoints.iter().enumerate() {
        let path = field.index(at);
        slice_addresses(&mut walk.faults, endpoint, type_, &path.child("addresses"));
        const MAX_TOPOLOGY: usize = 16;
        let n_labels = endpoint["deprecatedTopology"].as_object().map_or(0, |labels| labels.len());
        if n_labels > MAX_TOPOLOGY {
            walk.faults.too_many(&path.child("deprecatedTopology"), n_labels, MAX_TOPOLOGY);
        }
    }
    Below::All
}

fn slice_addresses(faults: &mut Faults, endpoint: &Value, type_: &str, path: &Path<'_>) {
    const MAX_ADDRESSES: usize = 100;
    let addresses = list(endpoint, "addresses");
    if addresses.is_empty() {
        faults.required(path, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        faults.too_many(path, addresses.len(), MAX_ADDRESSES);
    }
    for (at, address) in addresses.iter().enumerate() {
        let (given, field) = (address.as_str().unwrap_or_default(), path.index(at));
        let format = match type_ {
            "IPv4" => Format::Ip,
            "IPv6" => Format::StrictIp,
            "FQDN" => {
                domain_name(faults, given, &field);
                continue;
            }
            _ => continue,
        };
        if let Some(fault) = format.fault(given) {
            faults.invalid(&field, address, &fault);
            continue;
        }
        if parse_ip(given).is_some_and(|ip| ip.is_ipv4() != (type_ == "IPv4")) {
            faults.invalid(path, address, &format!("must be an {type_} address"));
        }
        endpoint_ip_faults(given).iter().for_each(|fault| faults.invalid(&field, address, fault));
    }
}

fn domain_name(faults: &mut Faults, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return faults.required(path, "");
    }
    let bare = name.strip_suffix('.').unwrap_or(name);
    if let Some(fault) = Format::Subdomain.fault(bare) {
        return faults.invalid(path, &bare.into(), &fault);
    }
    if bare.split('.').count() < 2 {
        return faults.invalid(
            path,
            &bare.into(),
            "should be a domain with at least two segments separated by dots",
        );
    }
    for label in bare.split('.') {
        if let Some(fault) = Format::Label.fault(label) {
            faults.invalid(path, &label.into(), &fault);
        }
    }
}
