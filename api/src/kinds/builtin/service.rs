//! Services. Addresses and node ports are allocated by the API server; this file knows the rules of the object.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Value, json};

use super::kind as declare;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{NONE, int_at, items_at, joined, labels, str_at, text};
use crate::{Cause, Kind, Object, name};

pub(super) fn kind() -> Kind {
    declare("", "v1", "Service", "services")
        .short(&["svc"])
        .category("all")
        .folder("services/specs")
        .subresources(&["proxy", "status"])
        .fields(&["spec.clusterIP", "spec.type"])
        .strategy(&Services)
        .columns(vec![
            Column::name(),
            Column::new("Type", "string", |o, _| text(o, "/spec/type")),
            Column::new("Cluster-IP", "string", |o, _| cluster_ip(o)),
            Column::new("External-IP", "string", |o, _| external_ip(o)),
            Column::new("Port(s)", "string", |o, _| ports(o)),
            Column::age(),
            Column::new("Selector", "string", |o, _| labels(o, "/spec/selector")).wide(),
        ])
}

fn cluster_ip(service: &Object) -> Value {
    match (str_at(service, "/spec/clusterIPs/0"), str_at(service, "/spec/clusterIP")) {
        ("", "") => NONE.into(),
        ("", ip) | (ip, _) => ip.into(),
    }
}

fn external_ip(service: &Object) -> Value {
    let external = || items_at(service, "/spec/externalIPs").iter().filter_map(Value::as_str);
    match str_at(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName"),
        "LoadBalancer" => {
            let assigned =
                items_at(service, "/status/loadBalancer/ingress").iter().map(|i| match str_at(i, "/ip") {
                    "" => str_at(i, "/hostname"),
                    ip => ip,
                });
            joined(assigned.chain(external()), "<pending>").into()
        }
        _ => joined(external(), NONE).into(),
    }
}

fn ports(service: &Object) -> Value {
    let port = |p: &Value| {
        let (number, protocol) = (int_at(p, "/port"), str_at(p, "/protocol"));
        match int_at(p, "/nodePort") {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    let all: Vec<String> = items_at(service, "/spec/ports").iter().map(port).collect();
    joined(all.iter().map(String::as_str), NONE).into()
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Object) {
        let spec = &mut object["spec"];
        let type_ = str_at(spec, "/type").to_owned();
        if let Some(Value::Array(ports)) = spec.get_mut("ports") {
            for port in ports {
                if matches!(&port["targetPort"], Value::Null)
                    || port["targetPort"] == 0
                    || port["targetPort"] == ""
                {
                    port["targetPort"] = port["port"].clone();
                }
            }
        }
        if spec["sessionAffinity"] == "None" {
            _ = spec.as_object_mut().map(|spec| spec.remove("sessionAffinityConfig"));
        }
        if spec["sessionAffinity"] == "ClientIP"
            && spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null()
        {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10800}});
        }
        if type_ != "ExternalName" && spec["internalTrafficPolicy"].is_null() {
            spec["internalTrafficPolicy"] = "Cluster".into();
        }
        if is_external(spec) && spec["externalTrafficPolicy"].is_null() {
            spec["externalTrafficPolicy"] = "Cluster".into();
        }
        if type_ == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"].is_null() {
            spec["allocateLoadBalancerNodePorts"] = true.into();
        }
        let ingress = object.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
        for one in ingress.into_iter().flatten().filter(|_| type_ == "LoadBalancer") {
            if !str_at(one, "/ip").is_empty() && one["ipMode"].is_null() {
                one["ipMode"] = "VIP".into();
            }
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({"loadBalancer": {}});
    }

    /// A change of type drops what the new type has no use for, unless it was changed with it: then it is refused.
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        let (spec, was) = (&mut new["spec"], &old["spec"]);
        let lost = |needs: fn(&Value) -> bool, spec: &Value| needs(was) && !needs(spec);
        for (needs, field) in [
            (is_health_checked as fn(&Value) -> bool, "healthCheckNodePort"),
            (is_balancer, "allocateLoadBalancerNodePorts"),
            (is_balancer, "loadBalancerClass"),
            (is_external, "externalTrafficPolicy"),
        ] {
            if lost(needs, spec)
                && spec.get(field) == was.get(field)
                && let Value::Object(spec) = &mut *spec
            {
                spec.remove(field);
            }
        }
        let ports = |spec: &Value| -> BTreeSet<i64> {
            items_at(spec, "/ports")
                .iter()
                .map(|port| int_at(port, "/nodePort"))
                .filter(|port| *port != 0)
                .collect()
        };
        if lost(has_node_ports, spec)
            && ports(spec) == ports(was)
            && let Some(Value::Array(ports)) = spec.get_mut("ports")
        {
            for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                port.remove("nodePort");
            }
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let spec = &object["spec"];
        let mut causes = Vec::new();
        const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        let type_ = str_at(spec, "/type");
        if !TYPES.contains(&type_) {
            causes.push(Cause::not_supported("spec.type", &spec["type"], &TYPES));
        }
        let ports = items_at(spec, "/ports");
        let headless = spec["clusterIP"] == "None";
        if ports.is_empty() && type_ != "ExternalName" && !headless {
            causes.push(Cause::required("spec.ports", ""));
        }
        if type_ == "ExternalName" && str_at(spec, "/externalName").is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        }
        validate_ports(ports, &mut causes);
        const AFFINITIES: [&str; 2] = ["ClientIP", "None"];
        if !AFFINITIES.contains(&str_at(spec, "/sessionAffinity")) {
            causes.push(Cause::not_supported("spec.sessionAffinity", &spec["sessionAffinity"], &AFFINITIES));
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let (was, is) = (&old["spec"]["clusterIP"], &new["spec"]["clusterIP"]);
        let kept_type = new["spec"]["type"] != "ExternalName" && old["spec"]["type"] != "ExternalName";
        if kept_type && was.as_str().is_some_and(|ip| !ip.is_empty()) && was != is {
            return vec![Cause::invalid("spec.clusterIPs[0]", &json!([is]), "may not change once set")];
        }
        Vec::new()
    }

    fn counts_generations(&self) -> bool {
        false
    }
}

fn is_balancer(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer"
}

fn is_health_checked(spec: &Value) -> bool {
    is_balancer(spec) && spec["externalTrafficPolicy"] == "Local"
}

/// Whether it is reached from outside the cluster.
fn is_external(spec: &Value) -> bool {
    match str_at(spec, "/type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !items_at(spec, "/externalIPs").is_empty(),
        _ => false,
    }
}

fn has_node_ports(spec: &Value) -> bool {
    spec["type"] == "NodePort" || (is_balancer(spec) && spec["allocateLoadBalancerNodePorts"] != false)
}

fn validate_ports(ports: &[Value], causes: &mut Vec<Cause>) {
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let name = str_at(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            if let Some(fault) = name::dns_label_fault(name) {
                causes.push(Cause::invalid(format!("{path}.name"), &port["name"], &fault));
            }
            if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), &port["name"]));
            }
        }
        let number = int_at(port, "/port");
        if !(1..=65535).contains(&number) {
            let why = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(format!("{path}.port"), &port["port"], why));
        }
        let protocol = str_at(port, "/protocol");
        if !["SCTP", "TCP", "UDP"].contains(&protocol) {
            causes.push(Cause::not_supported(
                format!("{path}.protocol"),
                &port["protocol"],
                &["SCTP", "TCP", "UDP"],
            ));
        }
        if !numbers.insert((number, protocol)) {
            causes.push(Cause::duplicate(path, &json!({"port": number, "protocol": protocol})));
        }
    }
}
