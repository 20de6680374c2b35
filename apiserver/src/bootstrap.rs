//! Objects that every cluster has: namespaces, roles, priority classes, flow schemas and their levels, the `kubernetes` Service and its endpoints, the range
//! of Services and an IPAddress for each of their addresses. Runs at every start, and changes only what is missing, of an older
//! address, or of a Service that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use futures::{StreamExt, stream};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::json;
use skiff_api::Status;
use skiff_api::meta::Meta;

use crate::aggregation::identity;
use crate::auth::rbac::{Expected, Policy, completed};
use crate::auth::validity::Validity;
use crate::call::key_of;
use crate::clock::now;
use crate::limits::objects::FlowObjects;
use crate::lister::Lister;
use crate::objects::Next;
use crate::registry::Registry;
use crate::registry::ensure::Existing;
use crate::servers::{Advertised, Servers};
use crate::services::cidr::ServiceCidr;
use crate::tls::FrontProxyConfig;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Events about damage at a start; the log has all of it.
const MAX_TOLD: usize = 100;
/// Roles and bindings that are written at the same time.
const ROLES_TOGETHER: usize = 32;

const PRIORITY_CLASSES: &[(&str, i64, &str)] = &[
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

const FRONT_PROXY_CA: &str = "requestheader-client-ca-file";
/// As many authorities for front proxies are published, of whatever servers.
const MAX_AUTHORITIES: usize = 16;
const PEM_COLUMNS: usize = 64;

/// Whose certificates count, by upstream's keys.
pub(crate) struct Trusted(BTreeMap<&'static str, String>);

impl Trusted {
    pub(crate) fn new(client_ca_pem: &str, front_proxy: Option<&FrontProxyConfig>) -> Trusted {
        let mut data = BTreeMap::from([("client-ca-file", client_ca_pem.to_owned())]);
        if let Some(FrontProxyConfig { ca_pem, allowed_names, .. }) = front_proxy {
            let list = |names: &[&str]| json!(names).to_string();
            data.insert(FRONT_PROXY_CA, String::from_utf8_lossy(ca_pem).into_owned());
            data.insert("requestheader-allowed-names", json!(allowed_names).to_string());
            data.insert("requestheader-username-headers", list(&[identity::USER]));
            data.insert("requestheader-uid-headers", list(&[identity::UID]));
            data.insert("requestheader-group-headers", list(&[identity::GROUP]));
            data.insert("requestheader-extra-headers-prefix", list(&[identity::EXTRA_PREFIX]));
        }
        Trusted(data)
    }
}

/// What the first objects are made with.
pub(crate) struct Bootstrap {
    pub(crate) registry: Arc<Registry>,
    pub(crate) flow: Arc<FlowObjects>,
    pub(crate) servers: Arc<Servers>,
}

impl Bootstrap {
    fn lister(&self) -> &Lister {
        &self.registry.objects.lister
    }

    pub(crate) async fn run(&self, advertised: Advertised, policy: &Policy) -> Result<(), Status> {
        for name in NAMESPACES {
            let namespace = json!({"metadata": {"name": name}});
            let of = ("", "v1", "namespaces");
            go_on(self.registry.ensure(of, "", name, namespace, Existing::Stays).await)?;
        }
        // One after the other, each would wait for the disk.
        let roles = policy.expected.iter().map(|expected| self.ensure_role(expected));
        let mut ensured = stream::iter(roles).buffer_unordered(ROLES_TOGETHER);
        while let Some(step) = ensured.next().await {
            go_on(step)?;
        }
        for (name, value, description) in PRIORITY_CLASSES {
            let class = json!({"metadata": {"name": name}, "value": value, "description": description});
            let of = ("scheduling.k8s.io", "v1", "priorityclasses");
            go_on(self.registry.ensure(of, "", name, class, Existing::Stays).await)?;
        }
        go_on(self.flow.ensure().await)?;
        go_on(self.flow.apply().await)?;
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let service = json!({
            "metadata": {"name": "kubernetes", "labels": labels},
            "spec": {
                "clusterIP": advertised.cidr.first().to_string(), "type": "ClusterIP", "sessionAffinity": "None",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": advertised.port}],
            },
        });
        let of = ("", "v1", "services");
        go_on(self.registry.ensure(of, "default", "kubernetes", service, Existing::Stays).await)?;
        go_on(self.registry.services.repair_addresses().await)?;
        go_on(self.ensure_service_cidr(advertised.cidr).await)?;
        go_on(self.servers.announce(advertised).await)?;
        self.tell_of_damage().await
    }

    /// A role or a binding: what it lacks is added. One that binds another role is made anew, since that cannot change.
    async fn ensure_role(&self, expected: &Expected) -> Result<(), Status> {
        let of = ("rbac.authorization.k8s.io", "v1", expected.plural);
        let (namespace, name) = (expected.object.namespace(), expected.object.name());
        let make = || self.registry.ensure(of, namespace, name, expected.object.clone(), Existing::Stays);
        let kind = self.lister().kind(of.0, of.1, of.2)?;
        let Some(entry) = self.lister().caches.of(&kind)?.get(&key_of(&kind, namespace, name))? else {
            return make().await;
        };
        let found = self.registry.objects.parsed(&kind, &entry).await?;
        let Some(new) = completed(&found, &expected.object) else { return Ok(()) };
        let is_other = new["roleRef"] != expected.object["roleRef"];
        tracing::info!(
            resource = expected.plural,
            namespace,
            name,
            "a role or binding of every cluster is completed"
        );
        self.registry
            .objects
            .modify(&kind, namespace, name, false, |current| {
                let object = current.object.clone();
                if is_other {
                    return Ok(Next::Delete(object));
                }
                Ok(Next::Put(completed(&object, &expected.object).unwrap_or(object)))
            })
            .await?;
        if is_other { make().await } else { Ok(()) }
    }

    /// Whose certificates count here, for those that let this server say who asks them: extension API servers, and components
    /// with an API of their own.
    pub(crate) async fn publish_trusted(&self, trusted: &Trusted) -> Result<(), Status> {
        go_on(self.write_trusted(trusted).await)
    }

    async fn write_trusted(&self, Trusted(data): &Trusted) -> Result<(), Status> {
        const OF: (&str, &str, &str) = ("", "v1", "configmaps");
        const NAME: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
        let map = json!({"metadata": {"name": NAME.1}, "data": data});
        self.registry.ensure(OF, NAME.0, NAME.1, map, Existing::Stays).await?;
        let kind = self.lister().kind(OF.0, OF.1, OF.2)?;
        self.registry
            .objects
            .modify(&kind, NAME.0, NAME.1, false, |current| {
                let mut map = current.object.clone();
                for (key, value) in data {
                    let known = map["data"][key].as_str().unwrap_or_default();
                    let united = match *key {
                        FRONT_PROXY_CA => Some(united_certificates(known, value, UnixTime::now())),
                        _ => united(known, value),
                    };
                    map["data"][key] = united.as_deref().unwrap_or(value).into();
                }
                Ok(Next::Put(map))
            })
            .await?;
        Ok(())
    }

    /// The range of Service addresses as an object. The finalizer stays: as long as the cluster lives, the
    /// `kubernetes` Service has an address of it.
    async fn ensure_service_cidr(&self, cidr: ServiceCidr) -> Result<(), Status> {
        const OF: (&str, &str, &str) = ("networking.k8s.io", "v1", "servicecidrs");
        let range = json!({
            "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
            "spec": {"cidrs": [cidr.to_string()]},
        });
        self.registry.ensure(OF, "", "kubernetes", range, Existing::Stays).await?;
        let kind = self.lister().kind(OF.0, OF.1, OF.2)?;
        self.registry.objects.modify(&kind, "", "kubernetes", false, |current| {
            let mut range = current.object.clone();
            let is_ours = range["spec"]["cidrs"] == json!([cidr.to_string()]);
            if !is_ours {
                tracing::warn!(stored = %range["spec"]["cidrs"], configured = %cidr, "the ServiceCIDR differs");
            }
            let conditions = range["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is_said = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] != "Unknown");
            if is_ours && !is_said && !range.is_being_deleted() {
                range["status"]["conditions"] = json!([{
                    "type": "Ready", "status": "True", "reason": "",
                    "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": now(),
                }]);
            }
            Ok(Next::Put(range))
        })
        .await?;
        Ok(())
    }

    /// An event for each stored value that cannot be read: the log of the server is not what people look at.
    async fn tell_of_damage(&self) -> Result<(), Status> {
        for (cache, key, why) in self.lister().caches.damaged().into_iter().take(MAX_TOLD) {
            let kind = cache.kind().clone();
            let (namespace, name) =
                if kind.is_namespaced() { key.split_once('/') } else { None }.unwrap_or(("", &key));
            let place = if namespace.is_empty() { "default" } else { namespace };
            let path = format!("{}{key}", kind.prefix(None));
            let event = json!({
                "metadata": {"generateName": "damaged-object."},
                "involvedObject": {
                    "apiVersion": kind.api_version(), "kind": kind.kind, "namespace": namespace, "name": name,
                },
                "type": "Warning", "reason": "StorageReadError", "action": "Reading",
                "message": format!(
                    "{path} cannot be read from the storage: {why}. Restore a backup, or delete the object with ignoreStoreReadErrorWithClusterBreakingPotential"
                ),
                "source": {"component": "apiserver"}, "reportingComponent": "apiserver", "reportingInstance": "",
                "count": 1, "firstTimestamp": now(), "lastTimestamp": now(),
            });
            // The namespace may be what cannot be read.
            if let Err(error) =
                self.registry.ensure(("", "v1", "events"), place, "", event, Existing::Stays).await
            {
                tracing::warn!(%error, path, "cannot record an event about a damaged object");
            }
        }
        Ok(())
    }
}

/// Two bundles of certificates as one, ours first, without those that are outside their time: several servers of a cluster may each
/// have an authority of their own for front proxies.
fn united_certificates(known: &str, ours: &str, now: UnixTime) -> String {
    let mut all = ours.trim_end().to_owned();
    let mut seen: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(ours.as_bytes()).filter_map(Result::ok).collect();
    for certificate in CertificateDer::pem_slice_iter(known.as_bytes()).filter_map(Result::ok) {
        let is_good = Validity::of(&certificate).is_some_and(|validity| validity.nearest_to(now) == now);
        if !is_good || seen.contains(&certificate) || seen.len() >= MAX_AUTHORITIES {
            continue;
        }
        let encoded = base64::engine::general_purpose::STANDARD.encode(&certificate);
        all.push_str("\n-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(PEM_COLUMNS) {
            all.push_str(&String::from_utf8_lossy(line));
            all.push('\n');
        }
        all.push_str("-----END CERTIFICATE-----");
        seen.push(certificate);
    }
    all.push('\n');
    all
}

/// Two lists of names as one, as they are written; `None` where one is no list.
fn united(known: &str, ours: &str) -> Option<String> {
    let list = |text: &str| serde_json::from_str::<Vec<String>>(text).ok();
    let (mut all, ours) = (list(known)?, list(ours)?);
    all.extend(ours);
    let mut seen = BTreeSet::new();
    all.retain(|name| seen.insert(name.clone()));
    serde_json::to_string(&all).ok()
}

/// What cannot be read is no reason to keep the rest of the cluster from starting: who asks for it is told.
fn go_on(step: Result<(), Status>) -> Result<(), Status> {
    match step {
        Err(status) if status.reason == "StorageReadError" => {
            tracing::error!(%status, "an object that every cluster has cannot be looked at");
            Ok(())
        }
        step => step,
    }
}
