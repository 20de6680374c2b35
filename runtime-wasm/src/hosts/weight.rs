//! What the hosts' groups weigh: each the sum of its containers' shares, and the one they are all in the sum of these. On cgroup
//! v2 guests run there, beside the pods' groups; on v1 it is what hosts do for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use skiff_cgroup::Limits;

use super::{HostError, Hosts};
use crate::record::Record;

/// The kernel's least, and what a container weighs that asks for nothing.
const MIN_SHARES: u64 = 2;

/// The shares of every host that has a container.
fn shares<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<String, u64> {
    let mut hosts: BTreeMap<String, u64> = BTreeMap::new();
    for record in records.filter(|record| record.is_live()) {
        let host = hosts.entry(record.host.clone()).or_default();
        *host = host.saturating_add(record.cpu_shares.max(MIN_SHARES));
    }
    hosts
}

impl Hosts {
    /// Has the groups weighed again, soon. However often it is asked for meanwhile, it is done once.
    pub(crate) fn weigh(&self) {
        self.weigh.notify_one();
    }

    /// Blocks.
    fn weigh_now(&self) -> Result<(), HostError> {
        let hosts = shares(self.records.all()?.iter());
        let parent = self.parent()?;
        for name in parent.children()? {
            let limits = Limits {
                cpu_shares: Some(hosts.get(&name).copied().unwrap_or(MIN_SHARES)),
                ..Limits::default()
            };
            match parent.child(&name)?.set(&limits) {
                // It went meanwhile, with its host.
                Err(err) if err.is_not_found() => {}
                other => other?,
            }
        }
        let all = hosts.values().copied().fold(0, u64::saturating_add).max(MIN_SHARES);
        match parent.exists() {
            true => Ok(parent.set(&Limits { cpu_shares: Some(all), ..Limits::default() })?),
            false => Ok(()),
        }
    }
}

/// Weighs whenever it is asked for, until nobody has the hosts any more.
pub(super) async fn keep(hosts: Weak<Hosts>) {
    loop {
        let Some(asked) = hosts.upgrade().map(|hosts| hosts.weigh.clone()) else { return };
        asked.notified().await;
        let Some(hosts): Option<Arc<Hosts>> = hosts.upgrade() else { return };
        if let Ok(Err(err)) = tokio::task::spawn_blocking(move || hosts.weigh_now()).await {
            tracing::warn!(%err, "the control groups of Wasm hosts keep the weight they had");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessId;
    use skiff_cri::{RuntimeContainer, RuntimeState};

    #[test]
    fn a_host_weighs_what_its_live_containers_ask_for() {
        let record = |host: &str, cpu_shares, state| Record {
            container: RuntimeContainer {
                id: "c".to_owned(),
                sandbox_id: "s".to_owned(),
                state,
                pid: None,
                created_at_ns: 0,
                started_at_ns: 0,
                finished_at_ns: 0,
                exit_code: 0,
                reason: String::new(),
                message: String::new(),
            },
            host: host.to_owned(),
            process: ProcessId { pid: 1, start_time: 1, boot: 0 },
            cgroup: String::new(),
            cpu_shares,
        };
        let records = [
            record("a", 512, RuntimeState::Running),
            record("a", 0, RuntimeState::Created),
            record("a", 1024, RuntimeState::Exited),
            record("b", 100, RuntimeState::Running),
            record("c", 100, RuntimeState::Exited),
        ];
        let weighed: Vec<_> = shares(records.iter()).into_iter().collect();
        assert_eq!(weighed, [("a".to_owned(), 514), ("b".to_owned(), 100)]);
    }
}
