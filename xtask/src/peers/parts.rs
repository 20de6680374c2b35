//! How each of upstream's programs is started. Upstream is shown kindly: one member of etcd on plain HTTP, no leader
//! election, ECDSA certificates, no audit, and a scheduler without a limit on its requests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::certificates::Certificates;
use super::containers;
use super::programs::Programs;
use super::space::GROUP;

/// In the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Etcd,
    ApiServer,
    Containerd,
    Kubelet,
    Proxy,
    ControllerManager,
    Scheduler,
    Dns,
}

#[cfg(test)]
pub(super) const ALL: [Part; 8] = [
    Part::Etcd,
    Part::ApiServer,
    Part::Containerd,
    Part::Kubelet,
    Part::Proxy,
    Part::ControllerManager,
    Part::Scheduler,
    Part::Dns,
];

pub(super) const NODE: &str = "peer-1";
pub(crate) const NODE_IP: &str = "10.99.0.2";
pub(super) const API_PORT: u16 = 6443;
const POD_CIDR: &str = "10.244.0.0/16";
pub(super) const NODE_POD_CIDR: &str = "10.244.0.0/24";
const SERVICE_CIDR: &str = "10.96.0.0/16";
pub(super) const SERVICE_IP: &str = "10.96.0.1";
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
const ETCD_QUOTA_BYTES: u64 = 8 << 30;
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const SCHEDULER_QPS: u32 = 5000;

impl Part {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Part::Etcd => "etcd",
            Part::ApiServer => "kube-apiserver",
            Part::Containerd => "containerd",
            Part::Kubelet => "kubelet",
            Part::Proxy => "kube-proxy",
            Part::ControllerManager => "kube-controller-manager",
            Part::Scheduler => "kube-scheduler",
            Part::Dns => "coredns",
        }
    }

    /// Whether it gives up if the API server is not there.
    pub(super) fn waits_for_api(self) -> bool {
        matches!(self, Part::ControllerManager | Part::Scheduler | Part::Dns)
    }

    /// Writes its configuration, and answers its arguments.
    pub(super) fn prepare(self, programs: &Programs, pki: &Certificates, dir: &Path) -> Result<Vec<String>> {
        match self {
            Part::Etcd => etcd(dir),
            Part::ApiServer => Ok(api_server(pki)),
            Part::Containerd => Ok(containers::arguments(&containers::configuration(programs, dir)?)),
            Part::Kubelet => kubelet(pki, dir),
            Part::Proxy => proxy(pki, dir),
            Part::ControllerManager => Ok(controller_manager(pki)),
            Part::Scheduler => scheduler(pki, dir),
            Part::Dns => dns(pki, dir),
        }
    }
}

fn flags<const N: usize>(all: [(&str, &dyn Shown); N]) -> Vec<String> {
    all.iter().map(|(name, value)| format!("--{name}={}", value.show())).collect()
}

/// What a flag may be given.
trait Shown {
    fn show(&self) -> String;
}

impl Shown for &str {
    fn show(&self) -> String {
        (*self).to_owned()
    }
}

impl Shown for u64 {
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Shown for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn etcd(dir: &Path) -> Result<Vec<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    let data = dir.join("etcd");
    fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
    let cluster = format!("peers={ETCD_PEER}");
    Ok(flags([
        ("name", &"peers"),
        ("data-dir", &data),
        ("log-level", &"warn"),
        ("listen-client-urls", &ETCD),
        ("advertise-client-urls", &ETCD),
        ("listen-peer-urls", &ETCD_PEER),
        ("initial-advertise-peer-urls", &ETCD_PEER),
        ("initial-cluster", &cluster.as_str()),
        ("quota-backend-bytes", &ETCD_QUOTA_BYTES),
    ]))
}

fn api_server(pki: &Certificates) -> Vec<String> {
    flags([
        ("etcd-servers", &ETCD),
        ("bind-address", &"0.0.0.0"),
        ("secure-port", &u64::from(API_PORT)),
        ("advertise-address", &NODE_IP),
        ("service-cluster-ip-range", &SERVICE_CIDR),
        ("allow-privileged", &"true"),
        ("authorization-mode", &"Node,RBAC"),
        ("enable-admission-plugins", &"NodeRestriction"),
        ("client-ca-file", &pki.certificate("ca")),
        ("tls-cert-file", &pki.certificate("kube-apiserver")),
        ("tls-private-key-file", &pki.key_path("kube-apiserver")),
        ("kubelet-client-certificate", &pki.certificate("kubelet-client")),
        ("kubelet-client-key", &pki.key_path("kubelet-client")),
        ("kubelet-preferred-address-types", &"InternalIP,Hostname"),
        ("service-account-issuer", &ISSUER),
        ("service-account-key-file", &pki.service_account_public()),
        ("service-account-signing-key-file", &pki.key_path("service-accounts")),
        ("requestheader-client-ca-file", &pki.certificate("front-proxy-ca")),
        ("requestheader-allowed-names", &"front-proxy-client"),
        ("requestheader-username-headers", &"X-Remote-User"),
        ("requestheader-group-headers", &"X-Remote-Group"),
        ("requestheader-extra-headers-prefix", &"X-Remote-Extra-"),
        ("proxy-client-cert-file", &pki.certificate("front-proxy-client")),
        ("proxy-client-key-file", &pki.key_path("front-proxy-client")),
    ])
}

fn controller_manager(pki: &Certificates) -> Vec<String> {
    let kubeconfig = pki.kubeconfig("kube-controller-manager");
    flags([
        ("kubeconfig", &kubeconfig),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("bind-address", &"127.0.0.1"),
        ("leader-elect", &"false"),
        ("use-service-account-credentials", &"true"),
        ("service-account-private-key-file", &pki.key_path("service-accounts")),
        ("root-ca-file", &pki.certificate("ca")),
        ("client-ca-file", &pki.certificate("ca")),
        ("cluster-signing-cert-file", &pki.certificate("ca")),
        ("cluster-signing-key-file", &pki.key_path("ca")),
        ("requestheader-client-ca-file", &pki.certificate("front-proxy-ca")),
        ("allocate-node-cidrs", &"true"),
        ("cluster-cidr", &POD_CIDR),
        ("service-cluster-ip-range", &SERVICE_CIDR),
    ])
}

fn scheduler(pki: &Certificates, dir: &Path) -> Result<Vec<String>> {
    let kubeconfig = pki.kubeconfig("kube-scheduler");
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         leaderElection: {{leaderElect: false}}\n\
         clientConnection: {{kubeconfig: \"{}\", qps: {SCHEDULER_QPS}, burst: {}}}\n",
        kubeconfig.display(),
        2 * SCHEDULER_QPS
    );
    Ok(flags([
        ("config", &write(dir, "scheduler.yaml", &text)?),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("bind-address", &"127.0.0.1"),
    ]))
}

fn kubelet(pki: &Certificates, dir: &Path) -> Result<Vec<String>> {
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         failCgroupV1: false\ncgroupDriver: cgroupfs\ncgroupRoot: /{GROUP}\n\
         containerRuntimeEndpoint: unix://{socket}\n\
         authentication: {{x509: {{clientCAFile: \"{ca}\"}}, anonymous: {{enabled: false}}, webhook: {{enabled: true}}}}\n\
         authorization: {{mode: Webhook}}\n\
         tlsCertFile: \"{certificate}\"\ntlsPrivateKeyFile: \"{key}\"\n\
         clusterDomain: cluster.local\nclusterDNS: [{NODE_IP}]\nresolvConf: \"\"\nfailSwapOn: false\nmaxPods: 110\n\
         imageGCHighThresholdPercent: 100\nevictionHard: {{memory.available: 100Mi, nodefs.available: 1%}}\n",
        socket = containers::SOCKET,
        ca = pki.certificate("ca").display(),
        certificate = pki.certificate("kubelet").display(),
        key = pki.key_path("kubelet").display(),
    );
    Ok(flags([
        ("config", &write(dir, "kubelet.yaml", &text)?),
        ("kubeconfig", &pki.kubeconfig("kubelet")),
        ("hostname-override", &NODE),
        ("node-ip", &NODE_IP),
    ]))
}

/// Without the limits on tracked connections that it would set for the whole machine.
fn proxy(pki: &Certificates, dir: &Path) -> Result<Vec<String>> {
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         mode: nftables\nhostnameOverride: {NODE}\nclusterCIDR: {POD_CIDR}\n\
         clientConnection: {{kubeconfig: \"{}\"}}\n\
         healthzBindAddress: 127.0.0.1:10256\nmetricsBindAddress: 127.0.0.1:10249\n\
         conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n",
        pki.kubeconfig("kube-proxy").display()
    );
    Ok(flags([("config", &write(dir, "proxy.yaml", &text)?)]))
}

/// As kubeadm configures it, but for names outside the cluster: there is no outside.
fn dns(pki: &Certificates, dir: &Path) -> Result<Vec<String>> {
    let text = format!(
        ".:53 {{\n    bind {NODE_IP}\n    errors\n    health 127.0.0.1:8080\n    ready 127.0.0.1:8181\n\
         \x20   kubernetes cluster.local in-addr.arpa ip6.arpa {{\n        kubeconfig {}\n        pods insecure\n\
         \x20       ttl 30\n    }}\n    prometheus 127.0.0.1:9153\n    cache 30\n    loadbalance\n}}\n",
        pki.kubeconfig("coredns").display()
    );
    let path = write(dir, "Corefile", &text)?;
    Ok(vec!["-conf".into(), path.display().to_string()])
}
