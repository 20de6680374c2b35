use super::*;

fn ranges(cluster: &str, node_prefix: u8, services: Option<&str>) -> NodeRanges {
    NodeRanges::new(cluster, node_prefix, services).unwrap()
}

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).unwrap()
}

fn free(ranges: &NodeRanges, taken: &[&str], last: Option<&str>) -> Option<String> {
    ranges.free(taken.iter().map(|t| cidr(t)), last.map(cidr)).map(|c| c.to_string())
}

#[test]
fn no_range_is_given_twice_and_the_last_one_is_given_too() {
    let ranges = ranges("10.244.0.0/22", 24, None);
    let mut given: Vec<Cidr> = Vec::new();
    while let Some(next) = ranges.free(given.iter().copied(), given.last().copied()) {
        assert!(!given.contains(&next), "{next} twice");
        given.push(next);
    }
    let text: Vec<String> = given.iter().map(Cidr::to_string).collect();
    assert_eq!(text, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
    // One node goes: its range is the only one free.
    let left: Vec<Cidr> = given.iter().copied().filter(|c| c.to_string() != "10.244.1.0/24").collect();
    let again = ranges.free(left.into_iter(), given.last().copied());
    assert_eq!(again.map(|c| c.to_string()).as_deref(), Some("10.244.1.0/24"));
}

#[test]
fn what_overlaps_a_taken_range_is_taken() {
    let ranges = ranges("10.244.0.0/22", 24, Some("10.244.2.0/23"));
    assert_eq!(free(&ranges, &["10.244.0.128/25"], None).as_deref(), Some("10.244.1.0/24"));
    assert_eq!(free(&ranges, &["10.244.0.0/23"], None), None);
    assert_eq!(free(&ranges, &["10.0.0.0/8"], None), None);
    assert_eq!(free(&ranges, &["10.200.0.0/16", "fd00::/64"], None).as_deref(), Some("10.244.0.0/24"));
}

#[test]
fn what_was_freed_a_moment_ago_rests_while_there_are_others() {
    let ranges = ranges("10.244.0.0/16", 24, None);
    assert_eq!(free(&ranges, &[], Some("10.244.0.0/24")).as_deref(), Some("10.244.1.0/24"));
    assert_eq!(free(&ranges, &[], Some("10.244.255.0/24")).as_deref(), Some("10.244.0.0/24"));
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
    assert_eq!(free(&v6, &["fd00::/64"], None).as_deref(), Some("fd00:0:0:1::/64"));
    assert!(matches!(NodeRanges::new("10.244.0.0/16", 8, None), Err(RangeError::Size { .. })));
    assert!(matches!(NodeRanges::new("10.0.0.0/8", 28, None), Err(RangeError::Size { .. })));
    assert!(matches!(NodeRanges::new("pods", 24, None), Err(RangeError::Syntax(_))));
}
