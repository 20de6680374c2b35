//! NetworkPolicies: who may reach this node's pods, and whom they may reach, as nftables maps, sets and chains.
//!
//! [`rules`] reads policies, [`state`] keeps up what the rules are to be, change by change, [`script`] writes what has changed as one nft
//! transaction. This file wakes on changes and applies.
//!
//! ```text
//!  from a pod: egress:  ip → return, or goto egress_X     ┐ who is in neither map is dropped: it is not judged yet,
//!  to a pod:   ingress: ip → return, or goto ingress_X    ┘ or its address is nobody's
//!  ingress_X:  ip saddr @peers_Y tcp dport { … } return   (one rule for each thing that is let through; then drop)
//!  peers_Y:    addresses of pods, shared by all policies with equal peers
//!  ports_Z:    ip . proto . port, for ports with names
//! ```
//!
//! # Guarantees
//! - A pod has no interface before its rules stand ([`LocalPods`]).
//! - A change writes the elements that it changes, and chains only of pods of which it changes what is let through.
//! - At the start, after a refused transaction, when others have flushed rules and once an hour, the whole table is written anew in one
//!   transaction. The rules stay when the process ends.
//!
//! # Caveats
//! - A connection that was let through once goes on until it ends, whatever policies say later.
//! - What is between a pod and its own node is not judged, but for the cluster's DNS.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Resource;
use parking_lot::Mutex;
use skiff_client::{Change, Informer, Informers, ObjectKey, WorkQueue, key_of};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::changes::LOOK_EVERY;
use crate::generation::generation;
use crate::nft::{self, NftError};
use rules::{Policy, Protocol};
use seen::Pods;
use state::{NamedPort, PodFacts, State};

mod local;
pub(crate) mod rules;
pub(crate) mod script;
mod seen;
pub(crate) mod selector;
pub(crate) mod state;

pub use local::{LocalPods, NotJudged, PodIdentity};
pub use seen::PodSource;

/// What must be known of the node.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// This node's pod range.
    pub pod_cidr: String,
    /// Judged like a pod with the label that the cluster's DNS has elsewhere, though it is the node itself.
    pub cluster_dns: Ipv4Addr,
    pub pods: PodSource,
}

/// Where others run the cluster's DNS in pods, and by which label and ports policies name it.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");
const DNS_PORTS: [(&str, Protocol); 2] = [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)];

/// Changes that come within this time of each other share a transaction.
const GATHER: Duration = Duration::from_millis(5);
/// How long emptied chains stay: before Linux 6.2, they count as used for a moment.
pub(crate) const CHAIN_REST: Duration = Duration::from_secs(2);
/// Others may change elements of the rules' sets, which is not looked for.
const FULL_SYNC: Duration = Duration::from_secs(3600);

/// What is to be looked at again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Policy(ObjectKey),
    Namespace(String),
    Pod(ObjectKey),
}

/// What waits to be looked at, and whom to wake for it.
#[derive(Clone, Default)]
struct Wanted {
    keys: Arc<Mutex<HashSet<Key>>>,
    queue: WorkQueue<()>,
}

impl Wanted {
    fn add(&self, key: Key) {
        self.keys.lock().insert(key);
        self.queue.add_after((), GATHER);
    }
}

fn key<K: Resource>(change: &Change<K>) -> ObjectKey {
    change.object().map(|object| key_of(&**object)).unwrap_or_default()
}

/// See the module's documentation.
pub struct PolicyEnforcer {
    config: PolicyConfig,
    informers: Informers,
    policies: Informer<NetworkPolicy>,
    namespaces: Informer<Namespace>,
    /// Followed from the first policy on: a cluster without any needs to know of no other node's pods.
    pods: Option<Pods>,
    local: Arc<LocalPods>,
    wanted: Wanted,
}

impl PolicyEnforcer {
    pub fn new(config: PolicyConfig, informers: &Informers, local: Arc<LocalPods>) -> PolicyEnforcer {
        let (policies, namespaces) = (informers.of::<NetworkPolicy>(), informers.of::<Namespace>());
        let wanted = Wanted::default();
        let wake = wanted.clone();
        policies.on_change(move |change| wake.add(Key::Policy(key(change))));
        let wake = wanted.clone();
        namespaces.on_change(move |change| wake.add(Key::Namespace(key(change).name)));
        PolicyEnforcer {
            config,
            informers: informers.clone(),
            policies,
            namespaces,
            pods: None,
            local,
            wanted,
        }
    }

    /// Runs until `shutdown`. The rules stay, so that pods stay as closed as they are while a new process starts.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.informed() => {}
            () = shutdown.cancelled() => return,
        }
        let mut kernel = Kernel::new(self.config.clone());
        self.local.touch_all();
        self.wanted.queue.add(());
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Cancel-safe: see `WorkQueue::get`.
                key = self.wanted.queue.get() => if key.is_none() { return },
                // Both only wait; what was touched is still so the next time.
                () = self.local.changed.notified() => {
                    self.wanted.queue.add_after((), GATHER);
                    continue;
                }
                _ = looks.tick() => {
                    if !kernel.stands().await {
                        warn!("rules of network policies have been changed by somebody else; writing all of them anew");
                        self.wanted.queue.add(());
                    }
                    continue;
                }
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = self.know_pods() => {}
                () = shutdown.cancelled() => return,
            }
            self.look(&mut kernel.state);
            let applied = kernel.apply().await;
            self.wanted.queue.done(&());
            match applied {
                Ok(()) => {
                    self.wanted.queue.forget(&());
                    self.local.stand(|address| kernel.state.sandbox(address));
                    let next = if kernel.rests() { CHAIN_REST } else { FULL_SYNC };
                    self.wanted.queue.add_after((), next);
                }
                Err(error) => {
                    let n_failures = self.wanted.queue.n_failures(&());
                    warn!(%error, n_failures, "rules of network policies were refused; writing all of them anew");
                    self.local.wait_because(error.to_string());
                    self.wanted.queue.retry(());
                }
            }
        }
    }

    async fn informed(&self) {
        self.local.wait_because("the pods of this node are not known yet");
        self.local.recalled().await;
        self.local.wait_because("the API's network policies have not been read yet");
        self.policies.synced().await;
        self.local.wait_because("the API's namespaces have not been read yet");
        self.namespaces.synced().await;
    }

    /// Where there are policies, the pods of the whole cluster have to be known before one is followed: whoever is let through by one
    /// would be shut out until then.
    async fn know_pods(&mut self) {
        let is_policy = |key: &Key| matches!(key, Key::Policy(_));
        if self.pods.is_none() && self.wanted.keys.lock().iter().any(is_policy) {
            let wake = self.wanted.clone();
            let follow = move |pod| wake.add(Key::Pod(pod));
            self.pods = Some(Pods::follow(self.config.pods, &self.informers, follow));
        }
        if let Some(pods) = &self.pods {
            self.local.wait_because("the pods that the API shows nodes have not been read yet");
            pods.synced().await;
        }
    }

    /// Brings the state to what there is.
    fn look(&self, state: &mut State) {
        let keys = std::mem::take(&mut *self.wanted.keys.lock());
        for key in keys {
            match key {
                Key::Policy(key) => {
                    let complain =
                        |why: String| warn!(policy = %key, "a network policy is not as it asks: {why}");
                    let policy = self.policies.get(&key).map(|policy| Policy::of(&policy, complain));
                    state.set_policy(&key, policy);
                }
                Key::Namespace(name) => {
                    let namespace = self.namespaces.get(&ObjectKey::new("", name.as_str()));
                    let labels = namespace.as_ref().and_then(|namespace| namespace.metadata.labels.as_ref());
                    state.set_namespace(&name, labels);
                }
                Key::Pod(key) => state.set_pod(&key, self.pods.as_ref().and_then(|pods| pods.get(&key))),
            }
        }
        for (address, facts) in self.local.take_touched() {
            state.set_local(address, facts);
        }
    }

    /// Removes the rules. For the end of a node, not for a restart.
    pub async fn remove_rules() -> Result<(), NftError> {
        nft::apply(&script::remove()).await
    }
}

/// What nft is to hold, and what is known of what it holds.
pub(crate) struct Kernel {
    config: PolicyConfig,
    pub(crate) state: State,
    /// When everything was written; `None` if that has to be done.
    whole_at: Option<Instant>,
    /// Emptied chains that are still to be deleted, and since when.
    resting: BTreeMap<String, Instant>,
    /// How many transactions of nft there had been when the rules were seen to be right.
    generation: Option<u32>,
}

impl Kernel {
    pub(crate) fn new(config: PolicyConfig) -> Kernel {
        let mut state = State::default();
        let dns = PodFacts {
            uid: String::new(),
            labels: Arc::new([(DNS_LABEL.0.to_owned(), DNS_LABEL.1.to_owned())].into()),
            addresses: vec![config.cluster_dns],
            ports: DNS_PORTS
                .map(|(name, protocol)| NamedPort { name: name.into(), protocol, number: 53 })
                .into(),
        };
        // No pod has no name.
        state.set_pod(&ObjectKey::new(DNS_NAMESPACE, ""), Some(dns));
        Kernel { config, state, whole_at: None, resting: BTreeMap::new(), generation: None }
    }

    /// Writes what has changed, or everything where what stands is not known well enough.
    pub(crate) async fn apply(&mut self) -> Result<(), NftError> {
        let now = Instant::now();
        let changes = self.state.changes();
        let is_whole = self.whole_at.is_none_or(|at| now.duration_since(at) >= FULL_SYNC);
        let script = match is_whole {
            true => script::whole(&self.config, &self.state),
            false => script::difference(&self.state, &changes),
        };
        if !script.is_empty() {
            debug!(n_lines = script.lines().count(), is_whole, "applying rules of network policies");
            if let Err(error) = nft::apply(&script).await {
                self.whole_at = None;
                return Err(error);
            }
            self.generation = generation().ok();
        }
        self.state.written();
        if is_whole {
            self.whole_at = Some(now);
            self.resting.clear();
        } else {
            self.resting.extend(changes.old_chains.into_iter().map(|name| (name, now)));
            self.resting.retain(|name, _| !self.state.chains().contains_key(name));
        }
        self.delete_rested().await;
        Ok(())
    }

    /// What rests has rested long enough.
    #[cfg(test)]
    pub(crate) fn rest(&mut self) {
        self.resting.values_mut().for_each(|at| *at -= CHAIN_REST);
    }

    /// Whether emptied chains are still there.
    fn rests(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Deletes the chains that have rested long enough. What is refused stays, empty, until everything is written anew.
    async fn delete_rested(&mut self) {
        let now = Instant::now();
        let (due, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.resting)
            .into_iter()
            .partition(|(_, at)| now.duration_since(*at) >= CHAIN_REST);
        self.resting = rest;
        if due.is_empty() {
            return;
        }
        let script = script::delete_chains(due.keys().map(String::as_str));
        match nft::apply(&script).await {
            Ok(()) => self.generation = generation().ok(),
            Err(error) => debug!(%error, n_chains = due.len(), "emptied chains are still in use"),
        }
    }

    /// Whether the rules are as they were written, as far as there is reason to doubt it. Where not, they are written anew.
    pub(crate) async fn stands(&mut self) -> bool {
        if self.whole_at.is_none() {
            return true;
        }
        let now = generation().ok();
        let last = std::mem::replace(&mut self.generation, now);
        if now.is_some() && now == last {
            return true;
        }
        let stands = match nft::list(script::TABLE).await {
            Ok(listing) => script::stands(&self.config, &self.state, &listing),
            // Where that cannot be read, they are not.
            Err(_) => false,
        };
        if !stands {
            self.whole_at = None;
        }
        stands
    }
}
