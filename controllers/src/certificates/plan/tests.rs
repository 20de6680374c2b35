use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequestCondition, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use super::*;

const CLIENT_AUTH: &[&str] = &["digital signature", "client auth"];
const SERVER_AUTH: &[&str] = &["digital signature", "server auth"];

fn request(name: &str, groups: &[DnType], group: &str, sans: &[&str]) -> Request {
    let mut params =
        CertificateParams::new(sans.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for type_ in groups {
        params.distinguished_name.push(type_.clone(), group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    Request::parse(pem.as_bytes()).unwrap()
}

fn of_node(name: &str, sans: &[&str]) -> Request {
    request(&format!("system:node:{name}"), &[DnType::OrganizationName], NODES, sans)
}

fn csr(user: &str, groups: &[&str], signer: &str, usages: &[&str]) -> CertificateSigningRequest {
    let strings = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect());
    let spec = CertificateSigningRequestSpec {
        username: Some(user.into()),
        groups: strings(groups),
        signer_name: signer.into(),
        usages: strings(usages),
        ..CertificateSigningRequestSpec::default()
    };
    CertificateSigningRequest { spec, ..CertificateSigningRequest::default() }
}

fn by_bootstrapper(usages: &[&str]) -> CertificateSigningRequest {
    csr("system:bootstrap:abcdef", &["system:bootstrappers"], KUBELET_CLIENT, usages)
}

fn subresources(csr: &CertificateSigningRequest, request: &Request) -> Vec<&'static str> {
    permissions(csr, request).iter().map(|p| p.subresource).collect()
}

#[test]
fn only_a_nodes_client_certificate_is_recognised() {
    let joining = by_bootstrapper(CLIENT_AUTH);
    assert_eq!(subresources(&joining, &of_node("a", &[])), ["nodeclient"]);
    let rsa = by_bootstrapper(&["digital signature", "key encipherment", "client auth"]);
    assert_eq!(subresources(&rsa, &of_node("a", &[])), ["nodeclient"]);
    let own = csr("system:node:a", &[NODES], KUBELET_CLIENT, CLIENT_AUTH);
    assert_eq!(subresources(&own, &of_node("a", &[])), ["selfnodeclient", "nodeclient"]);
    let organization = [DnType::OrganizationName];
    let masters = request("system:node:a", &organization, "system:masters", &[]);
    // The same type twice, once by its number.
    let two = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    for (what, other) in [
        ("an administrator", masters),
        ("two organizations", request("system:node:a", &two, NODES, &[])),
        ("no node", request("jane", &organization, NODES, &[])),
        ("a node without a name", request("system:node:", &organization, NODES, &[])),
        ("two names", request("system:node:a", &[DnType::CustomDnType(vec![2, 5, 4, 3])], NODES, &[])),
        ("a DNS name", of_node("a", &["a"])),
        ("an address", of_node("a", &["192.0.2.1"])),
    ] {
        assert!(permissions(&joining, &other).is_empty(), "{what}");
        assert!(signing_fault(&joining, &other).is_some(), "{what} is not signed, approved or not");
    }
    for usages in [&["client auth"][..], SERVER_AUTH, &["digital signature", "client auth", "server auth"]] {
        assert!(permissions(&by_bootstrapper(usages), &of_node("a", &[])).is_empty(), "{usages:?}");
    }
    let other_signer = csr("system:bootstrap:abcdef", &[], CLIENT, CLIENT_AUTH);
    assert!(permissions(&other_signer, &of_node("a", &[])).is_empty());
}

#[test]
fn a_name_is_claimed_by_who_does_not_bear_it_yet() {
    let request = of_node("a", &[]);
    assert_eq!(claimed_node(&by_bootstrapper(CLIENT_AUTH), &request), Some("a"));
    assert_eq!(claimed_node(&csr("system:node:a", &[NODES], KUBELET_CLIENT, CLIENT_AUTH), &request), None);
}

fn node(name: &str, addresses: &[&str]) -> Node {
    let addresses = addresses
        .iter()
        .map(|a| NodeAddress { type_: "InternalIP".into(), address: (*a).to_owned() })
        .collect();
    let status = NodeStatus { addresses: Some(addresses), ..NodeStatus::default() };
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    Node { metadata, status: Some(status), ..Node::default() }
}

#[test]
fn a_node_serves_as_itself_and_as_nobody_else() {
    let mut a = node("a", &["192.0.2.1", "192.0.2.9", "10.96.0.10", "10.244.3.7"]);
    let mut b = node("b", &["192.0.2.2", "192.0.2.9"]);
    for (node, external) in [(&mut a, &["192.0.2.30"][..]), (&mut b, &["192.0.2.30", "192.0.2.1"])] {
        let addresses = node.status.as_mut().unwrap().addresses.as_mut().unwrap();
        addresses.extend(
            external.iter().map(|a| NodeAddress { type_: "ExternalIP".into(), address: (*a).to_owned() }),
        );
    }
    let (reserved_names, reserved_ips) = (["api".to_owned()], ["192.0.2.100".parse().unwrap()]);
    let nodes = [&a, &b];
    let ranges = ["10.244.0.0/16", "10.96.0.0/16"].map(|range| Cidr::parse(range).unwrap());
    let cluster = Cluster {
        nodes: &nodes,
        reserved_names: &reserved_names,
        reserved_ips: &reserved_ips,
        reserved_ranges: &ranges,
    };
    let ask = |by: &str, of: &str, sans: &[&str]| {
        let csr = csr(&format!("system:node:{by}"), &[NODES], KUBELET_SERVING, SERVER_AUTH);
        serving(&csr, &of_node(of, sans), &cluster)
    };
    ask("a", "a", &["a", "192.0.2.1"]).unwrap();
    ask("a", "a", &["192.0.2.1"]).unwrap();
    ask("new", "new", &["new"]).unwrap();
    for (by, of, sans, why) in [
        ("b", "a", &["a"][..], "a node asks for its own serving certificate only"),
        ("a", "a", &["a", "b"], "DNS name \"b\" is not the node's name"),
        (
            "a",
            "a",
            &["a", "kubernetes.default.svc"],
            "DNS name \"kubernetes.default.svc\" is not the node's name",
        ),
        ("a", "a", &["a", "a"], "a subjectAltName is given twice"),
        ("a", "a", &["192.0.2.1", "192.0.2.1"], "a subjectAltName is given twice"),
        ("a", "a", &["192.0.2.2"], "address 192.0.2.2 is not in the status of node \"a\""),
        ("a", "a", &["192.0.2.9"], "address 192.0.2.9 is also in the status of node \"b\""),
        ("b", "b", &["192.0.2.1"], "address 192.0.2.1 is also in the status of node \"a\""),
        ("a", "a", &["192.0.2.30"], "address 192.0.2.30 is also in the status of node \"b\""),
        ("a", "a", &["10.96.0.10"], "address 10.96.0.10 is not for nodes"),
        ("a", "a", &["::ffff:10.96.0.10"], "address 10.96.0.10 is not for nodes"),
        ("a", "a", &["::ffff:127.0.0.1"], "address 127.0.0.1 is not for nodes"),
        ("b", "b", &["::ffff:192.0.2.1"], "address 192.0.2.1 is also in the status of node \"a\""),
        ("a", "a", &["10.244.3.7"], "address 10.244.3.7 is not for nodes"),
        ("a", "a", &["192.0.2.100"], "address 192.0.2.100 is not for nodes"),
        ("a", "a", &["127.0.0.1"], "address 127.0.0.1 is not for nodes"),
        ("new", "new", &["new", "192.0.2.50"], "address 192.0.2.50 is not in the status of node \"new\""),
        ("api", "api", &["api"], "DNS name \"api\" is not for nodes"),
        (
            "kubernetes.default.svc",
            "kubernetes.default.svc",
            &["kubernetes.default.svc"],
            "DNS name \"kubernetes.default.svc\" is not for nodes",
        ),
        ("a", "a", &[], "DNS or IP subjectAltName is required"),
    ] {
        assert_eq!(ask(by, of, sans).unwrap_err(), why);
    }
    let anybody = csr("system:node:a", &["system:bootstrappers"], KUBELET_SERVING, SERVER_AUTH);
    serving(&anybody, &of_node("a", &["a"]), &cluster).unwrap_err();
}

#[test]
fn a_users_certificate_is_for_clients_and_of_one_name() {
    let organization = [DnType::OrganizationName];
    let jane = request("jane", &organization, "dev", &[]);
    let fault =
        |usages: &[&str], request: &Request| signing_fault(&csr("root", &[], CLIENT, usages), request);
    assert_eq!(fault(&["client auth"], &jane), None);
    assert_eq!(fault(&["server auth"], &jane).unwrap(), "invalid usage for client certificate: server auth");
    assert_eq!(
        fault(&["digital signature"], &jane).unwrap(),
        "missing required usage for client certificate: client auth"
    );
}

#[test]
fn a_certificate_lives_as_long_as_was_asked_within_a_year() {
    let with = |seconds: Option<i32>| {
        let mut csr = by_bootstrapper(CLIENT_AUTH);
        csr.spec.expiration_seconds = seconds;
        life(&csr).as_secs()
    };
    assert_eq!(with(None), 365 * 86_400);
    assert_eq!(with(Some(3600)), 3600);
    assert_eq!(with(Some(1)), 600);
    assert_eq!(with(Some(i32::MAX)), 365 * 86_400);
}

#[test]
fn requests_are_kept_as_long_as_upstream_keeps_them() {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let with = |type_: Option<&str>, certificate: Option<&str>| {
        let mut csr = by_bootstrapper(CLIENT_AUTH);
        csr.metadata.creation_timestamp = Some(Time(start));
        let conditions = type_.map(|type_| {
            vec![CertificateSigningRequestCondition {
                type_: type_.into(),
                status: "True".into(),
                last_update_time: Some(Time(start)),
                ..CertificateSigningRequestCondition::default()
            }]
        });
        let certificate = certificate.map(|c| ByteString(c.as_bytes().to_vec()));
        csr.status = Some(CertificateSigningRequestStatus { conditions, certificate });
        due(&csr).map(|due| due.duration_since(start).as_hours())
    };
    assert_eq!(with(None, None), Some(24));
    assert_eq!(with(Some("Denied"), None), Some(1));
    assert_eq!(with(Some("Failed"), None), Some(1));
    assert_eq!(with(Some("Approved"), None), Some(24));
    assert_eq!(with(Some("Approved"), Some("x")), Some(1));
    assert_eq!(with(Some("Other"), None), None);
}
