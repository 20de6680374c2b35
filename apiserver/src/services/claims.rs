//! What Services are given, where several servers give it out over one store.
//!
//! ```text
//!  pick, as this server knows it ─▶ claim each address: create its IPAddress ─▶ claim the ports: compare and swap of their range
//!    ▲                                    │ somebody else has it                       │
//!    └──── once this server knows that ◀──┴────────────────────────────────────────────┘          then write the Service
//! ```
//!
//! # Guarantees
//! Nothing is given out twice, whichever server is asked: what records an address or a port is written before the Service is.
//! What a server claimed and died over is given back by [`Services::repair`] of any.
//!
//! # Caveats
//! A number is one port here, whatever its protocol, as upstream has it: the range is upstream's object in upstream's place, so that
//! a stock server can go on with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skiff_api::{Kind, Object, Status};
use tokio_util::sync::CancellationToken;

use super::Services;
use super::addresses::{self, Claim};
use super::allocator::{Allocation, Held, Write, numbers};
use super::ports::{NODE_PORTS, Ports};
use crate::call::is_core;
use crate::failure::store_failure;
use crate::objects::MAX_ATTEMPTS;
use crate::store::{self, Expect, Revision, Sharing, Written};

const RANGE: &str = "/registry/ranges/servicenodeports";
/// How often something else is picked, where another server was faster.
const CLAIM_ATTEMPTS: usize = 16;
/// As upstream.
const REPAIR_EVERY: Duration = Duration::from_secs(3 * 60);
/// A port that no Service has is given back only once it was found so often: a server may be about to write the Service.
const ROUNDS_TO_LEAK: u32 = 3;

impl Services {
    /// Completes a Service with addresses and ports, and claims them; of other kinds nothing is done.
    pub(crate) async fn allocate(
        &self,
        kind: &Kind,
        service: &mut Object,
        old: Option<&Object>,
        write: Write,
    ) -> Result<Allocation, Status> {
        if self.objects.store.sharing() == Sharing::Exclusive || !is_core(kind, "Service") {
            return self.allocator.allocate(kind, service, old, write, None);
        }
        for _ in 0..CLAIM_ATTEMPTS {
            let range = self.port_range().await?;
            let mut candidate = service.clone();
            let mut allocation =
                self.allocator.allocate(kind, &mut candidate, old, write, Some(range.ports.clone()))?;
            if write == Write::Dry || self.claim(&mut allocation, &candidate, old, range).await? {
                *service = candidate;
                return Ok(allocation);
            }
            // What was lost is known once this has returned.
            self.objects.lister.caches.wait_for_newest().await?;
        }
        Err(Status::too_many_requests(
            "addresses and ports are being given out elsewhere, please try again",
            1,
        ))
    }

    /// `false` where another server was faster with any of it: then nothing of it is claimed.
    async fn claim(
        &self,
        allocation: &mut Allocation,
        service: &Object,
        old: Option<&Object>,
        range: PortRange,
    ) -> Result<bool, Status> {
        let (ips, _) = allocation.addresses();
        for ip in ips {
            match self.claim_address(ip, service).await? {
                Claim::Made => allocation.claimed.push(Held::Ip(ip)),
                Claim::WasThere => {}
                Claim::Foreign => {
                    self.unclaim(allocation, service).await;
                    return Ok(false);
                }
            }
        }
        let before = old.map(numbers).unwrap_or_default();
        let wanted: BTreeSet<u16> = allocation.ports().difference(&before).copied().collect();
        if wanted.is_empty() {
            return Ok(true);
        }
        if !self.claim_ports(&wanted, range).await? {
            self.unclaim(allocation, service).await;
            return Ok(false);
        }
        allocation.claimed_ports = wanted;
        Ok(true)
    }

    async fn claim_ports(&self, wanted: &BTreeSet<u16>, first: PortRange) -> Result<bool, Status> {
        let mut range = first;
        // In this process one after the other: only other servers are raced with.
        let _turn = self.turns.lock().await;
        for _ in 0..MAX_ATTEMPTS {
            if wanted.iter().any(|port| range.ports.has(*port)) {
                return Ok(false);
            }
            wanted.iter().for_each(|port| range.ports.set(*port));
            match self.write_range(&range).await? {
                None => return Ok(true),
                Some(newer) => range = newer,
            }
        }
        Ok(false)
    }

    /// Gives back what was claimed for a Service that does not come to be.
    pub(crate) async fn unclaim(&self, allocation: &mut Allocation, service: &Object) {
        for one in std::mem::take(&mut allocation.claimed) {
            if let Held::Ip(ip) = one {
                addresses::warn(ip, self.remove_address(ip, service).await);
            }
        }
        self.give_ports_back(std::mem::take(&mut allocation.claimed_ports)).await;
    }

    /// Has others take ports that no Service has any more. What cannot be written now is repaired.
    pub(super) async fn give_ports_back(&self, ports: BTreeSet<u16>) {
        if ports.is_empty() || self.objects.store.sharing() == Sharing::Exclusive {
            return;
        }
        let _turn = self.turns.lock().await;
        let done = self.change_range(|range| ports.iter().for_each(|port| range.clear(*port))).await;
        if let Err(error) = done {
            tracing::warn!(?ports, %error, "cannot give node ports back; they are found in a while");
        }
    }

    async fn change_range(&self, mut change: impl FnMut(&mut Ports)) -> Result<(), Status> {
        let mut range = self.port_range().await?;
        for _ in 0..MAX_ATTEMPTS {
            let before = range.ports.clone();
            change(&mut range.ports);
            if range.ports == before && range.revision.is_some() {
                return Ok(());
            }
            match self.write_range(&range).await? {
                None => return Ok(()),
                Some(newer) => range = newer,
            }
        }
        Err(Status::unavailable("the range of node ports is written by too many at once"))
    }

    /// The range as it is stored, or as the Services have it where it never was.
    async fn port_range(&self) -> Result<PortRange, Status> {
        match self.objects.store.get(RANGE).await.map_err(|e| store_failure(&e))? {
            Some(found) => PortRange::read(&found),
            None => {
                let mut range = PortRange::default();
                self.used_ports().await?.into_iter().for_each(|port| range.ports.set(port));
                Ok(range)
            }
        }
    }

    async fn used_ports(&self) -> Result<BTreeSet<u16>, Status> {
        self.objects.lister.caches.wait_for_newest().await?;
        let (_, services) = self.objects.lister.cache("", "v1", "services")?.snapshot()?;
        Ok(services.values().flat_map(|entry| numbers(&entry.parse())).collect())
    }

    /// Writes the range, if it is still as it was read; else how it is now.
    async fn write_range(&self, range: &PortRange) -> Result<Option<PortRange>, Status> {
        let expect = range.revision.map_or(Expect::Absent, Expect::ModRevision);
        let write = store::Write::put(RANGE, range.to_json().to_string(), expect);
        match self.objects.store.write(write).await.map_err(|e| store_failure(&e))? {
            Written::Done { .. } => Ok(None),
            Written::Mismatch { current: Some(found) } => PortRange::read(&found).map(Some),
            Written::Mismatch { current: None } => self.port_range().await.map(Some),
        }
    }

    /// Puts right, now and then, what servers have left that ended in between.
    pub(crate) async fn repair(self: Arc<Self>, closed: CancellationToken) {
        let mut leaks = HashMap::new();
        loop {
            let mut repair = async || {
                self.repair_addresses().await?;
                self.repair_ports(&mut leaks).await
            };
            let Some(done) = closed.run_until_cancelled(repair()).await else { return };
            if let Err(error) = done {
                tracing::warn!(%error, "cannot look after the addresses and ports of Services; tried again in a while");
            }
            if closed.run_until_cancelled(tokio::time::sleep(REPAIR_EVERY)).await.is_none() {
                return;
            }
        }
    }

    async fn repair_ports(&self, leaks: &mut HashMap<u16, u32>) -> Result<(), Status> {
        // The range first: a Service that is written later has claimed its ports in a newer one, which is not written over.
        let range = self.port_range().await?;
        let used = self.used_ports().await?;
        let found = std::mem::take(leaks);
        let (ports, left) = rebuilt(&range.ports, &used, &found);
        *leaks = left;
        if ports != range.ports || range.revision.is_none() {
            // Whoever was faster has it right; the next round looks again.
            self.write_range(&PortRange { ports, ..range }).await?;
        }
        Ok(())
    }
}

/// The ports that are to be taken, and how often those were found that no Service has.
fn rebuilt(stored: &Ports, used: &BTreeSet<u16>, leaks: &HashMap<u16, u32>) -> (Ports, HashMap<u16, u32>) {
    let (mut ports, mut left) = (Ports::default(), HashMap::new());
    for port in NODE_PORTS {
        if used.contains(&port) {
            ports.set(port);
        } else if stored.has(port) {
            let rounds = leaks.get(&port).copied().unwrap_or(0) + 1;
            if rounds <= ROUNDS_TO_LEAK {
                ports.set(port);
                left.insert(port, rounds);
            }
        }
    }
    (ports, left)
}

/// The object that records which ports are taken: upstream's `RangeAllocation`.
#[derive(Clone, Default)]
struct PortRange {
    ports: Ports,
    revision: Option<Revision>,
}

impl PortRange {
    fn read(found: &store::KeyValue) -> Result<PortRange, Status> {
        let refuse = |why: &dyn std::fmt::Display| {
            Status::internal(format!("{RANGE} in the store is not what this server writes there: {why}"))
        };
        let object: Value = serde_json::from_slice(&found.value).map_err(|e| refuse(&e))?;
        let data = object["data"].as_str().unwrap_or_default();
        let ports = Ports(STANDARD.decode(data).map_err(|e| refuse(&e))?).trimmed();
        let (range, ours) = (object["range"].as_str().unwrap_or_default(), said());
        if range != ours {
            return Err(refuse(&format!("it is of {range:?}, and ports are given out of {ours}")));
        }
        Ok(PortRange { ports, revision: Some(found.mod_revision) })
    }

    fn to_json(&self) -> Value {
        json!({
            "kind": "RangeAllocation", "apiVersion": "v1", "metadata": {},
            "range": said(), "data": STANDARD.encode(&self.ports.0),
        })
    }
}

/// The range, as upstream writes it.
fn said() -> String {
    format!("{}-{}", NODE_PORTS.start(), NODE_PORTS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_no_service_has_is_given_back_after_three_rounds_and_one_that_is_missing_at_once() {
        let mut stored = Ports::default();
        stored.set(30001);
        let used = BTreeSet::from([30002]);
        let mut leaks = HashMap::new();
        for round in 1..=ROUNDS_TO_LEAK {
            let (ports, left) = rebuilt(&stored, &used, &leaks);
            assert!(ports.has(30001) && ports.has(30002), "round {round}");
            (stored, leaks) = (ports, left);
        }
        let (ports, left) = rebuilt(&stored, &used, &leaks);
        assert!(!ports.has(30001) && ports.has(30002));
        assert!(left.is_empty());
        // One that is used after all is counted anew.
        let (_, left) = rebuilt(&stored, &BTreeSet::from([30001, 30002]), &leaks);
        assert!(left.is_empty());
    }
}
