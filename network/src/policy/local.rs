//! The pods that have an address of this node, and which of them the rules know.
//!
//! ```text
//!  who attaches a pod                         who writes the rules
//!    admit ─ address, sandbox, pod ──────────▶ judged, written
//!      │ waits                                     │
//!      ▼                                           │
//!    the pod gets its interface ◀──────────────────┘
//!    forget ─────────────────────────────────▶ closed again
//! ```
//!
//! # Guarantees
//! - A pod gets its interface only once the rules for it stand: none of its packets goes by unjudged.
//! - Where it cannot be found out what policies say of a pod, it gets none, and the refusal says why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_client::ObjectKey;
use tokio::sync::{Notify, watch};

use super::state::LocalFacts;

/// Whose a sandbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
#[error("the rules of network policies do not stand for this pod yet, so that it gets no network: {why}")]
pub struct NotJudged {
    why: String,
}

/// How long a pod waits for its rules before its start is given up; it is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug)]
pub struct LocalPods {
    state: Mutex<State>,
    /// Something has been touched.
    pub(super) changed: Notify,
    /// Whether it is known what stood before this process.
    recalled: watch::Sender<bool>,
    /// Told whenever something has been judged.
    judged: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    pods: BTreeMap<Ipv4Addr, Local>,
    /// Since somebody asked last.
    touched: BTreeSet<Ipv4Addr>,
    /// Why pods wait, if they do.
    why: String,
}

#[derive(Debug)]
struct Local {
    facts: LocalFacts,
    is_judged: bool,
}

impl Default for LocalPods {
    fn default() -> LocalPods {
        let why = "nobody has begun to write them".to_owned();
        LocalPods {
            state: Mutex::new(State { pods: BTreeMap::new(), touched: BTreeSet::new(), why }),
            changed: Notify::new(),
            recalled: watch::Sender::new(false),
            judged: watch::Sender::new(()),
        }
    }
}

impl LocalPods {
    /// Names all pods that had their addresses before this process began. Nothing is written before that: it would close them.
    pub fn recall(&self, known: impl IntoIterator<Item = (String, Ipv4Addr, PodIdentity)>) {
        for (sandbox, address, pod) in known {
            self.put(&sandbox, address, pod);
        }
        self.recalled.send_replace(true);
    }

    pub(super) async fn recalled(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.recalled.subscribe().wait_for(|recalled| *recalled).await;
    }

    /// Tells of a sandbox's address, and returns once the rules stand for it.
    pub(crate) async fn admit(
        &self,
        sandbox: &str,
        address: Ipv4Addr,
        pod: PodIdentity,
    ) -> Result<(), NotJudged> {
        let mut judged = self.judged.subscribe();
        self.put(sandbox, address, pod);
        let stands = || {
            let state = self.state.lock();
            state.pods.get(&address).is_some_and(|local| local.is_judged && local.facts.sandbox == sandbox)
        };
        let wait = judged.wait_for(|()| stands());
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(_) => Ok(()),
            Err(_) => Err(NotJudged { why: self.state.lock().why.clone() }),
        }
    }

    fn put(&self, sandbox: &str, address: Ipv4Addr, pod: PodIdentity) {
        let PodIdentity { namespace, name, uid, labels } = pod;
        let pod = ObjectKey { namespace, name };
        let facts = LocalFacts { sandbox: sandbox.to_owned(), pod, uid, labels: Arc::new(labels) };
        let mut state = self.state.lock();
        if state.pods.get(&address).is_some_and(|local| local.facts == facts) {
            return;
        }
        state.pods.insert(address, Local { facts, is_judged: false });
        state.touched.insert(address);
        drop(state);
        self.changed.notify_one();
    }

    /// From now on its address is nobody's. A sandbox without one is no error.
    pub fn forget(&self, sandbox: &str) {
        let mut state = self.state.lock();
        let State { pods, touched, .. } = &mut *state;
        pods.retain(|address, local| {
            let stays = local.facts.sandbox != sandbox;
            if !stays {
                touched.insert(*address);
            }
            stays
        });
        drop(state);
        self.changed.notify_one();
    }

    /// What was touched since the last time, and who is there now.
    pub(super) fn take_touched(&self) -> Vec<(Ipv4Addr, Option<LocalFacts>)> {
        let mut state = self.state.lock();
        let touched = std::mem::take(&mut state.touched);
        let now = |address: &Ipv4Addr| state.pods.get(address).map(|local| local.facts.clone());
        touched.iter().map(|address| (*address, now(address))).collect()
    }

    /// Has everything be looked at, by who does not know anything yet.
    pub(super) fn touch_all(&self) {
        let mut state = self.state.lock();
        state.touched = state.pods.keys().copied().collect();
    }

    /// The rules stand as of the sandboxes that they are written for.
    pub(super) fn stand<'s>(&self, written_for: impl Fn(Ipv4Addr) -> Option<&'s str>) {
        let mut state = self.state.lock();
        for (address, local) in &mut state.pods {
            local.is_judged |= written_for(*address) == Some(local.facts.sandbox.as_str());
        }
        drop(state);
        self.judged.send_replace(());
    }

    #[cfg(test)]
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What who writes the rules does.
    #[cfg(test)]
    pub(crate) async fn judge(&self, kernel: &mut super::Kernel) {
        for (address, facts) in self.take_touched() {
            kernel.state.set_local(address, facts);
        }
        kernel.apply().await.unwrap();
        self.stand(|address| kernel.state.sandbox(address));
    }

    pub(super) fn wait_because(&self, why: impl Into<String>) {
        self.state.lock().why = why.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 2);

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_for_rules_of_its_own_sandbox_and_is_told_why() {
        let local = LocalPods::default();
        local.wait_because("the API is away");
        let refused = local.admit("a", ADDRESS, PodIdentity::default()).await.unwrap_err();
        assert!(refused.to_string().ends_with("no network: the API is away"), "{refused}");
        local.stand(|_| Some("another"));
        local.admit("a", ADDRESS, PodIdentity::default()).await.unwrap_err();
        local.stand(|_| Some("a"));
        local.admit("a", ADDRESS, PodIdentity::default()).await.unwrap();
        local.forget("a");
        local.admit("b", ADDRESS, PodIdentity::default()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_and_goes_is_told_once() {
        let local = LocalPods::default();
        let pod = PodIdentity { name: "p".into(), ..PodIdentity::default() };
        local.recall([("a".to_owned(), ADDRESS, pod)]);
        local.recalled().await;
        let touched = local.take_touched();
        assert!(matches!(&touched[..], [(ADDRESS, Some(facts))] if facts.pod.name == "p"), "{touched:?}");
        assert!(local.take_touched().is_empty());
        local.forget("a");
        assert_eq!(local.take_touched(), [(ADDRESS, None)]);
        local.touch_all();
        assert!(local.take_touched().is_empty());
    }
}
