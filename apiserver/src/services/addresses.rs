//! IPAddress objects: one for each address that a Service has, as long as it has it.
//!
//! The Services themselves are what is remembered; the objects are written beside them, or before them where several servers share
//! the store (`claims.rs`). What a server has left that ended in between is put right at the next start, and then now and then.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};

use super::Services;
use super::allocator::{Allocation, is_of, numbers};
use crate::call::is_core;
use crate::objects::{MAX_ATTEMPTS, Next};
use crate::registry::metadata;
use crate::store::Sharing;

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// How long an address may wait for its Service.
const GRACE: SignedDuration = SignedDuration::from_secs(60);
const IP_FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

impl Services {
    /// Makes an allocation lasting, for a Service that was just written.
    pub(crate) async fn keep(&self, mut allocation: Allocation, service: &Object) {
        let (given, taken_back) = allocation.addresses();
        if self.objects.store.sharing() == Sharing::Exclusive {
            for ip in given {
                warn(ip, self.write_address(ip, service).await);
            }
        }
        for ip in taken_back {
            warn(ip, self.remove_address(ip, service).await);
        }
        self.give_ports_back(allocation.dropped_ports(service)).await;
        allocation.keep();
    }

    /// Gives back what a deleted Service had.
    pub(crate) async fn release(&self, kind: &Kind, service: &Object) {
        if !is_core(kind, "Service") {
            return;
        }
        if let Some(ip) = cluster_ip(service) {
            warn(ip, self.remove_address(ip, service).await);
        }
        self.give_ports_back(numbers(service)).await;
        self.allocator.release(kind, service);
    }

    /// Makes what is missing, and removes what is left of Services that are gone.
    pub(crate) async fn repair_addresses(&self) -> Result<(), Status> {
        self.objects.lister.caches.wait_for_newest().await?;
        let (_, services) = self.objects.lister.cache("", "v1", "services")?.snapshot()?;
        let services: Vec<Object> = services.values().map(|entry| entry.parse()).collect();
        let by_ip: HashMap<Ipv4Addr, &Object> =
            services.iter().filter_map(|service| Some((cluster_ip(service)?, service))).collect();
        for (ip, service) in &by_ip {
            self.write_address(*ip, service).await?;
        }
        let (_, addresses) = self.objects.lister.caches.of(&*self.addresses_kind()?)?.snapshot()?;
        let ours = addresses.values().filter(|entry| entry.label(MANAGED_BY) == Some(ALLOCATOR));
        for address in ours.map(|entry| entry.parse()) {
            let Ok(ip) = address.name().parse() else { continue };
            let is_used = by_ip.get(&ip).is_some_and(|service| is_of(&address, service));
            // Another server may be about to write the Service.
            let may_come = self.objects.store.sharing() == Sharing::Shared && is_young(&address);
            if !is_used && !may_come {
                self.delete_address(&address).await?;
            }
        }
        Ok(())
    }

    fn addresses_kind(&self) -> Result<std::sync::Arc<Kind>, Status> {
        self.objects.lister.kind("networking.k8s.io", "v1", "ipaddresses")
    }

    async fn write_address(&self, ip: Ipv4Addr, service: &Object) -> Result<(), Status> {
        let kind = self.addresses_kind()?;
        if self.objects.lister.caches.of(&kind)?.get(&ip.to_string())?.is_some() {
            return Ok(());
        }
        // One that is there already was checked to be of this Service, when the address was given out.
        self.insert_address(&kind, ip, service).await.map(|_| ())
    }

    /// Makes the object of an address, whoever has it on any server.
    pub(super) async fn claim_address(&self, ip: Ipv4Addr, service: &Object) -> Result<Claim, Status> {
        let kind = self.addresses_kind()?;
        for _ in 0..MAX_ATTEMPTS {
            if self.insert_address(&kind, ip, service).await? {
                return Ok(Claim::Made);
            }
            self.objects.lister.caches.wait_for_newest().await?;
            match self.objects.lister.caches.of(&kind)?.get(&ip.to_string())? {
                Some(entry) if is_of(&entry.parse(), service) => return Ok(Claim::WasThere),
                Some(_) => return Ok(Claim::Foreign),
                // It was given back meanwhile.
                None => {}
            }
        }
        Ok(Claim::Foreign)
    }

    /// `false` if there is one.
    async fn insert_address(&self, kind: &Kind, ip: Ipv4Addr, service: &Object) -> Result<bool, Status> {
        let mut address = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": ip.to_string(), "labels": {MANAGED_BY: ALLOCATOR, IP_FAMILY: "IPv4"}},
            "spec": {"parentRef": parent(service)},
        });
        metadata::prepare_create(kind, &mut address);
        Ok(self.objects.insert(kind, address, false).await?.is_some())
    }

    pub(super) async fn remove_address(&self, ip: Ipv4Addr, service: &Object) -> Result<(), Status> {
        self.objects.lister.caches.wait_for_newest().await?;
        let entry = self.objects.lister.caches.of(&*self.addresses_kind()?)?.get(&ip.to_string())?;
        match entry.map(|entry| entry.parse()) {
            Some(address) if is_of(&address, service) => self.delete_address(&address).await,
            _ => Ok(()),
        }
    }

    async fn delete_address(&self, address: &Object) -> Result<(), Status> {
        let kind = self.addresses_kind()?;
        let deleted = self
            .objects
            .modify(&kind, "", address.name(), false, |current| Ok(Next::Delete(current.object.clone())));
        match deleted.await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }
}

/// The Service is written, and so the request has succeeded; the next start repairs the rest.
pub(super) fn warn(ip: Ipv4Addr, result: Result<(), Status>) {
    if let Err(error) = result {
        tracing::warn!(%ip, %error, "cannot keep the IPAddress object of a Service");
    }
}

/// What came of a claim.
pub(super) enum Claim {
    Made,
    /// It is recorded as this Service's already.
    WasThere,
    Foreign,
}

/// Made so shortly ago that its Service may still come, as upstream.
fn is_young(address: &Object) -> bool {
    let made = address.meta().get("creationTimestamp").and_then(Value::as_str).unwrap_or_default();
    let age = made.parse::<Timestamp>().map(|made| Timestamp::now().duration_since(made));
    age.is_ok_and(|age| age < GRACE)
}

fn cluster_ip(service: &Object) -> Option<Ipv4Addr> {
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

fn parent(service: &Object) -> Value {
    json!({"group": "", "resource": "services", "namespace": service.namespace(), "name": service.name()})
}
