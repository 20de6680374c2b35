//! Network policies against the kernel: who reaches whom, from the first packet on.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};

use skiff_client::ObjectKey;

use super::*;
use crate::policy::rules::{Policy, Protocol};
use crate::policy::script;
use crate::policy::selector::Labels;
use crate::policy::state::{LocalFacts, NamedPort, PodFacts};
use crate::policy::{Kernel, LocalPods, PodIdentity, PodSource, PolicyConfig};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);

fn kernel(pod_cidr: &str) -> Kernel {
    let config = PolicyConfig { pod_cidr: pod_cidr.into(), cluster_dns: DNS, pods: PodSource::ForNodes };
    let mut kernel = Kernel::new(config);
    kernel.state.set_namespace("d", Some(&Labels::from([("name".to_owned(), "d".to_owned())])));
    kernel.state.set_namespace("e", Some(&Labels::from([("name".to_owned(), "e".to_owned())])));
    kernel.state.set_namespace("kube-system", None);
    kernel
}

/// A label `app`, and a port with a name.
fn facts(app: &str, address: Ipv4Addr) -> PodFacts {
    PodFacts {
        uid: app.to_owned(),
        labels: Arc::new([("app".to_owned(), app.to_owned())].into()),
        addresses: vec![address],
        ports: [NamedPort { name: "web".into(), protocol: Protocol::Tcp, number: 8080 }].into(),
    }
}

fn local(namespace: &str, app: &str) -> LocalFacts {
    LocalFacts {
        sandbox: app.to_owned(),
        pod: ObjectKey::new(namespace, app),
        uid: app.to_owned(),
        labels: Arc::new([("app".to_owned(), app.to_owned())].into()),
    }
}

/// Makes a pod of this node, judged before it has an interface.
async fn attach(
    kernel: &mut Kernel,
    network: &PodNetwork,
    pod: &Path,
    namespace: &str,
    app: &'static str,
) -> Ipv4Addr {
    let address = network.reserve(app).unwrap();
    kernel.state.set_local(address, Some(local(namespace, app)));
    kernel.state.set_pod(&ObjectKey::new(namespace, app), Some(facts(app, address)));
    kernel.apply().await.unwrap();
    assert_eq!(network.attach(app, pod, &[]).await.unwrap(), address);
    for port in [8080, 8081] {
        serve(pod, port, app);
    }
    address
}

async fn set(kernel: &mut Kernel, name: &str, spec: Option<serde_json::Value>) {
    let policy = spec.map(|spec| {
        let object = json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec});
        Policy::of(&serde_json::from_value(object).unwrap(), |why| panic!("{why}"))
    });
    kernel.state.set_policy(&ObjectKey::new("d", name), policy);
    kernel.apply().await.unwrap();
}

fn reaches(from: &Path, source: Ipv4Addr, to: Ipv4Addr, port: u16) -> bool {
    ask_as(from, source, &format!("{to}:{port}")).is_some()
}

#[test]
fn policies_say_who_reaches_a_pod_of_the_same_node_and_whom_it_reaches() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = ["server", "friend", "foe"].map(|name| world.namespace(name));
    let config = world.config();
    let here = node.clone();
    run(&node, "ip link set lo up");
    run(&node, "ip address add 10.43.0.10/32 dev lo");
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let mut kernel = kernel("10.42.0.0/24");
        let [server_at, friend_at, foe_at] = &pods;
        let server = attach(&mut kernel, &network, server_at, "d", "server").await;
        let friend = attach(&mut kernel, &network, friend_at, "d", "friend").await;
        let foe = attach(&mut kernel, &network, foe_at, "e", "foe").await;
        serve(&here, 53, "dns");
        let met = |port| (reaches(friend_at, friend, server, port), reaches(foe_at, foe, server, port));
        assert_eq!(met(8080), (true, true), "no policy selects it");

        // Nobody comes in but the node and itself; what was let in goes on.
        let (mut open, mut accepted) = talk(server_at, friend_at, (server, 8082).into());
        set(&mut kernel, "deny", Some(json!({"podSelector": {"matchLabels": {"app": "server"}}}))).await;
        assert_eq!(met(8080), (false, false));
        assert!(reaches(&here, network.gateway(), server, 8080), "the node is kept from its pod");
        assert!(reaches(server_at, server, server, 8080), "a pod is kept from itself");
        assert!(reaches(server_at, server, foe, 8080), "what it asks is answered");
        accepted.write_all(b"still").unwrap();
        let mut heard = [0; 5];
        open.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still", "what was let in before goes on");

        // By label, by namespace, by both; they add up.
        let select = json!({"matchLabels": {"app": "server"}});
        let from = |peers: serde_json::Value, ports: serde_json::Value| {
            Some(json!({"podSelector": select, "ingress": [{"from": peers, "ports": ports}]}))
        };
        let friends = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
        set(&mut kernel, "allow", from(friends.clone(), json!([]))).await;
        assert_eq!(met(8080), (true, false));
        let e = json!({"matchLabels": {"name": "e"}});
        set(&mut kernel, "more", from(json!([{"namespaceSelector": e}]), json!([]))).await;
        assert_eq!(met(8080), (true, true));
        let nobody = json!([{"namespaceSelector": e, "podSelector": {"matchLabels": {"app": "friend"}}}]);
        set(&mut kernel, "more", from(nobody, json!([]))).await;
        assert_eq!(met(8080), (true, false));
        set(&mut kernel, "more", None).await;

        // Ports: a number, a range, a name, another protocol's.
        for (ports, expected) in [
            (json!([{"port": 8080}]), [true, false]),
            (json!([{"port": 8000, "endPort": 8080}, {"port": 8079}]), [true, false]),
            (json!([{"port": "web"}]), [true, false]),
            (json!([{"port": 8080, "protocol": "UDP"}]), [false, false]),
            (json!([{"port": 8080, "protocol": "SCTP"}]), [false, false]),
            (json!([{"protocol": "TCP"}]), [true, true]),
        ] {
            set(&mut kernel, "allow", from(friends.clone(), ports.clone())).await;
            assert_eq!([met(8080).0, met(8081).0], expected, "{ports}");
        }

        // Ranges of addresses.
        let block = |except: Vec<String>| json!([{"ipBlock": {"cidr": "10.42.0.0/24", "except": except}}]);
        set(&mut kernel, "allow", from(block(vec![format!("{foe}/32")]), json!([]))).await;
        assert_eq!(met(8080), (true, false));
        set(&mut kernel, "allow", from(block(vec![]), json!([]))).await;
        assert_eq!(met(8080), (true, true));
        set(&mut kernel, "allow", None).await;
        set(&mut kernel, "deny", None).await;
        assert_eq!(met(8080), (true, true));

        // What it asks: nobody, some, by their names of ports; the DNS counts as what it is elsewhere.
        let dns = |from: &Path, source| reaches(from, source, DNS, 53);
        let to = |rules: serde_json::Value| {
            let friend = json!({"matchLabels": {"app": "friend"}});
            Some(json!({"podSelector": friend, "policyTypes": ["Egress"], "egress": rules}))
        };
        assert!(dns(friend_at, friend));
        set(&mut kernel, "out", to(json!([]))).await;
        assert!(!reaches(friend_at, friend, server, 8080) && !dns(friend_at, friend));
        assert!(reaches(friend_at, friend, network.gateway(), 53), "its node is kept from it");
        assert!(reaches(server_at, server, friend, 8080), "it may be asked");
        let servers = json!([{"podSelector": {"matchLabels": {"app": "server"}}}]);
        set(&mut kernel, "out", to(json!([{"to": servers, "ports": [{"port": "web"}]}]))).await;
        assert!(reaches(friend_at, friend, server, 8080) && !reaches(friend_at, friend, server, 8081));
        assert!(!reaches(friend_at, friend, foe, 8080) && !dns(friend_at, friend));
        let kube_dns =
            json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]);
        set(&mut kernel, "out", to(json!([{"to": kube_dns, "ports": [{"port": 53}]}]))).await;
        assert!(dns(friend_at, friend) && !reaches(friend_at, friend, server, 8080));

        // All gone, nothing is left but what is always there.
        set(&mut kernel, "out", None).await;
        for address in [server, friend, foe] {
            kernel.state.set_local(address, None);
        }
        kernel.apply().await.unwrap();
        assert!(!reaches(friend_at, friend, server, 8080), "an address that is nobody's is open");
        kernel.rest();
        kernel.apply().await.unwrap();
        let left = nft::Listed::parse(&nft::list(script::TABLE).await.unwrap()).unwrap();
        assert_eq!(left.sets.into_iter().collect::<Vec<_>>(), ["egress", "ingress", "itself"]);
        assert_eq!(left.n_rules.into_keys().collect::<Vec<_>>(), ["forward", "from_pod", "input", "to_pod"]);
    });
}

/// A connection from one pod to another, and its other end.
fn talk(server: &Path, client: &Path, to: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = netns::within(server, move || TcpListener::bind(to).unwrap()).unwrap();
    let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
    let open = netns::within(client, connect).unwrap();
    open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (open, listener.accept().unwrap().0)
}

/// Sends from a pod as soon as it can, until told to end; answers how often it could.
fn send_from(pod: &Path, to: SocketAddr, ended: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    let pod = pod.to_owned();
    std::thread::spawn(move || {
        netns::within(&pod, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let mut n_sent = 0;
            while !ended.load(Ordering::Relaxed) {
                match socket.send_to(b"first", to) {
                    Ok(_) => n_sent += 1,
                    // It has no address yet.
                    Err(_) => std::thread::yield_now(),
                }
            }
            n_sent
        })
        .unwrap()
    })
}

#[test]
fn no_packet_of_a_pod_goes_by_before_its_rules_stand() {
    let mut world = World::new();
    let node = world.namespace("node");
    let (server_at, open_at, closed_at) =
        (world.namespace("server"), world.namespace("open"), world.namespace("closed"));
    let config = world.config();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let mut kernel = kernel("10.42.0.0/24");
        let server = attach(&mut kernel, &network, &server_at, "d", "server").await;
        let closed = json!({"podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Egress"]});
        set(&mut kernel, "closed", Some(closed)).await;
        let heard = netns::within(&server_at, || UdpSocket::bind("0.0.0.0:9000").unwrap()).unwrap();
        heard.set_nonblocking(true).unwrap();
        let policies = Arc::new(LocalPods::default());
        for (app, pod, is_heard) in [("closed", &closed_at, false), ("open", &open_at, true)] {
            let identity = PodIdentity {
                namespace: "d".into(),
                name: app.into(),
                uid: app.into(),
                labels: [("app".to_owned(), app.to_owned())].into(),
            };
            let ended = Arc::new(AtomicBool::new(false));
            let sending = send_from(pod, (server, 9000).into(), ended.clone());
            let attached = network.attach_judged(&policies, identity, app, pod, &[]);
            let judged = async {
                policies.changed().await;
                // Nothing has it yet: whoever would be let through by a pod that is not judged, has no interface.
                assert!(run_in(pod, "ip -brief link").lines().all(|link| link.starts_with("lo")));
                policies.judge(&mut kernel).await;
            };
            let (attached, ()) = tokio::join!(attached, judged);
            attached.unwrap();
            // Some more, so that those before have come.
            tokio::time::sleep(Duration::from_millis(100)).await;
            ended.store(true, Ordering::Relaxed);
            assert!(sending.join().unwrap() > 0, "{app} sent nothing: this proves nothing");
            assert_eq!(heard.recv_from(&mut [0; 16]).is_ok(), is_heard, "{app}");
        }
    });
}

fn run_in(namespace: &Path, command: &'static str) -> String {
    netns::within(namespace, move || {
        let mut words = command.split(' ');
        let output = std::process::Command::new(words.next().unwrap()).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    })
    .unwrap()
}

#[test]
fn policies_are_kept_on_the_node_of_either_pod() {
    let mut world = World::new();
    let nodes = [world.namespace("node-a"), world.namespace("node-b")];
    let pods = ["server", "friend", "foe"].map(|name| world.namespace(name));
    let (first, second) = (world.config(), world.config());
    let second = PodNetworkConfig {
        pod_cidr: "10.42.1.0/24".into(),
        state_directory: world.directory.path().join("ipam-b"),
        ..second
    };
    let peer = nodes[1].clone();
    netns::within(&nodes[0], move || {
        let netns = peer.to_str().unwrap();
        for arguments in [
            vec!["link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", netns],
            vec!["address", "add", "192.0.2.1/24", "dev", "lan"],
            vec!["link", "set", "lan", "up"],
            vec!["route", "add", "10.42.1.0/24", "via", "192.0.2.2"],
        ] {
            let done = std::process::Command::new("ip").args(&arguments).status().unwrap();
            assert!(done.success(), "{arguments:?}");
        }
    })
    .unwrap();
    run(&nodes[1], "ip address add 192.0.2.2/24 dev lan");
    run(&nodes[1], "ip link set lan up");
    run(&nodes[1], "ip route add 10.42.0.0/24 via 192.0.2.1");
    let [server_at, friend_at, foe_at] = pods;
    let (server, friend, foe) =
        (Ipv4Addr::new(10, 42, 1, 2), Ipv4Addr::new(10, 42, 0, 2), Ipv4Addr::new(10, 42, 0, 3));
    let all = [("server", server), ("friend", friend), ("foe", foe)];
    let know = move |kernel: &mut Kernel| {
        for (app, address) in all {
            kernel.state.set_pod(&ObjectKey::new("d", app), Some(facts(app, address)));
        }
    };
    let in_of = json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]});
    let there = server_at.clone();
    on_node(&nodes[1], move || async move {
        let network = PodNetwork::open(second).await.unwrap();
        let mut kernel = kernel("10.42.1.0/24");
        know(&mut kernel);
        set(&mut kernel, "in", Some(in_of)).await;
        assert_eq!(attach(&mut kernel, &network, &there, "d", "server").await, server);
    });
    on_node(&nodes[0], move || async move {
        let network = PodNetwork::open(first).await.unwrap();
        let mut kernel = kernel("10.42.0.0/24");
        know(&mut kernel);
        assert_eq!(attach(&mut kernel, &network, &friend_at, "d", "friend").await, friend);
        assert_eq!(attach(&mut kernel, &network, &foe_at, "d", "foe").await, foe);
        let met = || (reaches(&friend_at, friend, server, 8080), reaches(&foe_at, foe, server, 8080));
        assert_eq!(met(), (true, false));
        assert!(reaches(&server_at, server, foe, 8080), "answers from the other node are let in");
        let out =
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 8081}]}]});
        set(&mut kernel, "out", Some(out)).await;
        assert_eq!(met(), (false, false), "its own node lets it ask another port only");
        assert!(reaches(&friend_at, friend, server, 8081));
    });
}

#[test]
fn rules_of_policies_that_others_have_flushed_are_noticed_and_written_again() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = ["server", "foe"].map(|name| world.namespace(name));
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let mut kernel = kernel("10.42.0.0/24");
        let server = attach(&mut kernel, &network, &pods[0], "d", "server").await;
        let foe = attach(&mut kernel, &network, &pods[1], "d", "foe").await;
        let deny = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "x"}}}]}]});
        set(&mut kernel, "deny", Some(deny)).await;
        assert!(kernel.stands().await, "what was just written");
        run(&here, "nft add table ip somebody_elses");
        assert!(kernel.stands().await, "somebody else's");
        for change in [
            "nft flush chain ip skiff_policy forward",
            "nft flush table ip skiff_policy",
            "nft delete table ip skiff_policy",
            "nft flush ruleset",
        ] {
            run(&here, change);
            assert!(!kernel.stands().await, "{change}");
            kernel.apply().await.unwrap();
            assert!(kernel.stands().await, "{change}");
            assert!(!reaches(&pods[1], foe, server, 8080), "{change}");
        }
        // A change that finds no table is refused, and everything written at the next try.
        run(&here, "nft delete table ip skiff_policy");
        kernel.state.set_local(foe, None);
        kernel.apply().await.unwrap_err();
        kernel.apply().await.unwrap();
        assert!(kernel.stands().await);
    });
}

#[test]
fn pods_reach_each_other_by_the_node_s_routing_only() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = ["server", "foe"].map(|name| world.namespace(name));
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let switch = |to: &'static str| {
            // Only there where the machine has the module.
            let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            netns::within(&here, move || std::fs::write(path, to)).unwrap().is_ok()
        };
        switch("0");
        let network = PodNetwork::open(config).await.unwrap();
        let mut kernel = kernel("10.42.0.0/24");
        let server = attach(&mut kernel, &network, &pods[0], "d", "server").await;
        let foe = attach(&mut kernel, &network, &pods[1], "d", "foe").await;
        let service = plan_for(json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}), &[server]);
        write_whole(&service).await;
        let behind_service = || reaches(&pods[1], foe, Ipv4Addr::new(10, 43, 0, 9), 80);
        assert!(behind_service() && reaches(&pods[1], foe, server, 8080));
        if switch("1") {
            assert!(!behind_service(), "translated on the bridge, and stopped there: or this proves nothing");
            network.mend().await.unwrap();
            assert!(behind_service(), "what is translated on the bridge is let through once that was seen");
            switch("0");
            network.mend().await.unwrap();
        }
        // A pod that may change its routes asks the other one by itself.
        run(&pods[1], "ip route add 10.42.0.2/32 dev eth0");
        assert!(!reaches(&pods[1], foe, server, 8080), "the bridge leads past the node's rules");
    });
}
