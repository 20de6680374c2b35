//! The state against a model that knows nothing of indexes, sets or chains, over random clusters and random changes.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What nft would hold if it did what it is told.
#[derive(Debug, Default)]
struct Mirror {
    sets: BTreeMap<String, BTreeSet<Element>>,
    chains: BTreeMap<String, (Direction, Vec<Allow>)>,
    verdicts: BTreeMap<(Direction, Ipv4Addr), Verdict>,
}

impl Mirror {
    /// Takes changes as nft takes them: what is not there cannot be deleted, and what is there not be made.
    fn apply(&mut self, state: &mut State) {
        let changes = state.changes();
        for set in &changes.new_sets {
            assert!(self.sets.insert(set.name(), BTreeSet::new()).is_none(), "{set:?} is there already");
        }
        for name in &changes.new_chains {
            let chain = &state.chains[name];
            let new = (chain.direction, chain.allows.clone());
            for set in sets_of(chain.direction, &chain.allows) {
                assert!(self.sets.contains_key(&set.name()), "{name} looks into a set that is not there");
            }
            assert!(self.chains.insert(name.clone(), new).is_none(), "{name} is there already");
        }
        for key in &changes.verdicts_out {
            assert!(self.verdicts.remove(key).is_some(), "{key:?} has no verdict");
        }
        for (set, element) in &changes.elements_out {
            assert!(self.sets.get_mut(&set.name()).unwrap().remove(element), "{set:?} has no {element:?}");
        }
        for (direction, address, verdict) in &changes.verdicts_in {
            assert!(verdict.as_ref().is_none_or(|chain| self.chains.contains_key(chain)));
            assert!(self.verdicts.insert((*direction, *address), verdict.clone()).is_none());
        }
        for (set, element) in &changes.elements_in {
            assert!(self.sets.get_mut(&set.name()).unwrap().insert(*element), "{set:?} has {element:?}");
        }
        for name in &changes.old_chains {
            assert!(self.chains.remove(name).is_some());
            assert!(self.verdicts.values().all(|verdict| verdict.as_ref() != Some(name)), "{name} is in use");
        }
        for set in &changes.old_sets {
            let users = self.chains.values();
            assert!(
                !users.clone().any(|(to, allows)| sets_of(*to, allows).any(|used| used == **set)),
                "{set:?} is in use"
            );
            assert!(self.sets.remove(&set.name()).is_some());
        }
        state.written();
        assert!(state.changes().is_empty());
    }

    fn lets(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: Protocol, port: u16) -> bool {
        let passes = |direction: Direction, own: Ipv4Addr, other: Ipv4Addr| {
            if !is_here(own) {
                return true;
            }
            let Some(verdict) = self.verdicts.get(&(direction, own)) else { return false };
            let Some(chain) = verdict else { return true };
            let has = |set: Option<SetKey>, element: Element| {
                set.is_none_or(|set| self.sets[&set.name()].contains(&element))
            };
            self.chains[chain].1.iter().any(|allow| {
                let who = match &allow.who {
                    Who::Anyone => true,
                    Who::Pods(_) => has(allow.peers(direction), (other, None)),
                    Who::Ranges(ranges) => ranges.iter().any(|range| range.contains(other)),
                    Who::RangeBut(range, except) => {
                        range.contains(other) && !except.iter().any(|part| part.contains(other))
                    }
                };
                who && match &allow.what {
                    What::Anything => true,
                    What::Ports(of, ranges) => {
                        *of == protocol && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
                    }
                    What::Named(..) => has(allow.ports(direction), (to, Some((protocol, port)))),
                }
            })
        };
        from == to || passes(Direction::Egress, from, to) && passes(Direction::Ingress, to, from)
    }
}

const N_PODS: usize = 6;
const NAMESPACES: [&str; 2] = ["a", "b"];

/// Half of the pods are on this node.
fn address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, (pod % 2) as u8, 2 + pod as u8)
}

fn is_here(address: Ipv4Addr) -> bool {
    address.octets()[..3] == [10, 42, 0]
}

fn key(pod: usize) -> ObjectKey {
    ObjectKey::new(NAMESPACES[pod / 2 % 2], format!("p{pod}"))
}

#[derive(Clone, Debug)]
enum Step {
    Namespace(usize, Labels),
    /// With the number that its port `web` has.
    Pod(usize, Option<(Labels, u16)>),
    Local(usize, Option<Labels>),
    Policy(usize, Option<Value>),
    Write,
}

/// Peers and ports of a rule.
type RuleParts = (Option<Vec<NetworkPolicyPeer>>, Option<Vec<NetworkPolicyPort>>);

/// The cluster as it is, for who looks at everything every time.
#[derive(Debug, Default)]
struct Model {
    namespaces: HashMap<String, Labels>,
    pods: HashMap<usize, (Labels, u16)>,
    locals: HashMap<usize, Labels>,
    policies: HashMap<ObjectKey, NetworkPolicy>,
}

impl Model {
    fn labels(&self, pod: usize) -> Option<&Labels> {
        self.pods.get(&pod).map(|(labels, _)| labels).or_else(|| self.locals.get(&pod))
    }

    fn lets(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: &str, port: u16) -> bool {
        if from == to {
            return true;
        }
        let pod_of = |ip| (0..N_PODS).find(|pod| address(*pod) == ip);
        let passes = |own: Ipv4Addr, other: Ipv4Addr, direction: &str| {
            let Some(own) = pod_of(own).filter(|_| is_here(own)) else { return true };
            let (true, Some(labels)) = (self.locals.contains_key(&own), self.labels(own)) else {
                return false;
            };
            let mut is_isolated = false;
            for (name, policy) in &self.policies {
                let spec = policy.spec.as_ref().unwrap();
                let selector = spec.pod_selector.as_ref().unwrap();
                if name.namespace != key(own).namespace || !selects(selector, labels) {
                    continue;
                }
                let types = spec.policy_types.clone().unwrap_or_else(|| {
                    let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
                    ["Ingress"].into_iter().chain(egress.then_some("Egress")).map(str::to_owned).collect()
                });
                if !types.iter().any(|type_| type_ == direction) {
                    continue;
                }
                is_isolated = true;
                let rules: Vec<RuleParts> = match direction {
                    "Ingress" => {
                        spec.ingress.iter().flatten().map(|r| (r.from.clone(), r.ports.clone())).collect()
                    }
                    _ => spec.egress.iter().flatten().map(|r| (r.to.clone(), r.ports.clone())).collect(),
                };
                for (peers, ports) in rules {
                    let peers = peers.filter(|peers| !peers.is_empty());
                    let ports = ports.filter(|ports| !ports.is_empty());
                    // A name and a range of addresses do not go together.
                    let met = |peer: Option<&NetworkPolicyPeer>, asked: Option<&NetworkPolicyPort>| {
                        let by_block = peer.is_some_and(|peer| {
                            peer.ip_block
                                .as_ref()
                                .is_some_and(|block| block.cidr != "0.0.0.0/0" || block.except.is_some())
                        });
                        let named =
                            asked.is_some_and(|asked| matches!(asked.port, Some(IntOrString::String(_))));
                        !(by_block && named)
                            && peer
                                .is_none_or(|peer| self.is_peer(&name.namespace, peer, other, pod_of(other)))
                            && asked.is_none_or(|asked| self.is_port(asked, pod_of(to), protocol, port))
                    };
                    let peers: Vec<Option<&NetworkPolicyPeer>> = match &peers {
                        Some(peers) => peers.iter().map(Some).collect(),
                        None => vec![None],
                    };
                    let ports: Vec<Option<&NetworkPolicyPort>> = match &ports {
                        Some(ports) => ports.iter().map(Some).collect(),
                        None => vec![None],
                    };
                    if peers.iter().any(|peer| ports.iter().any(|asked| met(*peer, *asked))) {
                        return true;
                    }
                }
            }
            !is_isolated
        };
        passes(from, to, "Egress") && passes(to, from, "Ingress")
    }

    fn is_peer(&self, own: &str, peer: &NetworkPolicyPeer, ip: Ipv4Addr, pod: Option<usize>) -> bool {
        if let Some(block) = &peer.ip_block {
            let within = |cidr: &str| {
                let (network, prefix) = cidr.split_once('/').unwrap();
                let (network, prefix): (Ipv4Addr, u32) = (network.parse().unwrap(), prefix.parse().unwrap());
                let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
                ip.to_bits() & mask == network.to_bits() & mask
            };
            return within(&block.cidr) && !block.except.iter().flatten().any(|except| within(except));
        }
        let Some((pod, labels)) = pod.and_then(|pod| Some((pod, self.labels(pod)?))) else { return false };
        let namespace = key(pod).namespace;
        let none = Labels::new();
        let in_namespace = match &peer.namespace_selector {
            Some(selector) => selects(selector, self.namespaces.get(&namespace).unwrap_or(&none)),
            None => namespace == own,
        };
        in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, labels))
    }

    fn is_port(&self, asked: &NetworkPolicyPort, to: Option<usize>, protocol: &str, port: u16) -> bool {
        if asked.protocol.as_deref().unwrap_or("TCP") != protocol {
            return false;
        }
        match (&asked.port, asked.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), last) => {
                (*first..=last.unwrap_or(*first)).contains(&i32::from(port))
            }
            (Some(IntOrString::String(name)), _) => {
                let number = to.and_then(|pod| self.pods.get(&pod)).map(|(_, number)| *number);
                name == "web" && protocol == "TCP" && number == Some(port)
            }
        }
    }
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(label, value)| labels.get(label) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|asked| {
            let (has, values) = (labels.get(&asked.key), asked.values.clone().unwrap_or_default());
            match asked.operator.as_str() {
                "In" => has.is_some_and(|value| values.contains(value)),
                "NotIn" => has.is_none_or(|value| !values.contains(value)),
                "Exists" => has.is_some(),
                _ => has.is_none(),
            }
        })
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map("[kl]", "[12]", 0..3)
}

fn selector() -> impl Strategy<Value = Value> {
    let expression = ("[kl]", prop_oneof![Just("In"), Just("NotIn"), Just("Exists"), Just("DoesNotExist")]);
    let expression =
        (expression, proptest::collection::vec("[12]", 1..3)).prop_map(|((key, operator), values)| {
            match operator {
                "In" | "NotIn" => json!({"key": key, "operator": operator, "values": values}),
                _ => json!({"key": key, "operator": operator}),
            }
        });
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|labels| json!({"matchLabels": labels})),
        2 => (labels(), expression).prop_map(|(labels, e)| json!({"matchLabels": labels, "matchExpressions": [e]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        prop_oneof![
            Just(json!({"cidr": "10.42.0.0/16", "except": ["10.42.1.0/24"]})),
            Just(json!({"cidr": "10.42.0.2/32"})),
            Just(json!({"cidr": "192.0.2.0/24"})),
            Just(json!({"cidr": "10.42.0.0/23", "except": ["10.42.0.4/30", "10.42.0.4/32"]})),
        ]
        .prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port": 80})),
        Just(json!({"port": "web"})),
        Just(json!({"port": 80, "endPort": 81})),
        Just(json!({"port": 81, "protocol": "UDP"})),
        Just(json!({"protocol": "UDP"})),
        Just(json!({})),
    ]
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(port(), 0..3));
    let rule = rule.prop_map(move |(all, ports)| json!({peers: all, "ports": ports}));
    proptest::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn policy() -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just(Value::Null),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
    ];
    (selector(), types, rules("from"), rules("to")).prop_map(|(pods, types, ingress, egress)| {
        json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress})
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..NAMESPACES.len(), labels()).prop_map(|(at, labels)| Step::Namespace(at, labels)),
        4 => (0..N_PODS, proptest::option::weighted(0.8, (labels(), 80..82u16)))
            .prop_map(|(at, pod)| Step::Pod(at, pod)),
        3 => (0..N_PODS / 2, proptest::option::weighted(0.8, labels()))
            .prop_map(|(at, local)| Step::Local(at * 2, local)),
        4 => (0..4usize, proptest::option::weighted(0.8, policy())).prop_map(|(at, policy)| Step::Policy(at, policy)),
        3 => Just(Step::Write),
    ]
}

fn take(step: &Step, model: &mut Model, state: &mut State, mirror: &mut Mirror) {
    match step {
        Step::Namespace(at, labels) => {
            model.namespaces.insert(NAMESPACES[*at].to_owned(), labels.clone());
            state.set_namespace(NAMESPACES[*at], Some(labels));
        }
        Step::Pod(at, pod) => {
            let facts = pod.as_ref().map(|(labels, number)| PodFacts {
                uid: format!("u{at}"),
                labels: Arc::new(labels.clone()),
                addresses: vec![address(*at)],
                ports: [NamedPort { name: "web".into(), protocol: Protocol::Tcp, number: *number }].into(),
            });
            state.set_pod(&key(*at), facts);
            match pod {
                Some(pod) => model.pods.insert(*at, pod.clone()),
                None => model.pods.remove(at),
            };
        }
        Step::Local(at, labels) => {
            let facts = labels.as_ref().map(|labels| LocalFacts {
                sandbox: format!("s{at}"),
                pod: key(*at),
                uid: format!("u{at}"),
                labels: Arc::new(labels.clone()),
            });
            state.set_local(address(*at), facts);
            match labels {
                Some(labels) => model.locals.insert(*at, labels.clone()),
                None => model.locals.remove(at),
            };
        }
        Step::Policy(at, spec) => {
            let key = ObjectKey::new(NAMESPACES[at % 2], format!("n{at}"));
            let object = spec.as_ref().map(|spec| {
                let object =
                    json!({"metadata": {"name": key.name, "namespace": key.namespace}, "spec": spec});
                serde_json::from_value::<NetworkPolicy>(object).unwrap()
            });
            state.set_policy(&key, object.as_ref().map(|object| Policy::of(object, |_| {})));
            match object {
                Some(object) => model.policies.insert(key, object),
                None => model.policies.remove(&key),
            };
        }
        Step::Write => mirror.apply(state),
    }
}

proptest! {
    #[test]
    fn what_is_written_lets_through_what_policies_say(steps in proptest::collection::vec(step(), 1..40)) {
        let (mut model, mut state, mut mirror) = (Model::default(), State::default(), Mirror::default());
        for step in &steps {
            take(step, &mut model, &mut state, &mut mirror);
        }
        mirror.apply(&mut state);
        let outside = Ipv4Addr::new(192, 0, 2, 7);
        let all: Vec<Ipv4Addr> = (0..N_PODS).map(address).chain([outside]).collect();
        for from in &all {
            for to in &all {
                for (protocol, name) in [(Protocol::Tcp, "TCP"), (Protocol::Udp, "UDP")] {
                    for port in [80, 81, 82] {
                        prop_assert_eq!(
                            mirror.lets(*from, *to, protocol, port),
                            model.lets(*from, *to, name, port),
                            "{} to {} {} {}", from, to, name, port
                        );
                    }
                }
            }
        }
        // All that came goes, and leaves nothing.
        for at in 0..4 {
            take(&Step::Policy(at, None), &mut model, &mut state, &mut mirror);
        }
        for at in 0..N_PODS {
            take(&Step::Pod(at, None), &mut model, &mut state, &mut mirror);
            take(&Step::Local(at, None), &mut model, &mut state, &mut mirror);
        }
        mirror.apply(&mut state);
        prop_assert!(mirror.sets.is_empty() && mirror.chains.is_empty() && mirror.verdicts.is_empty());
        prop_assert!(state.members.is_empty() && state.here.is_empty() && state.watching.by_namespaces.is_empty());
        prop_assert!(state.watching.selected.is_empty());
    }
}

fn pod(state: &mut State, at: usize, labels: &[(&str, &str)], number: u16) {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    take(&Step::Pod(at, Some((labels, number))), &mut Model::default(), state, &mut Mirror::default());
}

fn local(state: &mut State, at: usize, labels: &[(&str, &str)]) {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    take(&Step::Local(at, Some(labels)), &mut Model::default(), state, &mut Mirror::default());
}

fn set_policy(state: &mut State, at: usize, spec: Value) {
    take(&Step::Policy(at, Some(spec)), &mut Model::default(), state, &mut Mirror::default());
}

#[test]
fn policies_with_equal_peers_share_a_set_and_pods_of_equal_policies_a_chain() {
    let mut state = State::default();
    let from = json!([{"from": [{"podSelector": {"matchLabels": {"k": "1"}}}]}]);
    set_policy(&mut state, 0, json!({"podSelector": {}, "ingress": from}));
    set_policy(
        &mut state,
        2,
        json!({"podSelector": {"matchLabels": {"l": "1"}}, "ingress": [from[0], {"ports": [{"port": 1}]}]}),
    );
    // 0 and 4 are of this node and of namespace a.
    local(&mut state, 0, &[("l", "1")]);
    local(&mut state, 4, &[("l", "1")]);
    assert_eq!((state.sets.len(), state.chains.len()), (1, 1));
    pod(&mut state, 4, &[("l", "2")], 80);
    assert_eq!((state.sets.len(), state.chains.len()), (1, 2));
}

#[test]
fn what_concerns_no_pod_of_this_node_changes_nothing() {
    let mut state = State::default();
    local(&mut state, 0, &[]);
    state.written();
    set_policy(&mut state, 1, json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    for at in 1..N_PODS {
        pod(&mut state, at, &[("k", "1")], 80);
    }
    assert!(state.changes().is_empty(), "{:?}", state.changes());
}

#[test]
fn a_status_that_says_nothing_new_changes_nothing() {
    let mut state = State::default();
    set_policy(&mut state, 0, json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    local(&mut state, 0, &[("k", "1")]);
    pod(&mut state, 0, &[("k", "1")], 80);
    state.written();
    pod(&mut state, 0, &[("k", "1")], 80);
    assert!(state.changes().is_empty());
    pod(&mut state, 1, &[("k", "1")], 80);
    let changes = state.changes();
    assert_eq!(changes.elements_in.len(), 1, "{changes:?}");
    assert_eq!(changes, Changes { elements_in: changes.elements_in.clone(), ..Changes::default() });
}

#[test]
fn a_pod_that_took_another_s_name_has_none_of_its_rights() {
    let mut state = State::default();
    set_policy(
        &mut state,
        0,
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"k": "1"}}}]}]}),
    );
    local(&mut state, 0, &[("l", "1")]);
    local(&mut state, 4, &[("l", "1")]);
    let friend = Arc::new(Labels::from([("k".to_owned(), "1".to_owned())]));
    let another = PodFacts { uid: "another".into(), labels: friend, ..PodFacts::default() };
    state.set_pod(&key(4), Some(another));
    let set = state.sets.values().next().unwrap();
    assert!(!set.has((address(4), None)), "the sandbox is of the one before");
}

#[test]
fn in_a_large_cluster_a_change_writes_what_it_changes() {
    let mut state = State::default();
    state.set_namespace("a", None);
    let at = |pod: usize| Ipv4Addr::from_bits(u32::from_be_bytes([10, 43, 0, 0]) + pod as u32);
    let place = |state: &mut State, pod: usize| {
        let facts = PodFacts {
            uid: format!("u{pod}"),
            labels: Arc::new([("app".to_owned(), format!("{}", pod % 500))].into()),
            addresses: vec![at(pod)],
            ports: Arc::default(),
        };
        state.set_pod(&ObjectKey::new("a", format!("pod{pod}")), Some(facts));
    };
    (0..5000).for_each(|pod| place(&mut state, pod));
    for here in 0..100 {
        let labels = Arc::new([("app".to_owned(), format!("{here}"))].into());
        let pod = ObjectKey::new("a", format!("pod{here}"));
        let facts = LocalFacts { sandbox: format!("s{here}"), pod, uid: format!("u{here}"), labels };
        state.set_local(at(here), Some(facts));
    }
    // Two for each app, of which this node has a fifth; 250 peers in all.
    for policy in 0..1000 {
        let spec = json!({"podSelector": {"matchLabels": {"app": format!("{}", policy % 500)}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": format!("{}", policy % 250)}}}], "ports": [{"port": 1 + policy}]}]});
        let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
        let policy_of = Policy::of(&serde_json::from_value(object).unwrap(), |_| {});
        state.set_policy(&ObjectKey::new("a", format!("p{policy}")), Some(policy_of));
    }
    assert_eq!((state.chains.len(), state.sets.len()), (100, 100));
    state.written();
    place(&mut state, 5000);
    let one = state.changes();
    assert_eq!((one.elements_in.len(), one.new_chains.len()), (1, 0), "a pod came");
    state.written();
    state.set_policy(&ObjectKey::new("a", "p7"), None);
    let one = state.changes();
    assert_eq!(
        (one.new_chains.len(), one.old_chains.len(), one.verdicts_in.len()),
        (1, 1, 1),
        "a policy went"
    );
    assert!(one.elements_in.is_empty() && one.elements_out.is_empty() && one.new_sets.is_empty());
}
