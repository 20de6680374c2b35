//! Which servers there are, and so where the `kubernetes` Service leads.
//!
//! A server that has its store for itself is the one endpoint. Where several share one, each keeps a key with a short life, and each
//! writes the endpoints from the keys that there are, so that those of a server that died go within seconds. Source: upstream's
//! lease reconciler, whose keys and times these are, so that stock servers count as well.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde_json::{Value, json};
use skiff_api::Status;
use tokio_util::sync::CancellationToken;

use crate::failure::store_failure;
use crate::registry::Registry;
use crate::registry::ensure::Existing;
use crate::services::cidr::ServiceCidr;
use crate::store::{Expect, Range, Sharing, Store, Write};

const FOLDER: &str = "/registry/masterleases/";
const LIFE: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// More servers than any cluster has.
const MAX_SERVERS: usize = 256;
/// How long a server that ends waits to say so; if it cannot, its key ends by itself.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the API is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advertised {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) cidr: ServiceCidr,
}

/// Says which servers there are.
pub(crate) struct Servers {
    pub(crate) registry: Arc<Registry>,
}

impl Servers {
    fn store(&self) -> &dyn Store {
        &*self.registry.objects.store
    }

    /// Says that this server is there, and writes which there are.
    pub(crate) async fn announce(&self, advertised: Advertised) -> Result<(), Status> {
        if self.store().sharing() == Sharing::Exclusive {
            return self.publish_endpoints(advertised, &[advertised.ip]).await;
        }
        let ip = advertised.ip.to_string();
        let lease = json!({
            "kind": "Endpoints", "apiVersion": "v1", "metadata": {},
            "subsets": [{"addresses": [{"ip": ip}]}],
        });
        let write = Write::put(format!("{FOLDER}{ip}"), lease.to_string(), Expect::Any).with_ttl(LIFE);
        self.store().write(write).await.map_err(|e| store_failure(&e))?;
        self.write_servers(advertised).await
    }

    /// Says that this server is not at an address any more.
    pub(crate) async fn withdraw(&self, advertised: Advertised) {
        if self.store().sharing() == Sharing::Exclusive {
            return;
        }
        let goodbye = async {
            let write = Write::delete(format!("{FOLDER}{}", advertised.ip), Expect::Any);
            self.store().write(write).await.map_err(|e| store_failure(&e))?;
            self.write_servers(advertised).await
        };
        match tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot take this server out of the endpoints of the API")
            }
            Err(_) => tracing::warn!("had no time to take this server out of the endpoints of the API"),
        }
    }

    async fn write_servers(&self, advertised: Advertised) -> Result<(), Status> {
        let range = Range { limit: Some(MAX_SERVERS), ..Range::prefix(FOLDER) };
        let found = self.store().range(range).await.map_err(|e| store_failure(&e))?;
        let mut ips: Vec<IpAddr> = found.items.iter().filter_map(|item| ip_of(&item.value)).collect();
        ips.sort_unstable();
        ips.dedup();
        // Where none is left, the last says nothing: whoever comes next does.
        if ips.is_empty() { Ok(()) } else { self.publish_endpoints(advertised, &ips).await }
    }

    /// Writes where the API is reached: at each of these addresses.
    async fn publish_endpoints(&self, advertised: Advertised, ips: &[IpAddr]) -> Result<(), Status> {
        let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let port = json!({"name": "https", "port": advertised.port, "protocol": "TCP"});
        let endpoints = json!({
            "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": addresses, "ports": [port]}],
        });
        let of = ("", "v1", "endpoints");
        self.registry.ensure(of, "default", "kubernetes", endpoints, Existing::IsReplaced).await?;
        let address_type = if advertised.ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let endpoints: Vec<Value> = ips
            .iter()
            .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": address_type,
            "endpoints": endpoints,
            "ports": [port],
        });
        let of = ("discovery.k8s.io", "v1", "endpointslices");
        self.registry.ensure(of, "default", "kubernetes", slice, Existing::IsReplaced).await
    }

    /// Keeps on saying so, from wherever this server is at the moment.
    pub(crate) async fn keep_announcing(
        self: Arc<Self>,
        address: Arc<RwLock<SocketAddr>>,
        advertised: Advertised,
        closed: CancellationToken,
    ) {
        while closed.run_until_cancelled(tokio::time::sleep(RENEW_EVERY)).await.is_some() {
            let now = Advertised { ip: address.read().ip(), ..advertised };
            match closed.run_until_cancelled(Box::pin(self.announce(now))).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot say that this server is there; tried again in a while");
                }
            }
        }
    }
}

fn ip_of(lease: &[u8]) -> Option<IpAddr> {
    let lease: Value = serde_json::from_slice(lease).ok()?;
    lease["subsets"][0]["addresses"][0]["ip"].as_str()?.parse().ok()
}
