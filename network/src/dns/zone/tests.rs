use serde_json::json;

use super::*;

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", Ipv4Addr::new(10, 43, 0, 10).into());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "d"}})).unwrap();
    zone.namespace_changed(&Change { old: None, new: Some(Arc::new(namespace)) });
    let services = json!([
        {"metadata": {"name": "web", "namespace": "d"}, "spec": {"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
         "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}},
        {"metadata": {"name": "db", "namespace": "d"}, "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}},
        {"metadata": {"name": "empty", "namespace": "d"}, "spec": {"clusterIP": "None"}},
        {"metadata": {"name": "address", "namespace": "d"}, "spec": {"type": "ExternalName", "externalName": "192.0.2.1"}},
        {"metadata": {"name": "out", "namespace": "d"}, "spec": {"type": "ExternalName", "externalName": "example.com", "ports": [{"name": "http", "port": 80}]}},
    ]);
    for service in serde_json::from_value::<Vec<Service>>(services).unwrap() {
        zone.service_changed(&Change { old: None, new: Some(Arc::new(service)) });
    }
    zone.slice_changed(&Change { old: None, new: Some(slice()) });
    zone
}

fn slice() -> Arc<EndpointSlice> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "db-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.42.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.42.0.8"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.9"], "conditions": {"ready": false}},
            ],
        }))
        .unwrap(),
    )
}

#[track_caller]
fn check(zone: &Zone, name: &str, type_: RecordType, wanted: &[&str]) {
    let found = match zone.answer(&Name::from_str(name).unwrap(), type_) {
        Answer::NotOurs => vec!["not ours".to_owned()],
        Answer::NoSuchName { .. } => vec!["no such name".to_owned()],
        Answer::Alias { target, .. } => vec![format!("alias of {target}")],
        Answer::Records { answers, .. } => answers.iter().map(|r| r.data.to_string()).collect(),
    };
    assert_eq!(found, wanted, "{name} {type_}");
}

#[test]
fn services_have_the_names_of_the_specification() {
    let zone = zone();
    check(&zone, "web.d.svc.cluster.local.", RecordType::A, &["10.43.0.9"]);
    check(&zone, "WEB.d.svc.Cluster.Local.", RecordType::A, &["10.43.0.9"]);
    check(&zone, "web.d.svc.cluster.local.", RecordType::AAAA, &[]);
    check(
        &zone,
        "_http._tcp.web.d.svc.cluster.local.",
        RecordType::SRV,
        &["0 100 80 web.d.svc.cluster.local."],
    );
    check(&zone, "_http._udp.web.d.svc.cluster.local.", RecordType::SRV, &["no such name"]);
    check(&zone, "none.d.svc.cluster.local.", RecordType::A, &["no such name"]);
    check(&zone, "d.svc.cluster.local.", RecordType::A, &[]);
    check(&zone, "out.d.svc.cluster.local.", RecordType::A, &["alias of example.com."]);
    check(&zone, "out.d.svc.cluster.local.", RecordType::CNAME, &["example.com."]);
    check(&zone, "_http._tcp.out.d.svc.cluster.local.", RecordType::SRV, &["no such name"]);
    check(&zone, "address.d.svc.cluster.local.", RecordType::A, &["no such name"]);
    check(&zone, "dns-version.cluster.local.", RecordType::TXT, &["1.1.0"]);
}

#[test]
fn a_headless_service_is_its_ready_endpoints() {
    let zone = zone();
    check(&zone, "db.d.svc.cluster.local.", RecordType::A, &["10.42.0.7", "10.42.0.8"]);
    check(&zone, "db-0.db.d.svc.cluster.local.", RecordType::A, &["10.42.0.7"]);
    check(&zone, "10-42-0-8.db.d.svc.cluster.local.", RecordType::A, &["10.42.0.8"]);
    check(&zone, "10-42-0-9.db.d.svc.cluster.local.", RecordType::A, &["no such name"]);
    check(
        &zone,
        "_sql._tcp.db.d.svc.cluster.local.",
        RecordType::SRV,
        &["0 50 5432 db-0.db.d.svc.cluster.local.", "0 50 5432 10-42-0-8.db.d.svc.cluster.local."],
    );
    check(&zone, "_sql._tcp.db.d.svc.cluster.local.", RecordType::A, &["10.42.0.7", "10.42.0.8"]);
    check(
        &zone,
        "db-0.db.d.svc.cluster.local.",
        RecordType::SRV,
        &["0 100 5432 db-0.db.d.svc.cluster.local."],
    );
    check(&zone, "empty.d.svc.cluster.local.", RecordType::A, &["no such name"]);
}

#[test]
fn addresses_lead_back_to_names() {
    let zone = zone();
    check(&zone, "9.0.43.10.in-addr.arpa.", RecordType::PTR, &["web.d.svc.cluster.local."]);
    check(&zone, "7.0.42.10.in-addr.arpa.", RecordType::PTR, &["db-0.db.d.svc.cluster.local."]);
    check(&zone, "1.1.1.1.in-addr.arpa.", RecordType::PTR, &["not ours"]);
}

#[test]
fn pods_are_their_address_and_the_rest_is_not_ours() {
    let zone = zone();
    check(&zone, "10-42-0-7.d.pod.cluster.local.", RecordType::A, &["10.42.0.7"]);
    check(&zone, "nonsense.d.pod.cluster.local.", RecordType::A, &["no such name"]);
    check(&zone, "example.com.", RecordType::A, &["not ours"]);
}

#[test]
fn what_is_deleted_is_forgotten() {
    let mut zone = zone();
    zone.slice_changed(&Change { old: Some(slice()), new: None });
    check(&zone, "db.d.svc.cluster.local.", RecordType::A, &["no such name"]);
    check(&zone, "7.0.42.10.in-addr.arpa.", RecordType::PTR, &["not ours"]);
}

#[test]
fn an_endpoint_that_moves_to_another_slice_keeps_its_name() {
    let mut zone = zone();
    let mut other = slice();
    Arc::make_mut(&mut other).metadata.name = Some("db-2".into());
    zone.slice_changed(&Change { old: None, new: Some(other) });
    zone.slice_changed(&Change { old: Some(slice()), new: None });
    check(&zone, "7.0.42.10.in-addr.arpa.", RecordType::PTR, &["db-0.db.d.svc.cluster.local."]);
}

#[test]
fn the_zone_names_its_server_by_two_labels() {
    let zone = zone();
    let server = "ns.dns.cluster.local.";
    check(&zone, "cluster.local.", RecordType::NS, &[server]);
    check(&zone, server, RecordType::A, &["10.43.0.10"]);
    check(&zone, server, RecordType::AAAA, &[]);
    let Answer::Records { answers, additionals, soa } =
        zone.answer(&Name::from_str("cluster.local.").unwrap(), RecordType::NS)
    else {
        panic!("the zone is there");
    };
    assert_eq!((answers.len(), additionals.len()), (1, 1));
    assert_eq!(
        (additionals[0].name.to_string(), additionals[0].data.to_string()),
        (server.into(), "10.43.0.10".into())
    );
    let RData::SOA(soa) = soa.data else { panic!("no SOA: {soa}") };
    assert_eq!(soa.mname.num_labels(), 4, "{}", soa.mname);
    assert_eq!(soa.mname, Name::from_str(server).unwrap());
    check(&zone, "cluster.local.", RecordType::SOA, &[&RData::SOA(soa).to_string()]);
}

#[test]
fn a_namespace_that_does_not_exist_has_no_names() {
    let mut zone = zone();
    for name in ["none.svc.cluster.local.", "none.pod.cluster.local.", "10-42-0-7.none.pod.cluster.local."] {
        check(&zone, name, RecordType::A, &["no such name"]);
    }
    for name in ["svc.cluster.local.", "pod.cluster.local.", "d.svc.cluster.local.", "d.pod.cluster.local."] {
        check(&zone, name, RecordType::A, &[]);
    }
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "d"}})).unwrap();
    zone.namespace_changed(&Change { old: Some(Arc::new(namespace)), new: None });
    check(&zone, "d.svc.cluster.local.", RecordType::A, &["no such name"]);
}

#[test]
fn weights_are_shared_by_all_that_a_name_leads_to() {
    let mut zone = zone();
    let service = json!({"metadata": {"name": "three", "namespace": "d"}, "spec": {"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
        "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "b-udp", "port": 2, "protocol": "UDP"}]}});
    let service: Service = serde_json::from_value(service).unwrap();
    zone.service_changed(&Change { old: None, new: Some(Arc::new(service)) });
    let target = "three.d.svc.cluster.local.";
    let all = [format!("0 33 1 {target}"), format!("0 33 2 {target}")];
    check(&zone, target, RecordType::SRV, &[&all[0], &all[1]]);
    check(&zone, &format!("_a._tcp.{target}"), RecordType::SRV, &[&format!("0 100 1 {target}")]);
    check(&zone, &format!("_A._TCP.{target}"), RecordType::A, &["10.43.0.7"]);
    check(&zone, &format!("_a._udp.{target}"), RecordType::SRV, &["no such name"]);
}

#[test]
fn endpoints_have_names_below_any_service_of_theirs() {
    let mut zone = zone();
    let mut behind = slice();
    let metadata = &mut Arc::make_mut(&mut behind).metadata;
    metadata.name = Some("web-1".into());
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "web".to_owned())].into());
    zone.slice_changed(&Change { old: Some(slice()), new: None });
    zone.slice_changed(&Change { old: None, new: Some(behind) });
    check(&zone, "db-0.web.d.svc.cluster.local.", RecordType::A, &["10.42.0.7"]);
    check(&zone, "web.d.svc.cluster.local.", RecordType::A, &["10.43.0.9"]);
    check(&zone, "7.0.42.10.in-addr.arpa.", RecordType::PTR, &["db-0.web.d.svc.cluster.local."]);
}
