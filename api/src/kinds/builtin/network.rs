//! Networking and discovery.

use serde_json::Value;

use super::kind;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{NONE, UNSET, int_at, items_at, joined, selector, str_at, text, text_or};
use crate::{Cause, Kind, Object, name};

pub(super) fn kinds() -> Vec<Kind> {
    let networking = |name: &str, plural: &str| kind("networking.k8s.io", "v1", name, plural);
    vec![
        kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices").strategy(&Slices).columns(vec![
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
        networking("IngressClass", "ingressclasses").cluster().strategy(&IngressClasses).columns(vec![
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
            .strategy(&IpAddresses)
            .columns(vec![Column::name(), Column::new("ParentRef", "string", |o, _| parent(o))]),
        networking("NetworkPolicy", "networkpolicies").short(&["netpol"]).strategy(&Policies).columns(vec![
            Column::name(),
            Column::new("Pod-Selector", "string", |o, _| selector(o, "/spec/podSelector")),
            Column::age(),
        ]),
        networking("ServiceCIDR", "servicecidrs")
            .cluster()
            .subresources(&["status"])
            .strategy(&ServiceCidrs)
            .columns(vec![
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

struct IngressClasses;

impl Strategy for IngressClasses {
    fn default(&self, object: &mut Object) {
        let parameters = &mut object["spec"]["parameters"];
        if parameters.is_object() && parameters["scope"].is_null() {
            parameters["scope"] = "Cluster".into();
        }
    }
}

struct Policies;

impl Strategy for Policies {
    /// A policy that says nothing of it is one of what comes in, and of what goes out if it has rules for that.
    fn default(&self, object: &mut Object) {
        let spec = &mut object["spec"];
        if items_at(spec, "/policyTypes").is_empty() {
            let has_egress = !items_at(spec, "/egress").is_empty();
            let types: &[&str] = if has_egress { &["Ingress", "Egress"] } else { &["Ingress"] };
            spec["policyTypes"] = types.into();
        }
    }
}

struct Slices;

impl Strategy for Slices {
    /// What slices of the beta version said of a node is no longer written.
    fn prepare_create(&self, object: &mut Object) {
        for endpoint in object["endpoints"].as_array_mut().into_iter().flatten() {
            _ = endpoint.as_object_mut().map(|endpoint| endpoint.remove("deprecatedTopology"));
        }
    }
}

/// What an address is given out to, which never changes.
struct IpAddresses;

impl Strategy for IpAddresses {
    fn validate(&self, object: &Object) -> Vec<Cause> {
        let parent = &object["spec"]["parentRef"];
        if parent.is_null() {
            return vec![Cause::required("spec.parentRef", "")];
        }
        let mut causes = Vec::new();
        let group = str_at(parent, "/group");
        if !group.is_empty()
            && let Some(fault) = name::dns_subdomain_fault(group)
        {
            causes.push(Cause::invalid("spec.parentRef.group", &group.into(), &fault));
        }
        for field in ["resource", "name", "namespace"] {
            let path = format!("spec.parentRef.{field}");
            match parent[field].as_str().unwrap_or_default() {
                "" if field == "namespace" => {}
                "" => causes.push(Cause::required(path, "")),
                text => causes.extend(
                    name::path_segment_fault(text).map(|fault| Cause::invalid(path, &text.into(), &fault)),
                ),
            }
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let parent = &new["spec"]["parentRef"];
        if *parent == old["spec"]["parentRef"] {
            return Vec::new();
        }
        vec![Cause::invalid("spec.parentRef", parent, "field is immutable")]
    }
}

/// Ranges of Service addresses: one of a family, or one of each.
struct ServiceCidrs;

impl Strategy for ServiceCidrs {
    fn validate_create(&self, object: &Object) -> Vec<Cause> {
        cidr_faults(&object["spec"]["cidrs"])
    }

    /// Ranges stay as they are, but a second family may join the first.
    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        const WHY: &str = "field is immutable";
        let list = |object: &Object| items_at(object, "/spec/cidrs").to_vec();
        let (before, after) = (list(old), list(new));
        let changed = before.iter().zip(&after).enumerate().filter(|(_, (old, new))| old != new);
        let mut causes: Vec<Cause> =
            changed.map(|(at, (_, new))| Cause::invalid(format!("spec.cidrs[{at}]"), new, WHY)).collect();
        match (before.len(), after.len()) {
            (old, new) if old == new => {}
            (1, 2) => causes.extend(cidr_faults(&new["spec"]["cidrs"])),
            _ => return vec![Cause::invalid("spec.cidrs", &new["spec"]["cidrs"], WHY)],
        }
        causes
    }
}

fn cidr_faults(cidrs: &Value) -> Vec<Cause> {
    let list = cidrs.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return vec![Cause::required("spec.cidrs", "at least one CIDR required")];
    }
    if list.len() > 2 {
        return vec![Cause::invalid("spec.cidrs", cidrs, "may only hold up to 2 values")];
    }
    let texts: Vec<&str> = list.iter().map(|cidr| cidr.as_str().unwrap_or_default()).collect();
    let fault = |(at, text): (usize, &&str)| {
        let fault = name::cidr_fault(text)?;
        Some(Cause::invalid(format!("spec.cidrs[{at}]"), &(*text).into(), &fault))
    };
    let mut causes: Vec<Cause> = texts.iter().enumerate().filter_map(fault).collect();
    let families = texts.iter().filter(|text| text.contains(':')).count();
    if causes.is_empty() && texts.len() == 2 && families != 1 {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        causes.push(Cause::invalid("spec.cidrs", cidrs, why));
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_belongs_to_one_thing_for_good() {
        let of = |parent: Value| json!({"spec": {"parentRef": parent}});
        let service = of(json!({"resource": "services", "namespace": "a", "name": "s"}));
        assert!(IpAddresses.validate(&service).is_empty());
        assert_eq!(IpAddresses.validate(&json!({"spec": {}}))[0].field, "spec.parentRef");
        let fields: Vec<String> =
            IpAddresses.validate(&of(json!({"group": "_"}))).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["spec.parentRef.group", "spec.parentRef.resource", "spec.parentRef.name"]);
        let other = of(json!({"resource": "services", "namespace": "a", "name": "t"}));
        assert_eq!(IpAddresses.validate_update(&other, &service).len(), 1);
        assert!(IpAddresses.validate_update(&service, &service).is_empty());
    }

    #[test]
    fn ranges_stay_and_a_second_family_may_join() {
        let of = |cidrs: &[&str]| json!({"spec": {"cidrs": cidrs}});
        let one = of(&["10.96.0.0/16"]);
        let both = of(&["10.96.0.0/16", "fd00::/108"]);
        assert!(
            ServiceCidrs.validate_create(&one).is_empty() && ServiceCidrs.validate_create(&both).is_empty()
        );
        for bad in [of(&[]), of(&["10.96.0.1/16"]), of(&["10.0.0.0/8", "11.0.0.0/8"])] {
            assert_eq!(ServiceCidrs.validate_create(&bad).len(), 1, "{bad}");
        }
        assert!(ServiceCidrs.validate_update(&both, &one).is_empty());
        assert_eq!(ServiceCidrs.validate_update(&one, &both).len(), 1);
        assert_eq!(ServiceCidrs.validate_update(&of(&["10.97.0.0/16"]), &one)[0].field, "spec.cidrs[0]");
    }
}
