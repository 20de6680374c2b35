//! The pod network and the service proxy against the kernel, in a network namespace that stands for the node.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::proxy::script::Elements;
use crate::proxy::{self, Node, ProxyConfig, plan, script};
use crate::{HostPort, PodNetwork, PodNetworkConfig, conntrack, netns, nft};

mod flushed;
mod policy;

/// Namespaces that are removed when the test ends, however it ends.
struct World {
    directory: tempfile::TempDir,
    namespaces: Vec<PathBuf>,
}

impl World {
    fn new() -> World {
        World { directory: tempfile::tempdir().unwrap(), namespaces: Vec::new() }
    }

    fn namespace(&mut self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        netns::create(&path).unwrap();
        self.namespaces.push(path.clone());
        path
    }

    fn config(&self) -> PodNetworkConfig {
        PodNetworkConfig {
            bridge: "skiff0".into(),
            pod_cidr: "10.42.0.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            mtu: 1500,
            state_directory: self.directory.path().join("ipam"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for path in &self.namespaces {
            let _ = netns::remove(path);
        }
    }
}

/// Runs `story` on a thread and a runtime inside the node's namespace.
fn on_node<F: Future<Output = ()>>(node: &Path, story: impl FnOnce() -> F + Send + 'static) {
    netns::within(node, || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
    })
    .unwrap();
}

/// Listens in a pod and answers every connection with the pod's name.
fn serve(pod: &Path, port: u16, name: &'static str) {
    netns::within(pod, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut s| s.write_all(name.as_bytes()));
            }
        });
    })
    .unwrap();
}

/// What answers at an address, asked from inside a namespace.
fn ask(from: &Path, address: SocketAddr) -> std::io::Result<String> {
    netns::within(from, move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .unwrap()
}

fn proxied() -> Node {
    Node::new(ProxyConfig {
        node_name: "n1".into(),
        node_ips: Vec::new(),
        cluster_cidr: "10.42.0.0/16".into(),
        pod_cidr: "10.42.0.0/24".into(),
    })
}

/// What a restarted proxy does: it writes everything anew, around what it finds.
async fn write_whole(plan: &plan::Plan) -> proxy::Applied {
    proxy::apply(&proxied().config, None, plan, 0).await.unwrap()
}

async fn change(before: &plan::Plan, now: &plan::Plan) {
    let script = script::difference(&Elements::of(before), &Elements::of(now));
    nft::apply(&script).await.unwrap();
}

fn plan_for(spec: serde_json::Value, endpoints: &[Ipv4Addr]) -> plan::Plan {
    plan_with(spec, &[], "TCP", endpoints.iter().map(|ip| json!({"addresses": [ip]})).collect())
}

/// A Service at load balancers' addresses, and its endpoints as a slice holds them.
fn plan_with(
    spec: serde_json::Value,
    balancers: &[&str],
    protocol: &str,
    endpoints: Vec<serde_json::Value>,
) -> plan::Plan {
    let ingress: Vec<_> = balancers.iter().map(|ip| json!({"ip": ip})).collect();
    let service = json!({
        "metadata": {"name": "s", "namespace": "d"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let slice = json!({
        "metadata": {"name": "s-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": protocol}], "endpoints": endpoints,
    });
    let service = Arc::new(serde_json::from_value(service).unwrap());
    let slice = Arc::new(serde_json::from_value(slice).unwrap());
    plan::plan(&proxied(), &[service], &[slice])
}

fn run(namespace: &Path, command: &'static str) {
    netns::within(namespace, move || {
        let mut words = command.split(' ');
        let status = std::process::Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{command}");
    })
    .unwrap();
}

/// As [`ask`], from one of the namespace's addresses; `None` if nothing answers.
fn ask_as(from: &Path, source: Ipv4Addr, address: &str) -> Option<String> {
    use tokio::io::AsyncReadExt as _;
    let address: SocketAddr = address.parse().unwrap();
    netns::within(from, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((source, 0).into()).unwrap();
            let connected = tokio::time::timeout(Duration::from_secs(1), socket.connect(address)).await;
            let mut answer = String::new();
            connected.ok()?.ok()?.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        })
    })
    .unwrap()
}

#[test]
fn a_service_leads_pods_and_the_node_to_its_endpoints_and_back() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("a"), world.namespace("b")];
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config.clone()).await.unwrap();
        let mut ips = Vec::new();
        for (pod, name) in pods.iter().zip(["a", "b"]) {
            ips.push(network.attach(name, pod, &[]).await.unwrap());
        }
        assert_eq!(
            network.attach("a", &pods[0], &[]).await.unwrap(),
            ips[0],
            "attaching again changes nothing"
        );
        serve(&pods[0], 8080, "a");
        serve(&pods[1], 8080, "b");
        let spec = || json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]});
        let both = plan_for(spec(), &ips);
        write_whole(&both).await;
        let service: SocketAddr = "10.43.0.9:80".parse().unwrap();
        // Many times, so that each pod also meets itself, and both endpoints are met.
        let mut met = std::collections::BTreeSet::new();
        for _ in 0..30 {
            met.insert(ask(&pods[0], service).unwrap());
            met.insert(ask(&here, service).unwrap());
        }
        assert_eq!(met.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        let one = plan_for(spec(), &ips[1..]);
        change(&both, &one).await;
        for _ in 0..10 {
            assert_eq!(ask(&pods[0], service).unwrap(), "b");
        }
        let none = plan_for(spec(), &[]);
        change(&one, &none).await;
        let refused = ask(&pods[0], service).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
        let affine = plan_for(
            json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}),
            &ips,
        );
        change(&none, &affine).await;
        let first = ask(&pods[0], service).unwrap();
        for _ in 0..10 {
            assert_eq!(ask(&pods[0], service).unwrap(), first, "a client with affinity was moved");
        }
        change(&affine, &plan::Plan::default()).await;
        network.detach("a").await.unwrap();
        network.detach("a").await.unwrap();
        network.close().await.unwrap();
    });
}

#[test]
fn a_host_port_leads_to_its_pod_and_a_refused_pod_takes_nothing_away() {
    let mut world = World::new();
    let node = world.namespace("node");
    let (pod, client) = (world.namespace("pod"), world.namespace("client"));
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config.clone()).await.unwrap();
        let ports = [HostPort { protocol: "tcp", host_ip: None, host_port: 9090, container_port: 8080 }];
        network.attach("pod", &pod, &ports).await.unwrap();
        network.attach("client", &client, &[]).await.unwrap();
        serve(&pod, 8080, "pod");
        let node_port = SocketAddr::from((network.gateway(), 9090));
        for from in [&client, &here, &pod] {
            assert_eq!(ask(from, node_port).unwrap(), "pod");
        }
        network.attach("pod", &pod, &ports).await.unwrap();
        let taken = network.attach("late", &client, &ports).await.unwrap_err();
        assert_eq!(taken.to_string(), "host port tcp 9090 is taken by the pod sandbox pod");
        network.detach("late").await.unwrap();
        assert_eq!(ask(&client, node_port).unwrap(), "pod", "undoing the refused attach closed the port");

        // What a restart finds, even if someone has flushed the rules meanwhile.
        nft::apply("delete table ip skiff_pods\n").await.unwrap();
        let network = PodNetwork::open(config).await.unwrap();
        assert_eq!(ask(&client, node_port).unwrap(), "pod", "a restart closed the port");
        assert!(network.attach("late", &client, &ports).await.is_err(), "a restart forgot the owner");
        network.detach("pod").await.unwrap();
        let closed = ask(&client, node_port).unwrap_err();
        assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused, "{closed}");
    });
}

#[test]
fn a_port_of_one_address_of_the_node_is_open_there_and_not_on_others() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("loopback"), world.namespace("outside")];
    let client = world.namespace("client");
    let config = world.config();
    let here = node.clone();
    run(&node, "ip link set lo up");
    run(&node, "ip address add 198.51.100.7/32 dev lo");
    run(&node, "ip address add 198.51.100.8/32 dev lo");
    on_node(&node, move || async move {
        let network = PodNetwork::open(config.clone()).await.unwrap();
        let at = |ip: &str| HostPort {
            protocol: "tcp",
            host_ip: Some(ip.parse().unwrap()),
            host_port: 9090,
            container_port: 8080,
        };
        for (pod, (name, ip)) in pods.iter().zip([("loopback", "127.0.0.1"), ("outside", "198.51.100.7")]) {
            network.attach(name, pod, &[at(ip)]).await.unwrap();
            serve(pod, 8080, name);
        }
        network.attach("client", &client, &[]).await.unwrap();
        let open = |from: &Path, ip: &str| ask(from, format!("{ip}:9090").parse().unwrap()).ok();
        for _restart in 0..2 {
            assert_eq!(open(&here, "127.0.0.1").as_deref(), Some("loopback"));
            assert_eq!(open(&here, "198.51.100.7").as_deref(), Some("outside"));
            assert_eq!(open(&client, "198.51.100.7").as_deref(), Some("outside"));
            assert_eq!(open(&here, "198.51.100.8"), None);
            nft::apply("delete table ip skiff_pods\n").await.unwrap();
            PodNetwork::open(config.clone()).await.unwrap();
        }
        // What answers back to loopback lets no pod in there.
        let secret = TcpListener::bind("127.0.0.1:7070").unwrap();
        run(&client, "ip route add 127.0.0.1/32 via 10.42.0.1 dev eth0 table 7");
        run(&client, "ip rule add pref 0 to 127.0.0.1 lookup 7");
        run(&client, "ip rule del pref 0 lookup local");
        run(&client, "sysctl -qw net.ipv4.conf.eth0.route_localnet=1");
        let address = secret.local_addr().unwrap();
        let connected = netns::within(&client, move || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop)
        });
        assert!(connected.unwrap().is_err(), "a pod reaches the node's loopback");
    });
}

#[test]
fn pods_that_come_and_go_leave_the_others_their_gateway() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods: Vec<PathBuf> = (0..6).map(|at| world.namespace(&at.to_string())).collect();
    let config = world.config();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let hardware_address = || {
            let shown = std::process::Command::new("ip").args(["-brief", "link", "show", "skiff0"]).output();
            let text = String::from_utf8(shown.unwrap().stdout).unwrap();
            text.split_whitespace().nth(2).unwrap().to_owned()
        };
        let before = hardware_address();
        for (at, pod) in pods.iter().enumerate() {
            network.attach(&at.to_string(), pod, &[]).await.unwrap();
            assert_eq!(hardware_address(), before);
        }
        for at in 0..pods.len() {
            network.detach(&at.to_string()).await.unwrap();
            assert_eq!(hardware_address(), before);
        }
    });
}

#[test]
fn the_next_pod_with_an_address_is_reached_at_once() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("a"), world.namespace("b")];
    // Room for a single pod.
    let config = PodNetworkConfig { pod_cidr: "10.42.0.0/30".into(), ..world.config() };
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        for (pod, name) in pods.iter().zip(["a", "b"]) {
            let ip = network.attach(name, pod, &[]).await.unwrap();
            serve(pod, 8080, name);
            assert_eq!(ask_as(&here, network.gateway(), &format!("{ip}:8080")).as_deref(), Some(name));
            network.detach(name).await.unwrap();
        }
    });
}

#[test]
fn pods_that_come_and_go_at_once_have_their_own_host_ports_and_no_others() {
    let mut world = World::new();
    let node = world.namespace("node");
    let names = ["a", "b", "c", "d", "e", "f"];
    let pods: Vec<PathBuf> = names.iter().map(|name| world.namespace(name)).collect();
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let port = |at: usize| HostPort {
            protocol: "tcp",
            host_ip: None,
            host_port: 9000 + at as u16,
            container_port: 8080,
        };
        let attach = async |at: usize| network.attach(names[at], &pods[at], &[port(at)]).await.unwrap();
        let ips = futures::future::join_all((0..names.len()).map(attach)).await;
        assert_eq!(ips.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        for (pod, name) in pods.iter().zip(names) {
            serve(pod, 8080, name);
        }
        let answers = || {
            let at = |port| format!("{}:{port}", network.gateway());
            let ports = (0..names.len()).map(|n| at(9000 + n));
            ports.map(|address| ask_as(&here, network.gateway(), &address)).collect::<Vec<_>>()
        };
        assert_eq!(answers(), names.map(|name| Some(name.to_owned())));
        let detach = async |at: usize| network.detach(names[at]).await.unwrap();
        futures::future::join_all((0..4).map(detach)).await;
        assert_eq!(answers(), [None, None, None, None, Some("e".into()), Some("f".into())]);
        let map = std::process::Command::new("nft")
            .args(["list", "map", "ip", "skiff_pods", "host_ports"])
            .output();
        let map = String::from_utf8(map.unwrap().stdout).unwrap();
        assert_eq!(map.matches("tcp").count(), 2, "{map}");
    });
}

#[test]
fn an_address_of_the_cluster_that_is_nobody_s_is_unreachable_at_once() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pod = world.namespace("pod");
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        network.attach("pod", &pod, &[]).await.unwrap();
        for (from, address) in [(&here, "10.42.9.9:80"), (&pod, "10.42.9.9:80"), (&pod, "10.43.9.9:80")] {
            let error = ask(from, address.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{address}: {error}");
        }
    });
}

/// Gives a pod a second address that the node takes for one from outside the cluster.
fn bring_outsider(node: &Path, pod: &Path) -> Ipv4Addr {
    run(pod, "ip address add 198.51.100.7/32 dev lo");
    run(node, "ip route add 198.51.100.7/32 via 10.42.0.2 dev skiff0 onlink");
    Ipv4Addr::new(198, 51, 100, 7)
}

#[test]
fn source_ranges_keep_others_from_the_load_balancer_but_not_from_the_cluster_address() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("a"), world.namespace("b")];
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let inside = network.attach("a", &pods[0], &[]).await.unwrap();
        let server = network.attach("b", &pods[1], &[]).await.unwrap();
        let outside = bring_outsider(&here, &pods[0]);
        serve(&pods[1], 8080, "b");
        let guarded = |ranges: &[&str]| {
            let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": [{"port": 80}],
                              "loadBalancerSourceRanges": ranges});
            plan_with(spec, &["192.0.2.50"], "TCP", vec![json!({"addresses": [server]})])
        };
        let first = guarded(&["198.51.100.0/24", "198.51.100.7/32"]);
        write_whole(&first).await;
        assert_eq!(ask_as(&pods[0], outside, "192.0.2.50:80").as_deref(), Some("b"));
        assert_eq!(ask_as(&pods[0], inside, "192.0.2.50:80"), None, "a client outside the ranges came in");
        assert_eq!(ask_as(&pods[0], inside, "10.43.0.9:80").as_deref(), Some("b"));
        let second = guarded(&["10.42.0.0/16"]);
        change(&first, &second).await;
        assert_eq!(ask_as(&pods[0], inside, "192.0.2.50:80").as_deref(), Some("b"));
        assert_eq!(ask_as(&pods[0], outside, "192.0.2.50:80"), None, "a client outside the ranges came in");
        change(&second, &guarded(&[])).await;
        assert_eq!(ask_as(&pods[0], outside, "192.0.2.50:80").as_deref(), Some("b"));
    });
}

#[test]
fn a_local_policy_drops_those_outside_where_the_node_has_no_endpoint() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("a"), world.namespace("b")];
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let inside = network.attach("a", &pods[0], &[]).await.unwrap();
        let server = network.attach("b", &pods[1], &[]).await.unwrap();
        let outside = bring_outsider(&here, &pods[0]);
        serve(&pods[1], 8080, "b");
        let on = |node: &str| {
            let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": [{"port": 80}],
                              "externalTrafficPolicy": "Local"});
            plan_with(spec, &["192.0.2.50"], "TCP", vec![json!({"addresses": [server], "nodeName": node})])
        };
        let elsewhere = on("n2");
        write_whole(&elsewhere).await;
        run(&here, "ip route add 192.0.2.0/24 dev skiff0");
        assert_eq!(ask_as(&pods[0], outside, "192.0.2.50:80"), None);
        assert_eq!(ask_as(&pods[0], inside, "192.0.2.50:80").as_deref(), Some("b"));
        assert_eq!(ask_as(&here, network.gateway(), "192.0.2.50:80").as_deref(), Some("b"));
        change(&elsewhere, &on("n1")).await;
        assert_eq!(ask_as(&pods[0], outside, "192.0.2.50:80").as_deref(), Some("b"));
    });
}

#[test]
fn a_client_keeps_its_endpoint_while_others_come_and_go_and_the_proxy_restarts() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("a"), world.namespace("b"), world.namespace("c")];
    let config = world.config();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let mut ips = Vec::new();
        for (pod, name) in pods.iter().zip(["a", "b", "c"]) {
            ips.push(network.attach(name, pod, &[]).await.unwrap());
            serve(pod, 8080, name);
        }
        let service: SocketAddr = "10.43.0.9:80".parse().unwrap();
        let affine = |endpoints: &[Ipv4Addr]| {
            let spec =
                json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
            plan_for(spec, endpoints)
        };
        let one = affine(&ips[..1]);
        write_whole(&one).await;
        assert_eq!(ask(&pods[2], service).unwrap(), "a");
        let all = affine(&ips);
        change(&one, &all).await;
        let stays = |when: &str| {
            for _ in 0..10 {
                assert_eq!(ask(&pods[2], service).unwrap(), "a", "moved {when}");
            }
        };
        stays("when endpoints came");
        write_whole(&all).await;
        stays("when the proxy restarted");
        let two = affine(&ips[..2]);
        write_whole(&two).await;
        stays("when the proxy restarted after a change");
        change(&two, &affine(&ips[1..2])).await;
        assert_eq!(ask(&pods[2], service).unwrap(), "b", "kept at an endpoint that has gone");
    });
}

#[test]
fn a_udp_client_leaves_an_endpoint_that_has_gone() {
    let mut world = World::new();
    let node = world.namespace("node");
    let pods = [world.namespace("a"), world.namespace("b"), world.namespace("client")];
    let config = world.config();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let mut ips = Vec::new();
        for (pod, name) in pods.iter().zip(["a", "b", "client"]) {
            ips.push(network.attach(name, pod, &[]).await.unwrap());
        }
        for (pod, name) in pods.iter().zip(["a", "b"]) {
            let socket = netns::within(pod, || std::net::UdpSocket::bind("0.0.0.0:8080").unwrap()).unwrap();
            std::thread::spawn(move || {
                let mut question = [0; 16];
                while let Ok((_, client)) = socket.recv_from(&mut question) {
                    let _ = socket.send_to(name.as_bytes(), client);
                }
            });
        }
        let client = netns::within(&pods[2], || std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ask = || {
            client.send_to(b"?", "10.43.0.9:53").unwrap();
            let mut answer = [0; 16];
            let length = client.recv(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        let behind = |ip: Ipv4Addr| {
            let spec = json!({"clusterIP": "10.43.0.9", "ports": [{"port": 53, "protocol": "UDP"}]});
            plan_with(spec, &[], "UDP", vec![json!({"addresses": [ip]})])
        };
        let (first, second) = (behind(ips[0]), behind(ips[1]));
        write_whole(&first).await;
        assert_eq!(ask(), "a");
        change(&first, &second).await;
        assert_eq!(ask(), "a", "a tracked flow is the kernel's to move, or this test proves nothing");
        let udp = second.udp.clone();
        let n_flows = conntrack::forget_udp(move |flow| proxy::is_stale(&udp, flow)).await.unwrap();
        assert_eq!((n_flows, ask().as_str()), (1, "b"));
    });
}

#[test]
fn the_proxy_writes_its_rules_again_after_someone_has_changed_them() {
    let mut world = World::new();
    let node = world.namespace("node");
    on_node(&node, || async {
        let config = proxied().config;
        let spec = json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let plan = plan_for(spec, &["10.42.0.7".parse().unwrap(), "10.42.0.8".parse().unwrap()]);
        let standing = async || script::Found::parse(&nft::list(script::TABLE).await.unwrap()).unwrap();
        write_whole(&plan).await;
        let written = standing().await;
        let applied = write_whole(&plan).await;
        assert_eq!(standing().await, written);
        nft::apply("delete table ip skiff_proxy\n").await.unwrap();
        let empty = plan::Plan::default();
        assert!(proxy::apply(&config, Some(applied), &empty, 0).await.is_err());
        write_whole(&plan).await;
        assert_eq!(standing().await, written);
        // A table that ours cannot be fitted around.
        let strange =
            "delete table ip skiff_proxy\ntable ip skiff_proxy { set frontends { type ipv4_addr; } ; }\n";
        nft::apply(strange).await.unwrap();
        assert!(proxy::apply(&config, None, &plan, 0).await.is_err());
        assert!(proxy::apply(&config, None, &plan, 1).await.is_err());
        proxy::apply(&config, None, &plan, 2).await.unwrap();
        assert_eq!(standing().await, written);
    });
}

#[test]
fn chains_of_services_that_have_gone_are_deleted_after_a_rest() {
    let mut world = World::new();
    let node = world.namespace("node");
    on_node(&node, || async {
        let config = proxied().config;
        let spec = json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let plan = plan_for(spec, &["10.42.0.7".parse().unwrap()]);
        let standing = async || script::Found::parse(&nft::list(script::TABLE).await.unwrap()).unwrap();
        let applied = write_whole(&plan).await;
        let chains = standing().await.chains;
        let empty = plan::Plan::default();
        let mut gone = proxy::apply(&config, Some(applied), &empty, 0).await.unwrap();
        assert_eq!(gone.resting.keys().cloned().collect::<std::collections::BTreeSet<_>>(), chains);
        proxy::delete_rested(&mut gone.resting).await;
        assert_eq!(standing().await.chains, chains, "deleted at once");
        // One that is wanted again meanwhile works, and stays.
        let back = proxy::apply(&config, Some(gone), &plan, 0).await.unwrap();
        assert!(back.resting.is_empty());
        // A restart that finds them knows that they are to go.
        let mut gone = write_whole(&empty).await;
        gone.resting.values_mut().for_each(|at| *at -= proxy::CHAIN_REST);
        proxy::delete_rested(&mut gone.resting).await;
        assert_eq!(standing().await, script::Found::default());
        assert!(gone.resting.is_empty());
    });
}
