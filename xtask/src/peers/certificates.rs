//! The cluster's authority, certificates and kubeconfigs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::parts::{API_PORT, NODE, NODE_IP, SERVICE_IP};
use crate::command::{on_path, output};

pub(super) struct Certificates {
    dir: PathBuf,
}

struct Leaf {
    name: &'static str,
    authority: &'static str,
    subject: String,
    names: String,
}

const VALID_DAYS: &str = "3650";

fn leaves() -> Vec<Leaf> {
    let leaf = |name, subject: &str, names: &str| Leaf {
        name,
        authority: if name == "front-proxy-client" { "front-proxy-ca" } else { "ca" },
        subject: subject.into(),
        names: names.into(),
    };
    let service = "kubernetes.default.svc";
    let api = format!(
        "IP:127.0.0.1,IP:{NODE_IP},IP:{SERVICE_IP},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
         DNS:{service},DNS:{service}.cluster.local"
    );
    let node = format!("/O=system:nodes/CN=system:node:{NODE}");
    vec![
        leaf("kube-apiserver", "/CN=kube-apiserver", &api),
        leaf("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", ""),
        leaf("front-proxy-client", "/CN=front-proxy-client", ""),
        leaf("admin", "/O=system:masters/CN=admin", ""),
        leaf("kube-controller-manager", "/CN=system:kube-controller-manager", ""),
        leaf("kube-scheduler", "/CN=system:kube-scheduler", ""),
        leaf("kube-proxy", "/CN=system:kube-proxy", ""),
        leaf("coredns", "/O=system:masters/CN=coredns", ""),
        leaf("kubelet", &node, &format!("IP:{NODE_IP},DNS:{NODE}")),
    ]
}

/// Those that are clients of the API server.
const CLIENTS: [&str; 6] =
    ["admin", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns", "kubelet"];

impl Certificates {
    /// Once; a folder that is there is whole.
    pub(super) fn make(dir: &Path) -> Result<Certificates> {
        let certificates = Certificates { dir: dir.to_owned() };
        if dir.exists() {
            return Ok(certificates);
        }
        ensure!(on_path("openssl"), "openssl is not on PATH; install the package of that name");
        let partial = Certificates { dir: dir.with_extension("partial") };
        if partial.dir.exists() {
            fs::remove_dir_all(&partial.dir)
                .with_context(|| format!("removing {}", partial.dir.display()))?;
        }
        fs::create_dir_all(&partial.dir).with_context(|| format!("creating {}", partial.dir.display()))?;
        for name in ["ca", "front-proxy-ca"] {
            partial.authority(name)?;
        }
        leaves().iter().try_for_each(|leaf| partial.leaf(leaf))?;
        partial.key("service-accounts")?;
        let (key, public) = (partial.key_path("service-accounts"), partial.dir.join("service-accounts.pub"));
        openssl(&["ec", "-pubout"], &[("-in", &key), ("-out", &public)])?;
        CLIENTS.iter().try_for_each(|name| partial.write_kubeconfig(name))?;
        fs::rename(&partial.dir, dir).with_context(|| format!("naming {}", dir.display()))?;
        Ok(certificates)
    }

    pub(super) fn certificate(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    pub(super) fn key_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    pub(super) fn service_account_public(&self) -> PathBuf {
        self.dir.join("service-accounts.pub")
    }

    pub(super) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.kubeconfig"))
    }

    fn key(&self, name: &str) -> Result<()> {
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], &[("-out", &self.key_path(name))])
    }

    fn authority(&self, name: &str) -> Result<()> {
        self.key(name)?;
        let subject = format!("/CN={name}");
        openssl(
            &[
                "req",
                "-x509",
                "-new",
                "-subj",
                &subject,
                "-days",
                VALID_DAYS,
                "-addext",
                "basicConstraints=critical,CA:TRUE",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
            ],
            &[("-key", &self.key_path(name)), ("-out", &self.certificate(name))],
        )
    }

    fn leaf(&self, leaf: &Leaf) -> Result<()> {
        self.key(leaf.name)?;
        let (request, extensions) = (self.dir.join("request.csr"), self.dir.join("request.ext"));
        openssl(
            &["req", "-new", "-subj", &leaf.subject],
            &[("-key", &self.key_path(leaf.name)), ("-out", &request)],
        )?;
        let mut text = "keyUsage=critical,digitalSignature,keyEncipherment\n\
                        extendedKeyUsage=clientAuth,serverAuth\n"
            .to_owned();
        if !leaf.names.is_empty() {
            text += &format!("subjectAltName={}\n", leaf.names);
        }
        fs::write(&extensions, text).with_context(|| format!("writing {}", extensions.display()))?;
        openssl(
            &["x509", "-req", "-CAcreateserial", "-days", VALID_DAYS],
            &[
                ("-in", &request),
                ("-CA", &self.certificate(leaf.authority)),
                ("-CAkey", &self.key_path(leaf.authority)),
                ("-extfile", &extensions),
                ("-out", &self.certificate(leaf.name)),
            ],
        )
    }

    fn write_kubeconfig(&self, name: &str) -> Result<()> {
        let encoded = |path: PathBuf| output(Command::new("base64").arg("-w0").arg(path));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: peers\n\
             clusters: [{{name: peers, cluster: {{server: \"https://127.0.0.1:{API_PORT}\", certificate-authority-data: {}}}}}]\n\
             users: [{{name: {name}, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n\
             contexts: [{{name: peers, context: {{cluster: peers, user: {name}}}}}]\n",
            encoded(self.certificate("ca"))?,
            encoded(self.certificate(name))?,
            encoded(self.key_path(name))?,
        );
        let path = self.kubeconfig(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn openssl(arguments: &[&str], files: &[(&str, &PathBuf)]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(arguments);
    for (flag, path) in files {
        command.arg(flag).arg(path);
    }
    output(&mut command).map(drop)
}
