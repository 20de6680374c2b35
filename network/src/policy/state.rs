//! What the node's rules are to be, kept up change by change. Pure.
//!
//! ```text
//!  pod with an address here ─ policies that select it ─┬─ ingress: open, or a chain of what they let through
//!                                                      └─ egress: the same
//!  chain ─ what is let through ─ sets: addresses of peers, numbers of named ports
//! ```
//!
//! # Guarantees
//! - Pods that the same policies select share a chain, and equal peers share a set, whatever policies they are of.
//! - Only what pods of this node need is kept: a policy that selects none of them costs nothing but its place in an index.
//! - A change of a pod looks at the policies of its namespace and at peers that its labels may match; a change of a policy at
//!   this node's pods of its namespace, and at the pods of peers that nobody had named before.
//! - [`State::changes`] says how what is written differs from what is to be, until [`State::written`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use skiff_client::ObjectKey;

use super::rules::{Allow, Direction, Namespaces, Peer, Policy, Protocol, What, Who};
use super::selector::{Labels, Selector, SelectorIndex};
use crate::nft::fingerprint;

/// A pod of the cluster, as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    pub(crate) labels: Arc<Labels>,
    /// None of a pod that has ended, or that is on its node's network.
    pub(crate) addresses: Vec<Ipv4Addr>,
    pub(crate) ports: Arc<[NamedPort]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPort {
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

/// A sandbox with an address of this node, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalFacts {
    pub(crate) sandbox: String,
    pub(crate) pod: ObjectKey,
    pub(crate) uid: String,
    /// As they were when the sandbox was made.
    pub(crate) labels: Arc<Labels>,
}

/// A set of nft, by what is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SetKey {
    /// Addresses of pods.
    Peers(Peer),
    /// Addresses of pods with the number that each gives to a port.
    Named(Peer, Protocol, Arc<str>),
    /// The same of this node's pods.
    NamedHere(Protocol, Arc<str>),
}

impl SetKey {
    /// The same for the same content in every version of the program.
    pub(crate) fn name(&self) -> String {
        match self {
            SetKey::Peers(peer) => format!("peers_{}", fingerprint(&peer.to_string())),
            SetKey::Named(peer, protocol, name) => {
                format!("ports_{}", fingerprint(&format!("{} {name} {peer}", protocol.name())))
            }
            SetKey::NamedHere(protocol, name) => {
                format!("ports_here_{}", fingerprint(&format!("{} {name}", protocol.name())))
            }
        }
    }

    fn peer(&self) -> Option<&Peer> {
        match self {
            SetKey::Peers(peer) | SetKey::Named(peer, ..) => Some(peer),
            SetKey::NamedHere(..) => None,
        }
    }

    fn port(&self) -> Option<(Protocol, &str)> {
        match self {
            SetKey::Peers(_) => None,
            SetKey::Named(_, protocol, name) | SetKey::NamedHere(protocol, name) => Some((*protocol, name)),
        }
    }

    /// What of a pod belongs into the set, if it is one of its pods.
    fn elements(&self, addresses: &[Ipv4Addr], ports: &[NamedPort]) -> Vec<Element> {
        let number = match self.port() {
            None => None,
            Some((protocol, name)) => {
                let found = ports.iter().find(|port| port.protocol == protocol && *port.name == *name);
                match found {
                    Some(port) => Some((protocol, port.number)),
                    None => return Vec::new(),
                }
            }
        };
        addresses.iter().map(|address| (*address, number)).collect()
    }
}

pub(crate) type Element = (Ipv4Addr, Option<(Protocol, u16)>);

impl Allow {
    /// The set that a rule for this looks into besides that of [`Allow::peers`].
    pub(crate) fn ports(&self, direction: Direction) -> Option<SetKey> {
        let What::Named(protocol, name) = &self.what else { return None };
        Some(match (direction, &self.who) {
            (Direction::Ingress, _) => SetKey::NamedHere(*protocol, name.clone()),
            (Direction::Egress, Who::Pods(peer)) => SetKey::Named(peer.clone(), *protocol, name.clone()),
            (Direction::Egress, _) => SetKey::Named(Peer::everyone(), *protocol, name.clone()),
        })
    }

    /// The set of the other side's addresses.
    pub(crate) fn peers(&self, direction: Direction) -> Option<SetKey> {
        match (&self.who, &self.what, direction) {
            // The destinations are in the set of ports.
            (Who::Pods(_), What::Named(..), Direction::Egress) => None,
            (Who::Pods(peer), ..) => Some(SetKey::Peers(peer.clone())),
            _ => None,
        }
    }
}

/// What happens to traffic of a pod in a direction: it is let through, or judged by a chain.
pub(crate) type Verdict = Option<String>;

/// Rules of what policies let through; all else is dropped.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) direction: Direction,
    pub(crate) allows: Vec<Allow>,
    n_pods: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Set {
    n_users: usize,
    /// With how many pods have it: an address may for a moment be two pods'.
    elements: HashMap<Element, usize>,
}

impl Set {
    pub(crate) fn elements(&self) -> impl Iterator<Item = Element> {
        self.elements.keys().copied()
    }

    #[cfg(test)]
    pub(super) fn has(&self, element: Element) -> bool {
        self.elements.contains_key(&element)
    }
}

/// A pod as a member of sets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    labels: Arc<Labels>,
    addresses: Vec<Ipv4Addr>,
    /// Those of them that are of this node.
    here: Vec<Ipv4Addr>,
    ports: Arc<[NamedPort]>,
}

#[derive(Debug)]
struct Local {
    facts: LocalFacts,
    /// By direction.
    verdicts: [Verdict; 2],
}

#[derive(Debug, Default)]
struct Namespace {
    labels: Labels,
    members: HashSet<String>,
    /// Names of pods by label and value.
    labelled: HashMap<(String, String), HashSet<String>>,
    /// Names.
    policies: SelectorIndex<String>,
    /// Addresses of this node that are its pods'.
    here: BTreeSet<Ipv4Addr>,
}

impl Namespace {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.members.is_empty() && self.policies.is_empty() && self.here.is_empty()
    }
}

/// Finds the sets that a pod belongs into.
#[derive(Debug, Default)]
struct Watching {
    by_namespaces: HashMap<Namespaces, SelectorIndex<Arc<SetKey>>>,
    /// Of those that select namespaces, the selectors.
    selected: SelectorIndex<Selector>,
}

impl Watching {
    fn insert(&mut self, peer: &Peer, set: &Arc<SetKey>) {
        if let Namespaces::Selected(selector) = &peer.namespaces {
            self.selected.insert(selector, selector);
        }
        self.by_namespaces.entry(peer.namespaces.clone()).or_default().insert(&peer.pods, set);
    }

    fn remove(&mut self, peer: &Peer, set: &Arc<SetKey>) {
        let Some(index) = self.by_namespaces.get_mut(&peer.namespaces) else { return };
        index.remove(&peer.pods, set);
        if index.is_empty() {
            self.by_namespaces.remove(&peer.namespaces);
            if let Namespaces::Selected(selector) = &peer.namespaces {
                self.selected.remove(selector, selector);
            }
        }
    }

    fn of(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> Vec<Arc<SetKey>> {
        let selected = self.selected.matching(namespace_labels).cloned().map(Namespaces::Selected);
        let all = selected.chain([Namespaces::Only(namespace.into())]);
        let indexes = all.filter_map(|namespaces| self.by_namespaces.get(&namespaces));
        indexes.flat_map(|index| index.matching(labels)).cloned().collect()
    }
}

/// What differs from what is written: of each thing that was touched, what of it is written.
#[derive(Debug, Default)]
struct Touched {
    chains: BTreeMap<String, bool>,
    sets: BTreeMap<Arc<SetKey>, bool>,
    elements: BTreeMap<(Arc<SetKey>, Element), bool>,
    /// By direction and address: whether it is there, and with which verdict.
    verdicts: BTreeMap<(Direction, Ipv4Addr), Option<Verdict>>,
}

/// What is to be written, in the order in which that can be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) new_sets: Vec<Arc<SetKey>>,
    pub(crate) new_chains: Vec<String>,
    pub(crate) verdicts_out: Vec<(Direction, Ipv4Addr)>,
    pub(crate) elements_out: Vec<(Arc<SetKey>, Element)>,
    pub(crate) verdicts_in: Vec<(Direction, Ipv4Addr, Verdict)>,
    pub(crate) elements_in: Vec<(Arc<SetKey>, Element)>,
    pub(crate) old_chains: Vec<String>,
    pub(crate) old_sets: Vec<Arc<SetKey>>,
}

impl Changes {
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct State {
    facts: HashMap<ObjectKey, PodFacts>,
    members: HashMap<ObjectKey, Member>,
    namespaces: HashMap<String, Namespace>,
    policies: HashMap<ObjectKey, Policy>,
    locals: BTreeMap<Ipv4Addr, Local>,
    here: HashMap<ObjectKey, BTreeSet<Ipv4Addr>>,
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<Arc<SetKey>, Set>,
    watching: Watching,
    touched: Touched,
}

impl State {
    pub(crate) fn chains(&self) -> &BTreeMap<String, Chain> {
        &self.chains
    }

    pub(crate) fn sets(&self) -> &BTreeMap<Arc<SetKey>, Set> {
        &self.sets
    }

    /// The verdicts of this node's pods.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = (Direction, Ipv4Addr, &Verdict)> {
        self.locals.iter().flat_map(|(address, local)| {
            Direction::BOTH.map(|direction| (direction, *address, &local.verdicts[direction as usize]))
        })
    }

    /// The sandbox that an address is judged for.
    pub(crate) fn sandbox(&self, address: Ipv4Addr) -> Option<&str> {
        self.locals.get(&address).map(|local| local.facts.sandbox.as_str())
    }

    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<&Labels>) {
        let none = Labels::new();
        let labels = labels.unwrap_or(&none);
        let namespace = self.namespaces.entry(name.to_owned()).or_default();
        if namespace.labels != *labels {
            let members: Vec<String> = namespace.members.iter().cloned().collect();
            for pod in &members {
                self.leave_sets(&ObjectKey::new(name, pod));
            }
            if let Some(namespace) = self.namespaces.get_mut(name) {
                namespace.labels = labels.clone();
            }
            for pod in &members {
                self.join_sets(&ObjectKey::new(name, pod));
            }
        }
        self.forget_empty(name);
    }

    pub(crate) fn set_policy(&mut self, key: &ObjectKey, policy: Option<Policy>) {
        let old = match policy.clone() {
            Some(policy) => self.policies.insert(key.clone(), policy),
            None => self.policies.remove(key),
        };
        if old == policy {
            return;
        }
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        if let Some(old) = &old {
            namespace.policies.remove(&old.pods, &key.name);
        }
        if let Some(new) = &policy {
            namespace.policies.insert(&new.pods, &key.name);
        }
        let here: Vec<Ipv4Addr> = namespace.here.iter().copied().collect();
        for address in here {
            let Some(labels) = self.labels_of(address) else { continue };
            if [&old, &policy].into_iter().flatten().any(|policy| policy.pods.matches(&labels)) {
                self.judge(address);
            }
        }
        self.forget_empty(&key.namespace);
    }

    pub(crate) fn set_pod(&mut self, key: &ObjectKey, facts: Option<PodFacts>) {
        match facts {
            Some(facts) => self.facts.insert(key.clone(), facts),
            None => self.facts.remove(key),
        };
        self.refresh(key);
        self.judge_pod(key);
        self.forget_empty(&key.namespace);
    }

    /// What has an address of this node; nobody, if it is to be closed.
    pub(crate) fn set_local(&mut self, address: Ipv4Addr, facts: Option<LocalFacts>) {
        if self.locals.get(&address).map(|local| &local.facts) == facts.as_ref() {
            return;
        }
        if let Some(old) = self.locals.remove(&address) {
            let pod = old.facts.pod;
            for (direction, verdict) in Direction::BOTH.into_iter().zip(old.verdicts) {
                self.touch_verdict(direction, address, Some(verdict.clone()));
                self.let_go(verdict.as_deref());
            }
            if let Some(addresses) = self.here.get_mut(&pod) {
                addresses.remove(&address);
                if addresses.is_empty() {
                    self.here.remove(&pod);
                }
            }
            if let Some(namespace) = self.namespaces.get_mut(&pod.namespace) {
                namespace.here.remove(&address);
            }
            self.refresh(&pod);
            self.forget_empty(&pod.namespace);
        }
        let Some(facts) = facts else { return };
        let pod = facts.pod.clone();
        for direction in Direction::BOTH {
            self.touch_verdict(direction, address, None);
        }
        self.locals.insert(address, Local { facts, verdicts: [None, None] });
        self.here.entry(pod.clone()).or_default().insert(address);
        self.namespaces.entry(pod.namespace.clone()).or_default().here.insert(address);
        self.refresh(&pod);
        self.judge(address);
    }

    /// How the rules differ from what is written.
    pub(crate) fn changes(&self) -> Changes {
        let mut out = Changes::default();
        let Touched { chains, sets, elements, verdicts } = &self.touched;
        for (set, was) in sets {
            match (was, self.sets.contains_key(set)) {
                (false, true) => out.new_sets.push(set.clone()),
                (true, false) => out.old_sets.push(set.clone()),
                _ => {}
            }
        }
        for (chain, was) in chains {
            match (was, self.chains.contains_key(chain)) {
                (false, true) => out.new_chains.push(chain.clone()),
                (true, false) => out.old_chains.push(chain.clone()),
                _ => {}
            }
        }
        for ((set, element), was) in elements {
            // Those of a set that has gone go with it.
            let Some(now) = self.sets.get(set) else { continue };
            match (was, now.elements.contains_key(element)) {
                (false, true) => out.elements_in.push((set.clone(), *element)),
                (true, false) => out.elements_out.push((set.clone(), *element)),
                _ => {}
            }
        }
        for ((direction, address), was) in verdicts {
            let now = self.locals.get(address).map(|local| &local.verdicts[*direction as usize]);
            if was.as_ref() == now {
                continue;
            }
            if was.is_some() {
                out.verdicts_out.push((*direction, *address));
            }
            if let Some(now) = now {
                out.verdicts_in.push((*direction, *address, now.clone()));
            }
        }
        out
    }

    /// Everything is written as it is to be.
    pub(crate) fn written(&mut self) {
        self.touched = Touched::default();
    }

    fn forget_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(Namespace::is_empty) {
            self.namespaces.remove(namespace);
        }
    }

    /// A pod that the API does not tell of yet is what its sandbox says. One that was made anew under its name is not the sandbox's.
    fn member(&self, key: &ObjectKey) -> Option<Member> {
        let here = || {
            let addresses = self.here.get(key).into_iter().flatten();
            addresses.filter_map(|address| Some((*address, &self.locals.get(address)?.facts)))
        };
        let Some(facts) = self.facts.get(key) else {
            let (_, newest) = here().next_back()?;
            let of_it = here().filter(|(_, facts)| facts.uid == newest.uid);
            let addresses: Vec<Ipv4Addr> = of_it.map(|(address, _)| address).collect();
            let labels = newest.labels.clone();
            return Some(Member { labels, here: addresses.clone(), addresses, ports: Arc::default() });
        };
        let here = here().filter(|(_, local)| local.uid == facts.uid);
        let here: Vec<Ipv4Addr> = here.map(|(address, _)| address).collect();
        let mut addresses = facts.addresses.clone();
        addresses.extend(&here);
        addresses.sort_unstable();
        addresses.dedup();
        Some(Member { labels: facts.labels.clone(), addresses, here, ports: facts.ports.clone() })
    }

    /// Brings the sets to what a pod is now.
    fn refresh(&mut self, key: &ObjectKey) {
        let new = self.member(key);
        if self.members.get(key) == new.as_ref() {
            return;
        }
        self.leave_sets(key);
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        let pairs = |labels: &Labels| -> Vec<(String, String)> {
            labels.iter().map(|(label, value)| (label.clone(), value.clone())).collect()
        };
        if let Some(old) = self.members.remove(key) {
            namespace.members.remove(&key.name);
            for pair in pairs(&old.labels) {
                if let Some(names) = namespace.labelled.get_mut(&pair) {
                    names.remove(&key.name);
                    if names.is_empty() {
                        namespace.labelled.remove(&pair);
                    }
                }
            }
        }
        if let Some(new) = new {
            namespace.members.insert(key.name.clone());
            for pair in pairs(&new.labels) {
                namespace.labelled.entry(pair).or_default().insert(key.name.clone());
            }
            self.members.insert(key.clone(), new);
            self.join_sets(key);
        }
    }

    fn leave_sets(&mut self, key: &ObjectKey) {
        for (set, element) in self.belongs(key) {
            let Some(elements) = self.sets.get_mut(&set).map(|set| &mut set.elements) else { continue };
            let Some(n_pods) = elements.get_mut(&element) else { continue };
            *n_pods -= 1;
            if *n_pods == 0 {
                elements.remove(&element);
                self.touched.elements.entry((set, element)).or_insert(true);
            }
        }
    }

    fn join_sets(&mut self, key: &ObjectKey) {
        for (set, element) in self.belongs(key) {
            self.join(set, element);
        }
    }

    fn join(&mut self, set: Arc<SetKey>, element: Element) {
        let Some(elements) = self.sets.get_mut(&set).map(|set| &mut set.elements) else { return };
        let n_pods = elements.entry(element).or_default();
        *n_pods += 1;
        if *n_pods == 1 {
            self.touched.elements.entry((set, element)).or_insert(false);
        }
    }

    /// What of a pod belongs into which sets.
    fn belongs(&self, key: &ObjectKey) -> Vec<(Arc<SetKey>, Element)> {
        let Some(member) = self.members.get(key) else { return Vec::new() };
        let none = Labels::new();
        let of_namespace = self.namespaces.get(&key.namespace).map_or(&none, |namespace| &namespace.labels);
        let mut belongs = Vec::new();
        if !member.addresses.is_empty() {
            for set in self.watching.of(&key.namespace, of_namespace, &member.labels) {
                let elements = set.elements(&member.addresses, &member.ports);
                belongs.extend(elements.into_iter().map(|element| (set.clone(), element)));
            }
        }
        if !member.here.is_empty() {
            let named: BTreeSet<(Protocol, &str)> =
                member.ports.iter().map(|port| (port.protocol, &*port.name)).collect();
            for (protocol, name) in named {
                let wanted = SetKey::NamedHere(protocol, name.into());
                let Some((set, _)) = self.sets.get_key_value(&wanted) else { continue };
                let elements = set.elements(&member.here, &member.ports);
                belongs.extend(elements.into_iter().map(|element| (set.clone(), element)));
            }
        }
        belongs
    }

    fn labels_of(&self, address: Ipv4Addr) -> Option<Arc<Labels>> {
        let local = &self.locals.get(&address)?.facts;
        let known = self.facts.get(&local.pod).filter(|facts| facts.uid == local.uid);
        Some(known.map_or(&local.labels, |facts| &facts.labels).clone())
    }

    fn judge_pod(&mut self, key: &ObjectKey) {
        let here: Vec<Ipv4Addr> = self.here.get(key).into_iter().flatten().copied().collect();
        here.into_iter().for_each(|address| self.judge(address));
    }

    /// Finds out anew what is let through for an address of this node.
    fn judge(&mut self, address: Ipv4Addr) {
        let (Some(labels), Some(local)) = (self.labels_of(address), self.locals.get(&address)) else {
            return;
        };
        let key = &local.facts.pod;
        let index = self.namespaces.get(&key.namespace).map(|namespace| &namespace.policies);
        let names = index.into_iter().flat_map(|index| index.matching(&labels));
        let policies: Vec<&Policy> = names
            .filter_map(|name| self.policies.get(&ObjectKey::new(key.namespace.as_str(), name.as_str())))
            .collect();
        let decided = Direction::BOTH.map(|direction| {
            let about: Vec<&[Allow]> =
                policies.iter().filter_map(|policy| policy.of_direction(direction)).collect();
            let allows: BTreeSet<&Allow> = about.iter().copied().flatten().collect();
            (!about.is_empty()).then(|| allows.into_iter().cloned().collect::<Vec<Allow>>())
        });
        for (direction, allows) in Direction::BOTH.into_iter().zip(decided) {
            self.decide(direction, address, allows);
        }
    }

    /// From now on an address has what is let through, or is open.
    fn decide(&mut self, direction: Direction, address: Ipv4Addr, allows: Option<Vec<Allow>>) {
        let new = allows.as_deref().map(|allows| chain_name(direction, allows));
        let Some(local) = self.locals.get_mut(&address) else { return };
        let verdict = &mut local.verdicts[direction as usize];
        if *verdict == new {
            return;
        }
        let old = std::mem::replace(verdict, new.clone());
        self.touch_verdict(direction, address, Some(old.clone()));
        // The new one first: sets of both stay as they are.
        if let (Some(name), Some(allows)) = (new, allows) {
            self.hold(name, direction, allows);
        }
        self.let_go(old.as_deref());
    }

    fn touch_verdict(&mut self, direction: Direction, address: Ipv4Addr, was: Option<Verdict>) {
        self.touched.verdicts.entry((direction, address)).or_insert(was);
    }

    fn hold(&mut self, name: String, direction: Direction, allows: Vec<Allow>) {
        if let Some(chain) = self.chains.get_mut(&name) {
            chain.n_pods += 1;
            return;
        }
        let sets: Vec<SetKey> = sets_of(direction, &allows).collect();
        self.touched.chains.entry(name.clone()).or_insert(false);
        self.chains.insert(name, Chain { direction, allows, n_pods: 1 });
        sets.into_iter().for_each(|set| self.hold_set(set));
    }

    fn let_go(&mut self, name: Option<&str>) {
        let Some((name, chain)) = name.and_then(|name| Some((name, self.chains.get_mut(name)?))) else {
            return;
        };
        chain.n_pods -= 1;
        if chain.n_pods > 0 {
            return;
        }
        let sets: Vec<SetKey> = sets_of(chain.direction, &chain.allows).collect();
        self.chains.remove(name);
        self.touched.chains.entry(name.to_owned()).or_insert(true);
        for set in sets {
            self.let_go_of_set(&set);
        }
    }

    fn hold_set(&mut self, set: SetKey) {
        if let Some(set) = self.sets.get_mut(&set) {
            set.n_users += 1;
            return;
        }
        let set = Arc::new(set);
        self.touched.sets.entry(set.clone()).or_insert(false);
        self.sets.insert(set.clone(), Set { n_users: 1, elements: HashMap::new() });
        let mut elements = Vec::new();
        match set.peer() {
            Some(peer) => {
                self.watching.insert(peer, &set);
                for key in self.pods_of(peer) {
                    if let Some(member) = self.members.get(&key) {
                        elements.extend(set.elements(&member.addresses, &member.ports));
                    }
                }
            }
            None => {
                let members = self.here.keys().filter_map(|key| self.members.get(key));
                elements.extend(members.flat_map(|member| set.elements(&member.here, &member.ports)));
            }
        }
        elements.into_iter().for_each(|element| self.join(set.clone(), element));
    }

    fn let_go_of_set(&mut self, key: &SetKey) {
        let Some(set) = self.sets.get_mut(key) else { return };
        set.n_users -= 1;
        if set.n_users > 0 {
            return;
        }
        if let Some((key, set)) = self.sets.remove_entry(key) {
            if let Some(peer) = key.peer() {
                self.watching.remove(peer, &key);
            }
            for element in set.elements.into_keys() {
                self.touched.elements.entry((key.clone(), element)).or_insert(true);
            }
            self.touched.sets.entry(key).or_insert(true);
        }
    }

    /// The pods of a peer, found by a label that it asks for where it asks for one.
    fn pods_of(&self, peer: &Peer) -> Vec<ObjectKey> {
        let namespaces: Vec<(&String, &Namespace)> = match &peer.namespaces {
            Namespaces::Only(name) => self.namespaces.get_key_value(&**name).into_iter().collect(),
            Namespaces::Selected(selector) => {
                self.namespaces.iter().filter(|(_, namespace)| selector.matches(&namespace.labels)).collect()
            }
        };
        let mut found = Vec::new();
        for (name, namespace) in namespaces {
            let names: Vec<&String> = match peer.pods.anchor() {
                Some((label, values)) => {
                    let pairs = values.iter().map(|value| (label.to_owned(), value.clone()));
                    pairs.filter_map(|pair| namespace.labelled.get(&pair)).flatten().collect()
                }
                None => namespace.members.iter().collect(),
            };
            let keys = names.into_iter().map(|pod| ObjectKey::new(name.as_str(), pod.as_str()));
            found.extend(
                keys.filter(|key| {
                    self.members.get(key).is_some_and(|member| peer.pods.matches(&member.labels))
                }),
            );
        }
        found
    }
}

/// The sets that a chain looks into, each as often as it does.
fn sets_of(direction: Direction, allows: &[Allow]) -> impl Iterator<Item = SetKey> {
    allows.iter().flat_map(move |allow| [allow.peers(direction), allow.ports(direction)]).flatten()
}

/// A name that says what is in the chain, so that another content is another chain.
fn chain_name(direction: Direction, allows: &[Allow]) -> String {
    let text: Vec<String> = allows.iter().map(|allow| super::script::rule(direction, allow)).collect();
    format!("{}_{}", direction.name(), fingerprint(&text.join("\n")))
}

#[cfg(test)]
mod tests;
