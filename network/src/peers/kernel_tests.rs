//! Two nodes against the kernel: namespaces with a LAN or a router between them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use serde_json::json;

use super::{PeerRoutes, PeersConfig, apply, keep};
use crate::{Changes, PodNetwork, PodNetworkConfig, netns};

/// Two nodes with a pod each; removed when the test ends, however it ends.
struct Site {
    directory: tempfile::TempDir,
    namespaces: Vec<PathBuf>,
    addresses: [Ipv4Addr; 2],
}

const NAMES: [&str; 2] = ["a", "b"];

impl Site {
    /// Nodes at `addresses`, a router between their segments where they differ.
    fn new(addresses: [[u8; 4]; 2]) -> Site {
        let mut site = Site {
            directory: tempfile::tempdir().unwrap(),
            namespaces: Vec::new(),
            addresses: addresses.map(Ipv4Addr::from),
        };
        let router = site.namespace("router");
        run(&router, "link set lo up");
        let is_one_segment = addresses[0][..3] == addresses[1][..3];
        if is_one_segment {
            run(&router, "link add lan type bridge");
            run(&router, "link set lan up");
        }
        for (name, [a, b, c, _]) in NAMES.iter().zip(addresses) {
            let node = site.namespace(name);
            site.namespace(&format!("pod-{name}"));
            run(&node, "link set lo up");
            run(&node, &format!("link add eth0 type veth peer name to-{name}"));
            run(&node, &format!("link set to-{name} netns {}", router.display()));
            run(&node, &format!("address add {}/24 dev eth0", site.address(name)));
            run(&node, "link set eth0 up");
            if is_one_segment {
                run(&router, &format!("link set to-{name} master lan up"));
            } else {
                run(&router, &format!("address add {a}.{b}.{c}.254/24 dev to-{name}"));
                run(&router, &format!("link set to-{name} up"));
            }
            run(&node, &format!("route add default via {a}.{b}.{c}.254"));
        }
        netns::within(&router, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
        site
    }

    fn namespace(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        self.namespaces.push(path.clone());
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn number(name: &str) -> usize {
        NAMES.iter().position(|n| *n == name).unwrap()
    }

    fn address(&self, name: &str) -> Ipv4Addr {
        self.addresses[Site::number(name)]
    }

    fn config(&self, name: &str) -> PeersConfig {
        PeersConfig {
            node_name: name.into(),
            node_ip: self.address(name),
            pod_cidr: format!("10.42.{}.0/24", Site::number(name)),
            cluster_cidr: "10.42.0.0/16".into(),
            vxlan_device: "skiff-vxlan".into(),
            vxlan_port: 4789,
        }
    }

    /// The nodes of these names, as the API has them.
    fn nodes(&self, names: &[&str]) -> Vec<Arc<Node>> {
        let node = |name: &&str| {
            let node = json!({
                "metadata": {"name": name, "creationTimestamp": "2030-01-01T00:00:00Z"},
                "spec": {"podCIDR": self.config(name).pod_cidr},
                "status": {"addresses": [{"type": "InternalIP", "address": self.address(name)}]},
            });
            Arc::new(serde_json::from_value(node).unwrap())
        };
        names.iter().map(node).collect()
    }

    fn pod_network(&self, name: &str) -> PodNetworkConfig {
        let config = self.config(name);
        PodNetworkConfig {
            bridge: "skiff0".into(),
            pod_cidr: config.pod_cidr,
            cluster_cidr: config.cluster_cidr,
            service_cidr: "10.43.0.0/16".into(),
            mtu: 1500,
            state_directory: self.path(&format!("ipam-{name}")),
        }
    }

    /// Opens a node's pod network, attaches its pod, and routes to the nodes of these names. Answers the pod's address.
    fn open(&self, name: &str, peers: &[&str]) -> Ipv4Addr {
        let (config, nodes, pod) = (self.config(name), self.nodes(peers), self.path(&format!("pod-{name}")));
        let network = self.pod_network(name);
        on_node(&self.path(name), move || async move {
            let network = PodNetwork::open(network).await.unwrap();
            let ip = network.attach("pod", &pod, &[]).await.unwrap();
            apply(&config, &nodes, &mut Vec::new()).await.unwrap();
            ip
        })
    }

    fn route(&self, name: &str, peers: &[&str]) {
        let (config, nodes) = (self.config(name), self.nodes(peers));
        on_node(&self.path(name), move || async move {
            apply(&config, &nodes, &mut Vec::new()).await.unwrap();
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for path in &self.namespaces {
            let _ = netns::remove(path);
        }
    }
}

fn on_node<T: Send + 'static, F: Future<Output = T>>(
    node: &Path,
    story: impl FnOnce() -> F + Send + 'static,
) -> T {
    netns::within(node, || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story())
    })
    .unwrap()
}

fn ip(namespace: &Path, arguments: &str) -> String {
    let arguments = arguments.to_owned();
    netns::within(namespace, move || {
        let output = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    })
    .unwrap()
}

fn run(namespace: &Path, arguments: &str) {
    ip(namespace, arguments);
}

/// Listens at a pod and answers every connection with who asks, and then a lot.
fn serve(pod: &Path, n_bytes: usize) {
    netns::within(pod, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let who = stream.peer_addr().unwrap().ip().to_string();
                let _ = stream.write_all(format!("{who:<16}").as_bytes());
                let _ = stream.write_all(&vec![b'x'; n_bytes]);
            }
        });
    })
    .unwrap();
}

/// Who a pod takes the asker for, and how many bytes came.
fn ask(from: &Path, to: Ipv4Addr) -> std::io::Result<(String, usize)> {
    netns::within(from, move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, 8080)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let who = String::from_utf8_lossy(&answer[..16]).trim().to_owned();
        Ok((who, answer.len() - 16))
    })
    .unwrap()
}

const MUCH: usize = 1 << 20;

#[test]
fn pods_of_nodes_on_one_segment_meet_by_route_and_keep_their_addresses() {
    let site = Site::new([[192, 0, 2, 1], [192, 0, 2, 2]]);
    let (a, b) = (site.open("a", &NAMES), site.open("b", &NAMES));
    serve(&site.path("pod-b"), MUCH);
    assert_eq!(ask(&site.path("pod-a"), b).unwrap(), (a.to_string(), MUCH));
    assert_eq!(ask(&site.path("a"), b).unwrap(), ("192.0.2.1".into(), MUCH));
    assert!(!ip(&site.path("a"), "link").contains("skiff-vxlan"), "nobody needs a tunnel");
    // A pass that finds all as it should be leaves it; a node that is gone takes its route along.
    // Whether a bridge's pods have come up yet is not what a route is about.
    let routes = || ip(&site.path("a"), "route").replace(" linkdown", "");
    let before = routes();
    site.route("a", &NAMES);
    assert_eq!(routes(), before);
    site.route("a", &["a"]);
    assert!(!ip(&site.path("a"), "route").contains("10.42.1.0/24"));
    assert!(ask(&site.path("pod-a"), b).is_err());
}

#[test]
fn pods_of_nodes_behind_a_router_meet_in_a_tunnel_and_keep_their_addresses() {
    let site = Site::new([[192, 0, 2, 1], [198, 51, 100, 1]]);
    let (a, b) = (site.open("a", &NAMES), site.open("b", &NAMES));
    serve(&site.path("pod-b"), MUCH);
    assert_eq!(ask(&site.path("pod-a"), b).unwrap(), (a.to_string(), MUCH));
    // The node itself comes as its pods' gateway, which is where answers find it.
    assert_eq!(ask(&site.path("a"), b).unwrap(), ("10.42.0.1".into(), MUCH));
    assert!(ip(&site.path("a"), "link show skiff-vxlan").contains("mtu 1450"));
    site.route("a", &NAMES);
    assert_eq!(ask(&site.path("pod-a"), b).unwrap().1, MUCH, "a second pass changes nothing");
    site.route("a", &["a"]);
    assert!(!ip(&site.path("a"), "link").contains("skiff-vxlan"));
    on_node(&site.path("b"), || async { PeerRoutes::remove("skiff-vxlan").await.unwrap() });
    assert!(!ip(&site.path("b"), "route").contains("10.42.0.0/24"));
    let tables = netns::within(&site.path("b"), || {
        std::process::Command::new("nft").args(["list", "tables"]).output().unwrap().stdout
    });
    assert!(!String::from_utf8(tables.unwrap()).unwrap().contains(super::TABLE));
}

/// What UDP may send through a tunnel is told to the pod that sends too much.
#[test]
fn a_pod_learns_the_tunnels_mtu() {
    let site = Site::new([[192, 0, 2, 1], [198, 51, 100, 1]]);
    let (_, b) = (site.open("a", &NAMES), site.open("b", &NAMES));
    serve(&site.path("pod-b"), MUCH);
    // Neighbours are resolved.
    ask(&site.path("pod-a"), b).unwrap();
    let fits = netns::within(&site.path("pod-a"), move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).unwrap();
        socket.connect((b, 9)).unwrap();
        // 28 bytes of headers. The first one that is too long leaves the pod; the node's answer is there by the next.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while socket.send(&[0; 1500 - 28]).is_ok() {
            assert!(std::time::Instant::now() < deadline, "nobody tells the pod of the tunnel's MTU");
            std::thread::yield_now();
        }
        // The error of the last answer may be told once more.
        let _ = socket.take_error();
        [1450 - 28, 1451 - 28].map(|n| socket.send(&vec![0; n]).is_ok() || socket.send(&vec![0; n]).is_ok())
    })
    .unwrap();
    assert_eq!(fits, [true, false]);
}

#[test]
fn the_tunnel_takes_nothing_from_strangers() {
    let site = Site::new([[192, 0, 2, 1], [198, 51, 100, 1]]);
    let (_, b) = (site.open("a", &NAMES), site.open("b", &NAMES));
    serve(&site.path("pod-b"), 0);
    assert!(ask(&site.path("pod-a"), b).is_ok());
    // To node b, node a is now somebody that no Node is of.
    let stranger = site.nodes(&["b"]).remove(0);
    let mut moved = (*site.nodes(&["a"]).remove(0)).clone();
    moved.status.as_mut().unwrap().addresses.as_mut().unwrap()[0].address = "203.0.113.9".into();
    let (config, nodes) = (site.config("b"), vec![stranger, Arc::new(moved)]);
    on_node(&site.path("b"), move || async move {
        apply(&config, &nodes, &mut Vec::new()).await.unwrap();
    });
    let dropped = || {
        let text = ip(&site.path("b"), "-s link show skiff-vxlan");
        text.lines().nth(3).unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = dropped();
    assert!(ask(&site.path("pod-a"), b).is_err());
    assert_eq!(dropped(), before, "the tunnel has received a stranger's packets");
}

/// Waits for what a command of a node's network shows.
async fn shows(node: &Path, arguments: &str, wanted: &str) {
    let seen = async {
        while !ip(node, arguments).contains(wanted) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), seen).await;
    assert!(seen.is_ok(), "`ip {arguments}` does not show {wanted:?}, but:\n{}", ip(node, arguments));
}

#[test]
fn a_link_that_went_down_and_came_up_has_the_routes_to_other_nodes_again_and_an_address_that_changes_is_followed()
 {
    let site = Site::new([[192, 0, 2, 1], [192, 0, 2, 2]]);
    site.open("a", &NAMES);
    let (node, config, nodes) = (site.path("a"), site.config("a"), site.nodes(&NAMES));
    on_node(&site.path("a"), move || async move {
        let (address, followed) = tokio::sync::watch::channel(config.node_ip);
        // What is shown next is then the first pass's doing: one that came only after the link would put the route back too.
        run(&node, "route delete 10.42.1.0/24");
        let kept = tokio::spawn(keep(config, Some(followed), move || nodes.clone(), Default::default()));
        let route = "route show 10.42.1.0/24";
        shows(&node, route, "via 192.0.2.2 dev eth0").await;
        run(&node, "link set eth0 down");
        assert_eq!(ip(&node, route), "", "the kernel keeps them nowadays, and this test shows nothing");
        run(&node, "link set eth0 up");
        shows(&node, route, "via 192.0.2.2 dev eth0").await;
        // Of another segment: from there the other node is behind the router.
        run(&node, "address add 198.51.100.1/24 dev eth0");
        run(&node, "address del 192.0.2.1/24 dev eth0");
        run(&node, "route replace default via 198.51.100.254 dev eth0 onlink");
        address.send_replace(Ipv4Addr::new(198, 51, 100, 1));
        shows(&node, route, "dev skiff-vxlan").await;
        shows(&node, "-d link show skiff-vxlan", "local 198.51.100.1").await;
        kept.abort();
    });
}

#[test]
fn the_pods_bridge_is_made_right_after_others_have_taken_it_down_or_away() {
    let site = Site::new([[192, 0, 2, 1], [192, 0, 2, 2]]);
    let pod_ip = site.open("a", &NAMES);
    let (node, config) = (site.path("a"), site.pod_network("a"));
    serve(&site.path("pod-a"), 10);
    on_node(&site.path("a"), move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let is_right = || {
            assert!(ip(&node, "route show 10.43.0.0/16").contains("dev skiff0"), "no route to Services");
            assert!(ip(&node, "link show master skiff0").contains("vethpod"), "the pod is not on the bridge");
            ask(&node, pod_ip).expect("the pod is not reached");
        };
        for damage in ["link set skiff0 down", "link delete skiff0", "route delete 10.43.0.0/16 dev skiff0"] {
            run(&node, damage);
            if damage.ends_with("down") {
                run(&node, "link set skiff0 up");
            }
            network.mend().await.unwrap();
            is_right();
        }
        network.set_mtu(1400);
        network.mend().await.unwrap();
        assert!(ip(&node, "link show skiff0").contains("mtu 1400"));
    });
}

#[test]
fn a_look_at_what_is_right_is_no_reason_for_another_look() {
    let site = Site::new([[192, 0, 2, 1], [198, 51, 100, 2]]);
    site.open("a", &NAMES);
    let (config, peers, nodes) = (site.pod_network("a"), site.config("a"), site.nodes(&NAMES));
    on_node(&site.path("a"), move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        apply(&peers, &nodes, &mut Vec::new()).await.unwrap();
        let mut changes = Changes::listen();
        network.mend().await.unwrap();
        apply(&peers, &nodes, &mut Vec::new()).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(3), changes.next()).await;
        assert!(told.is_err(), "it changes something each time");
    });
}
