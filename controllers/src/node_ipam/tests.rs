use kube::api::ObjectMeta;
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::{ScriptedApi, discovery};

fn ranges(cluster: &str, node_prefix: u8, services: Option<&str>) -> NodeRanges {
    NodeRanges::new(cluster, node_prefix, services).unwrap()
}

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).unwrap()
}

/// The ranges that a range takes part in.
fn within(ranges: &NodeRanges, text: &str) -> Vec<String> {
    ranges.indexes(&cidr(text)).filter_map(|at| ranges.at(at)).map(|c| c.to_string()).collect()
}

#[test]
fn what_overlaps_a_range_is_a_part_of_it_or_takes_it_in() {
    let ranges = ranges("10.244.0.0/22", 24, None);
    assert_eq!(within(&ranges, "10.244.0.128/25"), ["10.244.0.0/24"]);
    assert_eq!(within(&ranges, "10.244.2.0/23"), ["10.244.2.0/24", "10.244.3.0/24"]);
    assert_eq!(within(&ranges, "10.0.0.0/8").len(), 4);
    assert!(within(&ranges, "10.200.0.0/16").is_empty() && within(&ranges, "fd00::/64").is_empty());
}

#[test]
fn ranges_are_read_and_sizes_that_cannot_be_are_refused() {
    assert_eq!(cidr("10.244.7.9/16").to_string(), "10.244.0.0/16");
    assert_eq!(cidr("0.0.0.0/0").to_string(), "0.0.0.0/0");
    assert_eq!(cidr("fd00:1::9/64").to_string(), "fd00:1::/64");
    for bad in ["10.244.0.0", "10.244.0.0/33", "x/8", "10.244.0.0/-1", "/"] {
        assert_eq!(Cidr::parse(bad), None, "{bad}");
    }
    let v6 = ranges("fd00::/48", 64, None);
    assert_eq!(v6.len(), 65_536);
    assert_eq!(within(&v6, "fd00:0:0:1::/64"), ["fd00:0:0:1::/64"]);
    assert_eq!(within(&v6, "::/0").len(), 65_536);
    assert!(matches!(NodeRanges::new("10.244.0.0/16", 8, None), Err(RangeError::Size { .. })));
    assert!(matches!(NodeRanges::new("10.0.0.0/8", 28, None), Err(RangeError::Size { .. })));
    assert!(matches!(NodeRanges::new("pods", 24, None), Err(RangeError::Syntax(_))));
}

fn node(name: &str, second: i64, range: &str) -> Node {
    let mut node =
        Node { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, ..Node::default() };
    node.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        jiff::Timestamp::from_second(second).unwrap(),
    ));
    node.spec.get_or_insert_default().pod_cidr = Some(range.to_owned()).filter(|range| !range.is_empty());
    node
}

#[test]
fn of_two_nodes_with_one_range_it_is_the_younger_that_is_wrong() {
    let (old, young) = (node("b", 1, "10.244.1.0/24"), node("a", 2, "10.244.1.0/24"));
    assert!(is_younger(&young, &old) && !is_younger(&old, &young));
    let twin = node("c", 1, "10.244.1.0/24");
    assert!(is_younger(&twin, &old) != is_younger(&old, &twin), "one of them is");
}

#[tokio::test]
async fn a_node_for_which_there_is_no_range_is_not_looked_at_again_before_one_is_freed() {
    let api = ScriptedApi::new(|_| None);
    let shutdown = CancellationToken::new();
    let informers = Informers::new(api.client(), shutdown.clone());
    let context = Context::new(api.credentials(), informers, discovery());
    let ipam = NodeCidrs::new(&context, ranges("10.244.0.0/24", 24, None));
    shutdown.cancel();
    let (first, late) = (node("first", 1, "10.244.0.0/24"), node("late", 2, ""));
    for node in [&first, &late] {
        ipam.seen.follow(None, Some(node));
        let key = ipam.queue.get().await.unwrap();
        ipam.queue.done(&key);
    }
    assert!(ipam.give(&late).is_none());
    ipam.seen.follow(Some(&late), Some(&late));
    ipam.seen.follow(Some(&first), Some(&first));
    assert!(ipam.queue.is_empty(), "that nodes report is no reason");
    ipam.seen.follow(Some(&first), None);
    assert!(ipam.queue.len() == 2, "the one that waits, and the one that is gone");
    assert_eq!(ipam.queue.get().await, Some(ObjectKey::new("", "late")));
    assert_eq!(ipam.give(&late).map(|c| c.to_string()).as_deref(), Some("10.244.0.0/24"));
}
