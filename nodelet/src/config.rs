//! What a nodelet is told when it starts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use rustls::server::ResolvesServerCert;

use crate::image_gc::ImageGcPolicy;
use crate::node::pressure::EvictionHard;
use crate::qos::PodCgroups;

/// Everything about this node that cannot be found out by looking at it.
#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses, the primary one first. At most one of each family is used.
    pub node_ips: Vec<IpAddr>,
    /// Where pods' directories lie: `<root_dir>/pods/<uid>`.
    pub root_dir: PathBuf,
    /// Where containers' logs lie: `<log_root>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_root: PathBuf,
    /// The cgroup that holds all pods' cgroups, relative to a hierarchy's root: `skiff`, or empty.
    pub cgroup_root: String,
    /// The machine's control groups; `None` leaves the groups that all pods are in as they are.
    pub pod_cgroups: Option<Arc<dyn PodCgroups>>,
    pub cluster_dns: Vec<IpAddr>,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// The node API's address and port. Port 0 takes any free port; the node then reports that one.
    pub bind: IpAddr,
    pub port: u16,
    /// `None` serves no node API: `kubectl logs` and `exec` then do not reach this node.
    pub tls: Option<ServerTls>,
    pub max_pods: u32,
    /// The least that must be free on this node.
    pub eviction_hard: EvictionHard,
    /// How long a pressure is told of after it was last there.
    pub pressure_transition: Duration,
    pub image_gc: ImageGcPolicy,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// The range this node's pods get addresses from; written to the Node if it has none yet.
    pub pod_cidr: Option<String>,
    /// The host's resolver configuration, for pods with `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
}

/// The node API's certificate and the authority that its clients' certificates must come from.
#[derive(Clone)]
pub struct ServerTls {
    /// Asked at every connection, so that a certificate may be renewed while the nodelet runs.
    pub certificate: Arc<dyn ResolvesServerCert>,
    /// In PEM.
    pub client_ca_pem: Vec<u8>,
}

impl Config {
    /// A configuration with upstream's defaults for everything but the node's name and address.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr) -> Config {
        Config {
            node_name: node_name.into(),
            node_ips: vec![node_ip],
            root_dir: PathBuf::from("/var/lib/skiff/nodelet"),
            log_root: PathBuf::from("/var/log/pods"),
            cgroup_root: "skiff".to_owned(),
            pod_cgroups: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            bind: node_ip,
            port: 10250,
            tls: None,
            max_pods: 110,
            eviction_hard: EvictionHard::default(),
            pressure_transition: Duration::from_secs(5 * 60),
            image_gc: ImageGcPolicy::default(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pod_cidr: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_root.join(format!("{namespace}_{name}_{uid}"))
    }
}
