use skiff_api::Kinds;

use super::*;

fn kind() -> std::sync::Arc<Kind> {
    Kinds::builtin().by_resource("", "v1", "services").expect("services are known").clone()
}

fn allocator(cidr: &str) -> ServiceAllocator {
    ServiceAllocator::new(cidr.parse().expect("a range"), std::iter::empty())
}

fn service(spec: Value) -> Object {
    json!({"metadata": {"name": "s", "namespace": "a"}, "spec": spec})
}

/// Allocates and keeps.
fn allocate(allocator: &ServiceAllocator, spec: Value, old: Option<&Object>) -> Result<Object, String> {
    let mut object = service(spec);
    if let Some(old) = old {
        carry_over(&mut object, old);
        kind().strategy.prepare_update(&mut object, old);
    }
    let mut allocation =
        allocator.allocate(&kind(), &mut object, old, Write::Real, None).map_err(|status| status.message)?;
    allocation.keep();
    Ok(object)
}

#[test]
fn ranges_parse_or_say_why() {
    let cidr: ServiceCidr = "10.96.7.0/16".parse().expect("a range");
    assert_eq!((cidr.to_string().as_str(), cidr.first()), ("10.96.0.0/16", Ipv4Addr::new(10, 96, 0, 1)));
    assert!(!cidr.contains(Ipv4Addr::new(10, 96, 0, 0)) && !cidr.contains(Ipv4Addr::new(10, 96, 255, 255)));
    for bad in ["", "10.96.0.0", "10.96.0.0/33", "10.96.0.0/30", "fd00::/64"] {
        assert!(bad.parse::<ServiceCidr>().is_err(), "{bad}");
    }
}

#[test]
fn every_service_gets_an_address_of_its_own_until_the_range_is_full() {
    let a = allocator("10.0.0.0/28");
    let mut seen = BTreeSet::new();
    for _ in 0..14 {
        let object = allocate(&a, json!({"type": "ClusterIP"}), None).expect("an address");
        assert_eq!(object["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(object["spec"]["clusterIPs"][0], object["spec"]["clusterIP"]);
        assert!(seen.insert(object["spec"]["clusterIP"].to_string()));
    }
    let full = allocate(&a, json!({"type": "ClusterIP"}), None).expect_err("no address is left");
    assert!(full.contains("range is full"), "{full}");
}

#[test]
fn an_address_that_is_taken_or_foreign_is_refused() {
    let a = allocator("10.0.0.0/24");
    let first = allocate(&a, json!({"clusterIP": "10.0.0.7"}), None).expect("free");
    let taken = allocate(&a, json!({"clusterIP": "10.0.0.7"}), None).expect_err("taken");
    assert!(taken.contains("failed to allocate IP 10.0.0.7: provided IP is already allocated"), "{taken}");
    let foreign = allocate(&a, json!({"clusterIP": "10.0.1.7"}), None).expect_err("foreign");
    assert!(foreign.contains("not in the valid range"), "{foreign}");
    a.release(&kind(), &first);
    allocate(&a, json!({"clusterIP": "10.0.0.7"}), None).expect("free again");
}

#[test]
fn headless_and_external_services_hold_no_address() {
    let a = allocator("10.0.0.0/28");
    let headless = allocate(&a, json!({"clusterIP": "None"}), None).expect("headless");
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let external =
        allocate(&a, json!({"type": "ExternalName", "externalName": "x.y"}), None).expect("external");
    assert!(external["spec"]["clusterIP"].is_null());
    assert!(a.held.lock().is_empty());
}

#[test]
fn node_ports_are_given_kept_and_taken_away_with_the_type() {
    let a = allocator("10.0.0.0/24");
    let ports =
        json!([{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}]);
    let node_port = allocate(&a, json!({"type": "NodePort", "ports": ports}), None).expect("ports");
    let first = node_port["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
    assert!((30000..=32767).contains(&first));
    let taken = json!({"type": "NodePort", "ports": [{"port": 1, "protocol": "TCP", "nodePort": first}]});
    let taken = allocate(&a, taken, None).expect_err("taken");
    assert!(taken.contains("provided port is already allocated"), "{taken}");
    let kept =
        allocate(&a, json!({"type": "LoadBalancer", "ports": ports}), Some(&node_port)).expect("an update");
    assert_eq!(kept["spec"]["ports"], node_port["spec"]["ports"]);
    assert_eq!(kept["spec"]["clusterIP"], node_port["spec"]["clusterIP"]);
    let mut twice = kept.clone();
    twice["spec"]["ports"][1] = kept["spec"]["ports"][0].clone();
    assert!(repeated_port(&kept).is_none());
    assert!(repeated_port(&twice).is_some_and(|status| status.code == 500));
    let plain = allocate(&a, json!({"type": "ClusterIP", "ports": kept["spec"]["ports"]}), Some(&kept))
        .expect("an update");
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null());
    assert_eq!(a.held.lock().len(), 1, "only the address is left");
}

#[test]
fn what_is_not_kept_is_given_back() {
    let a = allocator("10.0.0.0/24");
    let mut object = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
    let allocation = a.allocate(&kind(), &mut object, None, Write::Real, None).expect("allocates");
    assert_eq!(a.held.lock().len(), 2);
    drop(allocation);
    assert!(a.held.lock().is_empty());
}

#[test]
fn stored_services_hold_what_they_have_after_a_restart() {
    let stored = service(json!({"clusterIP": "10.0.0.9", "ports": [{"port": 1, "nodePort": 30001}]}));
    let a = ServiceAllocator::new("10.0.0.0/24".parse().expect("a range"), [stored].into_iter());
    assert!(allocate(&a, json!({"clusterIP": "10.0.0.9"}), None).is_err());
    assert!(
        allocate(&a, json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]}), None).is_err()
    );
}
