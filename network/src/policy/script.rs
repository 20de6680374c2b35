//! From the state to nft scripts. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::PolicyConfig;
use super::rules::{Allow, Direction, What, Who};
use super::state::{Changes, Element, SetKey, State, Verdict};
use crate::nft::Listed;
use crate::proxy::sources::Source;

pub(crate) const TABLE: &str = "ip skiff_policy";

/// A line of bounded length keeps nft's parser quick.
const ELEMENTS_PER_LINE: usize = 500;

/// The sets that are always there, with their types. Who is in neither map is closed.
const SETS: [(&str, &str); 3] = [
    ("map egress", "type ipv4_addr : verdict"),
    ("map ingress", "type ipv4_addr : verdict"),
    ("set itself", "type ipv4_addr . ipv4_addr"),
];

/// The chains that are always there, with their hooks and rules: after the proxy has translated, before it refuses.
///
/// What has been let through once goes on, and so do answers. A chain of what is let through returns where it is, and drops at
/// its end; so do the two that lead there, and what both return is accepted.
fn base_chains(config: &PolicyConfig) -> [(&'static str, &'static str, Vec<String>); 4] {
    let PolicyConfig { pod_cidr, cluster_dns, .. } = config;
    let answered = "ct state established,related accept".to_owned();
    let from_pods = format!("ip saddr {pod_cidr} jump from_pod");
    let forward = vec![
        answered.clone(),
        "ip saddr . ip daddr @itself accept".to_owned(),
        from_pods,
        format!("ip daddr {pod_cidr} jump to_pod"),
    ];
    // Of what is on the node itself, only the cluster's DNS is for policies to judge.
    let input = vec![answered, format!("ip saddr {pod_cidr} ip daddr {cluster_dns} jump from_pod")];
    [
        ("from_pod", "", vec!["ip saddr vmap @egress".to_owned(), "drop".to_owned()]),
        ("to_pod", "", vec!["ip daddr vmap @ingress".to_owned(), "drop".to_owned()]),
        ("forward", "type filter hook forward priority filter - 5;", forward),
        ("input", "type filter hook input priority filter - 5;", input),
    ]
}

/// Everything, in place of whatever stands.
pub(crate) fn whole(config: &PolicyConfig, state: &State) -> String {
    let mut out = remove();
    let chains = base_chains(config);
    let _ = writeln!(out, "table {TABLE} {{");
    for (name, type_) in SETS {
        let _ = writeln!(out, "  {name} {{ {type_}; }}");
    }
    for (name, hook, _) in &chains {
        let _ = writeln!(out, "  chain {name} {{ {hook} }}");
    }
    out.push_str("}\n");
    for (name, _, rules) in &chains {
        for rule in rules {
            let _ = writeln!(out, "add rule {TABLE} {name} {rule}");
        }
    }
    let all = Changes {
        new_sets: state.sets().keys().cloned().collect(),
        new_chains: state.chains().keys().cloned().collect(),
        verdicts_in: state.verdicts().map(|(to, address, verdict)| (to, address, verdict.clone())).collect(),
        elements_in: state
            .sets()
            .iter()
            .flat_map(|(key, set)| set.elements().map(|element| (key.clone(), element)))
            .collect(),
        ..Changes::default()
    };
    out.push_str(&difference(state, &all));
    out
}

pub(crate) fn remove() -> String {
    // Made first, so that it is there to be deleted.
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// What has changed, in an order that nft accepts. Chains that nothing leads to any more are emptied; before Linux 6.2, they can
/// only be deleted a moment later (see [`delete_chains`]).
pub(crate) fn difference(state: &State, changes: &Changes) -> String {
    let mut out = String::new();
    for set in &changes.new_sets {
        let type_ = match set.as_ref() {
            SetKey::Peers(_) => "ipv4_addr",
            SetKey::Named(..) | SetKey::NamedHere(..) => "ipv4_addr . inet_proto . inet_service",
        };
        let _ = writeln!(out, "add set {TABLE} {} {{ type {type_}; }}", set.name());
    }
    for name in &changes.new_chains {
        let _ = writeln!(out, "add chain {TABLE} {name}");
        let Some(chain) = state.chains().get(name) else { continue };
        for allow in &chain.allows {
            let _ = writeln!(out, "add rule {TABLE} {name} {}", rule(chain.direction, allow));
        }
        let _ = writeln!(out, "add rule {TABLE} {name} drop");
    }
    verdicts(&mut out, "delete", changes.verdicts_out.iter().map(|(to, address)| (*to, *address, None)));
    elements(&mut out, "delete", &changes.elements_out);
    let now = changes.verdicts_in.iter().map(|(to, address, verdict)| (*to, *address, Some(verdict)));
    verdicts(&mut out, "add", now);
    elements(&mut out, "add", &changes.elements_in);
    for name in &changes.old_chains {
        let _ = writeln!(out, "flush chain {TABLE} {name}");
    }
    for set in &changes.old_sets {
        let _ = writeln!(out, "delete set {TABLE} {}", set.name());
    }
    out
}

/// Deletes chains that have been emptied before.
pub(crate) fn delete_chains<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.map(|name| format!("delete chain {TABLE} {name}\n")).collect()
}

fn verdicts<'v>(
    out: &mut String,
    verb: &str,
    all: impl Iterator<Item = (Direction, Ipv4Addr, Option<&'v Verdict>)>,
) {
    let (mut maps, mut pairs) = (BTreeMap::<_, Vec<String>>::new(), Vec::new());
    for (direction, address, verdict) in all {
        let element = match verdict {
            None => address.to_string(),
            Some(None) => format!("{address} : return"),
            Some(Some(chain)) => format!("{address} : goto {chain}"),
        };
        maps.entry(direction.name()).or_default().push(element);
        // Whoever comes or goes does so in both directions at once; one that is judged anew was among itself already.
        if direction == Direction::Egress {
            pairs.push(format!("{address} . {address}"));
        }
    }
    for (map, elements) in &maps {
        lines(out, verb, map, elements);
    }
    lines(out, verb, "itself", &pairs);
}

fn elements(out: &mut String, verb: &str, all: &[(Arc<SetKey>, Element)]) {
    let mut sets = BTreeMap::<String, Vec<String>>::new();
    let mut last: Option<(&Arc<SetKey>, String)> = None;
    for (set, (address, port)) in all {
        let name = match &last {
            Some((key, name)) if Arc::ptr_eq(key, set) => name.clone(),
            _ => set.name(),
        };
        let element = match port {
            None => address.to_string(),
            Some((protocol, number)) => format!("{address} . {} . {number}", protocol.name()),
        };
        sets.entry(name.clone()).or_default().push(element);
        last = Some((set, name));
    }
    for (set, elements) in &sets {
        lines(out, verb, set, elements);
    }
}

fn lines(out: &mut String, verb: &str, set: &str, elements: &[String]) {
    for some in elements.chunks(ELEMENTS_PER_LINE) {
        let _ = writeln!(out, "{verb} element {TABLE} {set} {{ {} }}", some.join(", "));
    }
}

/// The rule for one thing that is let through.
pub(crate) fn rule(direction: Direction, allow: &Allow) -> String {
    let other = match direction {
        Direction::Ingress => "ip saddr",
        Direction::Egress => "ip daddr",
    };
    let mut words = Vec::new();
    match &allow.who {
        Who::Anyone => {}
        Who::Pods(_) => words.extend(allow.peers(direction).map(|set| format!("{other} @{}", set.name()))),
        Who::Ranges(ranges) => words.push(format!("{other} {}", one_of(ranges))),
        Who::RangeBut(range, except) => {
            if range.prefix() > 0 {
                words.push(format!("{other} {range}"));
            }
            words.push(format!("{other} != {}", one_of(except)));
        }
    }
    match &allow.what {
        What::Anything => {}
        What::Ports(protocol, ranges) => {
            words.push(format!("meta l4proto {}", protocol.name()));
            if ranges[..] != [(0, u16::MAX)] {
                words.push(format!("th dport {}", numbers(ranges)));
            }
        }
        What::Named(..) => words.extend(
            allow.ports(direction).map(|set| format!("ip daddr . meta l4proto . th dport @{}", set.name())),
        ),
    }
    words.push("return".to_owned());
    words.join(" ")
}

fn one_of(ranges: &[Source]) -> String {
    let ranges: Vec<String> = ranges.iter().map(Source::to_string).collect();
    format!("{{ {} }}", ranges.join(", "))
}

fn numbers(ranges: &[(u16, u16)]) -> String {
    let ranges: Vec<String> = ranges
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    format!("{{ {} }}", ranges.join(", "))
}

/// Whether a table that `nft -j list table` prints has every set, every chain, and as many rules in each as were written. Elements are
/// not looked at.
pub(crate) fn stands(config: &PolicyConfig, state: &State, json: &[u8]) -> bool {
    let Some(found) = Listed::parse(json) else { return false };
    let has = |name: &str| found.sets.contains(name);
    let has_sets = SETS.iter().all(|(name, _)| name.split(' ').nth(1).is_some_and(has))
        && state.sets().keys().all(|set| has(&set.name()));
    let n_rules = |name: &str| found.n_rules.get(name).copied();
    let chains = base_chains(config);
    has_sets
        && chains.iter().all(|(name, _, rules)| n_rules(name) == Some(rules.len()))
        && state.chains().iter().all(|(name, chain)| n_rules(name) == Some(chain.allows.len() + 1))
}
