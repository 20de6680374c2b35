//! Networking and discovery.

use serde_json::Value;

use super::kind;
use crate::table::Column;
use crate::table::cell::{NONE, UNSET, int_at, items_at, joined, selector, str_at, text, text_or};
use crate::{Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    let networking = |name: &str, plural: &str| kind("networking.k8s.io", "v1", name, plural);
    vec![
        kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").columns(vec![
            Column::name(),
            Column::new("AddressType", "string", |o, _| text(o, "/addressType")),
            Column::new("Ports", "string", |o, _| {
                shortened(
                    items_at(o, "/ports").iter().map(|p| int_at(p, "/port").to_string()).collect(),
                    UNSET,
                )
            }),
            Column::new("Endpoints", "string", |o, _| {
                let endpoints = items_at(o, "/endpoints").iter();
                shortened(endpoints.map(|e| str_at(e, "/addresses/0").to_owned()).collect(), UNSET)
            }),
            Column::age(),
        ]),
        networking("IngressClass", "ingressclasses").cluster().columns(vec![
            Column::name(),
            Column::new("Controller", "string", |o, _| text(o, "/spec/controller")),
            Column::new("Parameters", "string", |o, _| parameters(o)),
            Column::age(),
        ]),
        networking("Ingress", "ingresses")
            .short(&["ing"])
            .folder("ingress")
            .subresources(&["status"])
            .columns(vec![
                Column::name(),
                Column::new("Class", "string", |o, _| text_or(o, "/spec/ingressClassName", NONE)),
                Column::new("Hosts", "string", |o, _| {
                    let hosts = items_at(o, "/spec/rules")
                        .iter()
                        .map(|r| str_at(r, "/host"))
                        .filter(|h| !h.is_empty());
                    shortened(hosts.map(str::to_owned).collect(), "*")
                }),
                Column::new("Address", "string", |o, _| {
                    let ingress = items_at(o, "/status/loadBalancer/ingress").iter();
                    joined(
                        ingress.map(|i| {
                            if i["ip"].is_null() { str_at(i, "/hostname") } else { str_at(i, "/ip") }
                        }),
                        "",
                    )
                    .into()
                }),
                Column::new("Ports", "string", |o, _| {
                    if items_at(o, "/spec/tls").is_empty() { "80".into() } else { "80, 443".into() }
                }),
                Column::age(),
            ]),
        networking("IPAddress", "ipaddresses")
            .cluster()
            .short(&["ip"])
            .columns(vec![Column::name(), Column::new("ParentRef", "string", |o, _| parent(o))]),
        networking("NetworkPolicy", "networkpolicies").short(&["netpol"]).columns(vec![
            Column::name(),
            Column::new("Pod-Selector", "string", |o, _| selector(o, "/spec/podSelector")),
            Column::age(),
        ]),
        networking("ServiceCIDR", "servicecidrs").cluster().subresources(&["status"]).columns(vec![
            Column::name(),
            Column::new("CIDRs", "string", |o, _| {
                joined(items_at(o, "/spec/cidrs").iter().filter_map(Value::as_str), "").into()
            }),
            Column::age(),
        ]),
    ]
}

/// The first three, and how many more there are.
fn shortened(mut all: Vec<String>, otherwise: &str) -> Value {
    const SHOWN: usize = 3;
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    match (all.is_empty(), more) {
        (true, _) => otherwise.into(),
        (false, 0) => all.join(",").into(),
        (false, more) => format!("{} + {more} more...", all.join(",")).into(),
    }
}

fn parameters(class: &Object) -> Value {
    let parameters = &class["spec"]["parameters"];
    if parameters.is_null() {
        return NONE.into();
    }
    let (kind, name) = (str_at(parameters, "/kind"), str_at(parameters, "/name"));
    match str_at(parameters, "/apiGroup") {
        "" => format!("{kind}/{name}").into(),
        group => format!("{kind}.{group}/{name}").into(),
    }
}

fn parent(address: &Object) -> Value {
    let parent = &address["spec"]["parentRef"];
    let parts = ["/resource", "/namespace", "/name"].map(|p| str_at(parent, p));
    let resource = match str_at(parent, "/group") {
        "" => parts[0].to_owned(),
        group => format!("{}.{group}", parts[0]),
    };
    let parts = [resource.as_str(), parts[1], parts[2]];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/").into()
}
