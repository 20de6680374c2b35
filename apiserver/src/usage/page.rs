//! A kubelet's `/metrics/resource`, read for the five metrics that matter. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::points::{Key, Page, Point};

/// More than any node has; a page that names more is no kubelet's.
const MAX_CONTAINERS: usize = 10_000;

const NS_PER_S: f64 = 1e9;
const MS_PER_S: f64 = 1e3;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PageError {
    #[error("the page is no text")]
    NoText,
    #[error("the page names more than {MAX_CONTAINERS} containers")]
    TooMany,
}

/// What a page says. What says no time was measured at `now_ms`. Lines that nobody here asks for, or that cannot be read, say nothing.
pub(super) fn read(page: &[u8], now_ms: i64) -> Result<Page, PageError> {
    let text = std::str::from_utf8(page).map_err(|_| PageError::NoText)?;
    let mut node = Point::default();
    let mut containers: HashMap<Key, Point> = HashMap::new();
    for line in text.lines() {
        let Some(Sample { metric, labels, value, at_ms }) = sample(line) else { continue };
        let at_ms = at_ms.unwrap_or(now_ms);
        let point = match metric {
            "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => &mut node,
            "container_cpu_usage_seconds_total"
            | "container_memory_working_set_bytes"
            | "container_start_time_seconds" => {
                let Some(key) = key(labels) else { continue };
                let n = containers.len();
                match containers.entry(key) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(_) if n >= MAX_CONTAINERS => return Err(PageError::TooMany),
                    Entry::Vacant(new) => new.insert(Point::default()),
                }
            }
            _ => continue,
        };
        // Casts cut off what does not fit, and make 0 of what is no number.
        match metric {
            "container_start_time_seconds" => point.started_ms = (value * MS_PER_S) as i64,
            "node_cpu_usage_seconds_total" | "container_cpu_usage_seconds_total" => {
                (point.cpu_ns, point.at_ms) = ((value * NS_PER_S) as u64, at_ms);
            }
            // The time of what is a rate is the one that counts.
            _ => {
                point.memory_bytes = value as u64;
                if point.at_ms == 0 {
                    point.at_ms = at_ms;
                }
            }
        }
    }
    let mut containers: Vec<(Key, Point)> = containers.into_iter().filter(|(_, p)| p.at_ms != 0).collect();
    containers.sort_unstable_by_key(|(key, _)| *key);
    Ok(Page { node: Some(node).filter(|node| node.at_ms != 0 && !node.is_incomplete()), containers })
}

struct Sample<'l> {
    metric: &'l str,
    /// What stands between the braces.
    labels: &'l str,
    value: f64,
    at_ms: Option<i64>,
}

/// `name{labels} value [milliseconds]`.
fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let (head, labels, rest) = match line.split_once('{') {
        Some((head, rest)) => {
            let (labels, rest) = rest.rsplit_once('}')?;
            (head, labels, rest)
        }
        None => {
            let (head, rest) = line.split_once(' ')?;
            (head, "", rest)
        }
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let at_ms = words.next().map(str::parse).transpose().ok()?;
    Some(Sample { metric: head.trim(), labels, value, at_ms })
}

/// Which container labels are of. Names have neither quotes nor commas.
fn key(labels: &str) -> Option<Key> {
    let (mut container, mut namespace, mut pod) = (None, None, None);
    for label in labels.split(',') {
        let (name, value) = label.split_once('=')?;
        let value = Some(value.trim().trim_matches('"'));
        match name.trim() {
            "container" => container = value,
            "namespace" => namespace = value,
            "pod" => pod = value,
            _ => {}
        }
    }
    Some(Key::of(namespace?, pod?, container?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_page_says_what_a_node_and_its_containers_use() {
        let text = "# HELP container_cpu_usage_seconds_total …\n\
            # TYPE container_cpu_usage_seconds_total counter\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.25 2000\n\
            container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4.096e+03 1900\n\
            container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5\n\
            container_swap_usage_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 9 2000\n\
            node_cpu_usage_seconds_total 7 3000\n\
            node_memory_working_set_bytes 8192 3000\n\
            pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 1.25 3000\n";
        let page = read(text.as_bytes(), 9).expect("a page");
        let node = Point { started_ms: 0, at_ms: 3000, cpu_ns: 7_000_000_000, memory_bytes: 8192 };
        let container = Point { started_ms: 1500, at_ms: 2000, cpu_ns: 1_250_000_000, memory_bytes: 4096 };
        assert_eq!(page, Page { node: Some(node), containers: vec![(Key::of("n", "p", "c"), container)] });
    }

    #[test]
    fn what_has_no_time_is_of_now_and_what_cannot_be_read_says_nothing() {
        let text = "node_cpu_usage_seconds_total 7\nnode_memory_working_set_bytes 1\n\
            container_cpu_usage_seconds_total{pod=\"p\"} 1\nnode_cpu_usage_seconds_total x\n}{\n\u{0}\n";
        let page = read(text.as_bytes(), 9).expect("a page");
        assert_eq!(page.node.map(|node| (node.at_ms, node.cpu_ns)), Some((9, 7_000_000_000)));
        assert_eq!(page.containers, []);
        assert_eq!(read(b"node_cpu_usage_seconds_total 7 1\n", 9).expect("a page").node, None, "half of it");
        assert_eq!(read(&[0xff], 9), Err(PageError::NoText));
        assert_eq!(read(b"", 9), Ok(Page::default()));
    }

    #[test]
    fn a_page_of_too_many_containers_is_refused() {
        let line = |n| {
            format!("container_cpu_usage_seconds_total{{container=\"c\",namespace=\"n\",pod=\"{n}\"}} 1\n")
        };
        let of = |n: usize| (0..n).map(line).collect::<String>();
        assert_eq!(
            read(of(MAX_CONTAINERS).as_bytes(), 1).map(|page| page.containers.len()),
            Ok(MAX_CONTAINERS)
        );
        assert_eq!(read(of(MAX_CONTAINERS + 1).as_bytes(), 1), Err(PageError::TooMany));
    }
}
