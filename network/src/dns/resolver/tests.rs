use std::net::Ipv4Addr;
use std::str::FromStr as _;

use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use skiff_client::Change;
use tokio::net::TcpListener;

use super::*;

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", Ipv4Addr::new(10, 43, 0, 10).into());
    let external = |name: &str, target: &str| json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"type": "ExternalName", "externalName": target}});
    let mut services = vec![
        json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {"clusterIP": "10.43.0.9"}}),
        json!({"metadata": {"name": "many", "namespace": "d"}, "spec": {"clusterIP": "None"}}),
        external("inside", "web.d.svc.cluster.local"),
        external("nowhere", "none.d.svc.cluster.local"),
        external("outside", "example.com"),
        external("twice", "outside.d.svc.cluster.local."),
        external("round", "about.d.svc.cluster.local"),
        external("about", "ROUND.d.svc.cluster.local"),
    ];
    for n in 0..10 {
        services.push(external(&format!("long-{n}"), &format!("long-{}.d.svc.cluster.local", n + 1)));
    }
    services.push(external("long-10", "web.d.svc.cluster.local"));
    for service in services {
        let service: Service = serde_json::from_value(service).unwrap();
        zone.service_changed(&Change { old: None, new: Some(Arc::new(service)) });
    }
    let endpoints: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.42.0.{n}")]})).collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "many-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints,
    }))
    .unwrap();
    zone.slice_changed(&Change { old: None, new: Some(Arc::new(slice)) });
    zone
}

fn resolver(upstreams: &[SocketAddr]) -> Resolver {
    let (_, upstreams) = watch::channel(upstreams.to_vec());
    Resolver { zone: Arc::new(RwLock::new(zone())), upstreams }
}

#[tokio::test]
async fn a_resolver_that_the_host_is_given_later_is_asked() {
    let (known, upstreams) = watch::channel(Vec::new());
    let resolver = Resolver { zone: Arc::new(RwLock::new(zone())), upstreams };
    let code = async || ask(&resolver, "example.com.", RecordType::A).await.metadata.response_code;
    assert_eq!(code().await, ResponseCode::ServFail);
    known.send_replace(vec![outside(1).await]);
    assert_eq!(code().await, ResponseCode::NoError);
}

/// A port that is free for both: that one of the two got it does not mean that the other can have it.
async fn one_port() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("a hundred ports are free for UDP and none of them for TCP");
}

/// A resolver outside that answers every A question with so many addresses, and says so over UDP if they are too
/// many for it.
async fn outside(n_addresses: u8) -> SocketAddr {
    let (udp, tcp) = one_port().await;
    let address = udp.local_addr().unwrap();
    let reply = move |packet: &[u8]| {
        let question = Message::from_vec(packet).unwrap();
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        reply.add_queries(question.queries.iter().cloned());
        if question.queries[0].query_type() == RecordType::A {
            for n in 0..n_addresses {
                let ip = RData::A(A(Ipv4Addr::new(198, 51, 100, n)));
                reply.add_answer(Record::from_rdata(question.queries[0].name().clone(), 60, ip));
            }
        }
        reply
    };
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            let mut reply = reply(&buffer[..length]);
            if n_addresses > 50 {
                reply = reply.truncate();
            }
            let _ = udp.send_to(&reply.to_vec().unwrap(), client).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut question).await.unwrap();
            let reply = reply(&question).to_vec().unwrap();
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    address
}

fn question(name: &str, type_: RecordType, payload: Option<u16>) -> Message {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_str(name).unwrap(), type_));
    question.edns = payload.map(|bytes| {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        edns
    });
    question
}

async fn ask(resolver: &Resolver, name: &str, type_: RecordType) -> Message {
    let packet = question(name, type_, None).to_vec().unwrap();
    Message::from_vec(&resolver.answer(&packet, Transport::Udp).await.unwrap()).unwrap()
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[tokio::test]
async fn an_external_name_is_followed_to_its_addresses() {
    let resolver = resolver(&[outside(1).await]);
    for (name, wanted) in [
        ("inside", &["web.d.svc.cluster.local.", "10.43.0.9"][..]),
        ("outside", &["example.com.", "198.51.100.0"]),
        ("twice", &["outside.d.svc.cluster.local.", "example.com.", "198.51.100.0"]),
        ("nowhere", &["none.d.svc.cluster.local."]),
        (
            "long-3",
            &[
                "long-4.d.svc.cluster.local.",
                "long-5.d.svc.cluster.local.",
                "long-6.d.svc.cluster.local.",
                "long-7.d.svc.cluster.local.",
                "long-8.d.svc.cluster.local.",
                "long-9.d.svc.cluster.local.",
                "long-10.d.svc.cluster.local.",
                "web.d.svc.cluster.local.",
                "10.43.0.9",
            ],
        ),
    ] {
        let reply = ask(&resolver, &format!("{name}.d.svc.cluster.local."), RecordType::A).await;
        assert_eq!(data(&reply), wanted, "{name}");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    }
    let alias = ask(&resolver, "outside.d.svc.cluster.local.", RecordType::CNAME).await;
    assert_eq!(data(&alias), ["example.com."]);
    let no_such_type = ask(&resolver, "outside.d.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!(data(&no_such_type), ["example.com."]);
}

#[tokio::test]
async fn aliases_that_never_end_or_cannot_be_followed_are_a_failure() {
    let with_nobody_outside = resolver(&[]);
    for name in ["round", "long-1", "outside"] {
        let reply = ask(&with_nobody_outside, &format!("{name}.d.svc.cluster.local."), RecordType::A).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{name}");
        assert!(reply.answers.len() <= MAX_ALIASES + 1, "{name}");
    }
}

#[tokio::test]
async fn a_long_answer_from_outside_is_fetched_over_tcp() {
    let resolver = resolver(&[outside(100).await]);
    let packet = question("outside.d.svc.cluster.local.", RecordType::A, None).to_vec().unwrap();
    let reply = resolver.answer(&packet, Transport::Tcp).await.unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 101);
}

#[tokio::test]
async fn udp_answers_are_no_larger_than_the_client_takes() {
    let resolver = resolver(&[outside(50).await]);
    for name in ["many.d.svc.cluster.local.", "example.com."] {
        for (payload, wanted) in [(None, 512), (Some(100), 512), (Some(800), 800), (Some(4096), 1232)] {
            let packet = question(name, RecordType::A, payload).to_vec().unwrap();
            let bytes = resolver.answer(&packet, Transport::Udp).await.unwrap();
            let reply = Message::from_vec(&bytes).unwrap();
            let about = format!("{name} {payload:?}: {} bytes", bytes.len());
            assert!(bytes.len() <= wanted, "{about}");
            let complete = if name == "example.com." { 50 } else { 200 };
            let cut = reply.answers.len() < complete;
            assert_eq!(reply.metadata.truncation, cut, "{about}");
            assert!(!cut || bytes.len() + 20 > wanted, "more would have fitted: {about}");
        }
    }
    let packet = question("many.d.svc.cluster.local.", RecordType::A, Some(4096)).to_vec().unwrap();
    let reply = Message::from_vec(&resolver.answer(&packet, Transport::Udp).await.unwrap()).unwrap();
    assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    let reply = Message::from_vec(&resolver.answer(&packet, Transport::Tcp).await.unwrap()).unwrap();
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
    let packet = question("web.d.svc.cluster.local.", RecordType::A, None).to_vec().unwrap();
    let reply = Message::from_vec(&resolver.answer(&packet, Transport::Udp).await.unwrap()).unwrap();
    assert_eq!(reply.edns, None, "a client without EDNS must not get any");
}

#[tokio::test]
async fn what_is_no_question_is_refused_or_ignored() {
    let resolver = resolver(&[]);
    let code = async |packet: &[u8]| {
        let reply = resolver.answer(packet, Transport::Udp).await?;
        Some(Message::from_vec(&reply).unwrap().metadata.response_code)
    };
    assert_eq!(code(b"short").await, None);
    let mut question = question("web.d.svc.cluster.local.", RecordType::A, Some(1232));
    let whole = question.to_vec().unwrap();
    assert_eq!(code(&whole[..20]).await, Some(ResponseCode::FormErr));
    let mut answer = whole.clone();
    answer[2] |= 0x80;
    assert_eq!(code(&answer).await, None, "an answer to an answer goes on for ever");
    question.edns.as_mut().unwrap().set_version(1);
    // Both are 16.
    assert_eq!(code(&question.to_vec().unwrap()).await, Some(ResponseCode::BADSIG));
    question.edns = None;
    question.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&question.to_vec().unwrap()).await, Some(ResponseCode::Refused));
}
