//! Who may hold connections: shares for each address, for each identity, and for all that have not said who they are.
//!
//! ```text
//! accepted ─▶ unidentified ──first request with credentials──▶ identified
//!                │ too many of them: the oldest ends               │ more than the identity's share: it ends
//!                └ no request within 10 s: it ends                 └ of an administrator or a node: always kept
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use skiff_api::Status;
use tokio_util::sync::CancellationToken;

use super::too_many;
use crate::auth::{ANONYMOUS, UserInfo};
use crate::threads::Class;

/// How long a connection may be silent before its first request: after the handshake, after an HTTP/2 preface.
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// One for each node of a large cluster, and for others.
    all: usize,
    /// Of all, those that only administrators, nodes and components get.
    reserved: usize,
    address: usize,
    identity: usize,
    unidentified: usize,
}

const SHARES: Shares =
    Shares { all: 16_384, reserved: 2048, address: 8192, identity: 4096, unidentified: 2048 };

pub(crate) struct Connections {
    shares: Shares,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    n_open: usize,
    next_id: u64,
    by_address: HashMap<IpAddr, usize>,
    by_identity: HashMap<String, usize>,
    /// The oldest first.
    unidentified: BTreeMap<u64, CancellationToken>,
}

impl Default for Connections {
    fn default() -> Self {
        Connections { shares: SHARES, state: Mutex::default() }
    }
}

/// The place of one connection, given back when it is dropped.
pub(crate) struct Connection {
    id: u64,
    address: IpAddr,
    identity: Mutex<Option<String>>,
    asked: AtomicBool,
    /// Cancelled when the connection has to make room.
    pub(crate) ended: CancellationToken,
    connections: Arc<Connections>,
}

impl Connections {
    /// A place for a connection from an address; `None` if it has to be closed at once.
    pub(crate) fn open(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Connection>> {
        let mut state = self.state.lock();
        let from_here = state.by_address.get(&address).copied().unwrap_or(0);
        if from_here >= self.shares.address {
            return None;
        }
        // What is reserved may be used to say who one is, by many at once: one after the other, nobody would come so far.
        let is_full = state.n_open >= self.shares.all - self.shares.reserved;
        let may_wait = if is_full { self.shares.reserved / 2 } else { self.shares.unidentified };
        let has_to_go = state.n_open >= self.shares.all || state.unidentified.len() >= may_wait;
        match if has_to_go { state.unidentified.pop_first() } else { None } {
            Some((_, oldest)) => oldest.cancel(),
            None if state.n_open >= self.shares.all => return None,
            None => {}
        }
        let (id, ended) = (state.next_id, CancellationToken::new());
        state.next_id += 1;
        state.n_open += 1;
        *state.by_address.entry(address).or_default() += 1;
        state.unidentified.insert(id, ended.clone());
        let (identity, asked, connections) = (Mutex::default(), AtomicBool::new(false), self.clone());
        Some(Arc::new(Connection { id, address, identity, asked, ended, connections }))
    }
}

impl Connection {
    /// Whether a request has come.
    pub(crate) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn note_request(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Takes note of who asks. Who has no name stays unidentified; the first name counts for the connection.
    ///
    /// # Errors
    /// 429 if the identity has its share already. The connection ends.
    pub(crate) fn identify(&self, user: &UserInfo) -> Result<(), Status> {
        let mut identity = self.identity.lock();
        if user.name == ANONYMOUS || identity.is_some() {
            return Ok(());
        }
        let shares = self.connections.shares;
        let mut state = self.connections.state.lock();
        state.unidentified.remove(&self.id);
        let held = state.by_identity.entry(user.name.clone()).or_default();
        let is_over = *held >= shares.identity;
        *held += 1;
        *identity = Some(user.name.clone());
        let is_full = state.n_open > shares.all - shares.reserved;
        let is_privileged = Class::of(Some(user)) != Class::Others;
        if is_over || (is_full && !is_privileged) {
            self.ended.cancel();
            return Err(too_many(1));
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.connections.state.lock();
        state.n_open -= 1;
        state.unidentified.remove(&self.id);
        release(&mut state.by_address, &self.address);
        if let Some(identity) = self.identity.lock().take() {
            release(&mut state.by_identity, &identity);
        }
    }
}

fn release<K: std::hash::Hash + Eq>(held: &mut HashMap<K, usize>, key: &K) {
    if let Some(n) = held.get_mut(key) {
        *n -= 1;
        if *n == 0 {
            held.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections() -> Arc<Connections> {
        let shares = Shares { all: 12, reserved: 4, address: 10, identity: 3, unidentified: 4 };
        Arc::new(Connections { shares, state: Mutex::default() })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_oldest_that_did_not_say_who_it_is_makes_room() {
        let connections = connections();
        let open: Vec<_> = (0..5).map(|n| connections.open(address(n)).expect("a place")).collect();
        let ended: Vec<bool> = open.iter().map(|one| one.ended.is_cancelled()).collect();
        assert_eq!(ended, [true, false, false, false, false]);
    }

    #[test]
    fn an_address_and_an_identity_have_shares() {
        let connections = connections();
        let jane = UserInfo::new("jane", &[]);
        let mut held = Vec::new();
        for _ in 0..3 {
            let one = connections.open(address(1)).expect("a place");
            one.identify(&jane).expect("within the share");
            held.push(one);
        }
        let fourth = connections.open(address(2)).expect("a place");
        assert_eq!(fourth.identify(&jane).expect_err("past the share").code, 429);
        assert!(fourth.ended.is_cancelled());
        drop(fourth);
        held.pop();
        connections.open(address(2)).expect("a place").identify(&jane).expect("one was given back");
        let mut same: Vec<_> = Vec::new();
        while let Some(one) = connections.open(address(1)) {
            same.push(one);
        }
        assert_eq!(held.len() + same.len(), 10);
        drop((held, same));
        let state = connections.state.lock();
        assert!(state.n_open == 0 && state.by_address.is_empty() && state.by_identity.is_empty());
    }

    #[test]
    fn an_administrator_and_a_node_always_get_one() {
        let connections = connections();
        let mut held = Vec::new();
        // As many names as it takes to fill what is for everybody.
        for n in 0..8 {
            let one = connections.open(address(n)).expect("a place");
            one.identify(&UserInfo::new(format!("user-{n}"), &[])).expect("a share");
            held.push(one);
        }
        let next = connections.open(address(20)).expect("it may still say who it is");
        assert_eq!(next.identify(&UserInfo::new("late", &[])).expect_err("full").code, 429);
        drop(next);
        for (name, group) in [("admin", "system:masters"), ("system:node:n", "system:nodes")] {
            let one = connections.open(address(21)).expect("a place");
            one.identify(&UserInfo::new(name, &[group])).expect("always");
            held.push(one);
        }
    }
}
