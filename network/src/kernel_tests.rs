//! The pod network and the service proxy against the kernel, in a network namespace that stands for the node.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::proxy::{ProxyConfig, plan, script};
use crate::{HostPort, PodNetwork, PodNetworkConfig, netns, nft};

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

fn proxy_config() -> ProxyConfig {
    ProxyConfig {
        node_name: "n1".into(),
        node_ips: Vec::new(),
        cluster_cidr: "10.42.0.0/16".into(),
        pod_cidr: "10.42.0.0/24".into(),
    }
}

fn plan_for(spec: serde_json::Value, endpoints: &[Ipv4Addr]) -> plan::Plan {
    let service = json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec});
    let slice = json!({
        "metadata": {"name": "s-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
        "endpoints": endpoints.iter().map(|ip| json!({"addresses": [ip]})).collect::<Vec<_>>(),
    });
    let service = Arc::new(serde_json::from_value(service).unwrap());
    let slice = Arc::new(serde_json::from_value(slice).unwrap());
    plan::plan(&proxy_config(), &[service], &[slice])
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
        nft::apply(&script::whole(&proxy_config(), &both)).await.unwrap();
        let service: SocketAddr = "10.43.0.9:80".parse().unwrap();
        // Many times, so that each pod also meets itself, and both endpoints are met.
        let mut met = std::collections::BTreeSet::new();
        for _ in 0..30 {
            met.insert(ask(&pods[0], service).unwrap());
            met.insert(ask(&here, service).unwrap());
        }
        assert_eq!(met.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        let one = plan_for(spec(), &ips[1..]);
        nft::apply(&script::difference(&both, &one)).await.unwrap();
        for _ in 0..10 {
            assert_eq!(ask(&pods[0], service).unwrap(), "b");
        }
        let none = plan_for(spec(), &[]);
        nft::apply(&script::difference(&one, &none)).await.unwrap();
        let refused = ask(&pods[0], service).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
        let affine = plan_for(
            json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}),
            &ips,
        );
        nft::apply(&script::difference(&none, &affine)).await.unwrap();
        let first = ask(&pods[0], service).unwrap();
        for _ in 0..10 {
            assert_eq!(ask(&pods[0], service).unwrap(), first, "a client with affinity was moved");
        }
        nft::apply(&script::difference(&affine, &plan::Plan::default())).await.unwrap();
        network.detach("a", &[]).await.unwrap();
        network.detach("a", &[]).await.unwrap();
        network.close().await.unwrap();
    });
}

#[test]
fn a_host_port_leads_to_its_pod_and_is_taken_once() {
    let mut world = World::new();
    let node = world.namespace("node");
    let (pod, client) = (world.namespace("pod"), world.namespace("client"));
    let config = world.config();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let ports = [HostPort { protocol: "tcp", host_port: 9090, container_port: 8080 }];
        network.attach("pod", &pod, &ports).await.unwrap();
        network.attach("client", &client, &[]).await.unwrap();
        serve(&pod, 8080, "pod");
        let node_port = SocketAddr::from((network.gateway(), 9090));
        assert_eq!(ask(&client, node_port).unwrap(), "pod");
        let taken = network.attach("client", &client, &ports).await.unwrap_err();
        assert_eq!(taken.to_string(), "host port tcp 9090 is taken by another pod of this node");
        network.detach("pod", &ports).await.unwrap();
        assert!(ask(&client, node_port).is_err());
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
