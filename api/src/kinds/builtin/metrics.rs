//! Resource metrics: what nodes and pods use. Computed by whoever is asked, and nowhere stored.

use super::kind;
use crate::quantity::Quantity;
use crate::table::Column;
use crate::table::cell::{items_at, text};
use crate::{Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    // The names of these have no singular: `node` and `pod` are those of the core group.
    let of =
        |name, plural| Kind { singular: String::new(), ..kind("metrics.k8s.io", "v1beta1", name, plural) };
    vec![
        of("NodeMetrics", "nodes").cluster().unstored().folder("metrics.k8s.io/nodes").columns(columns([
            Column::new("cpu", "string", |o, _| text(o, "/usage/cpu")),
            Column::new("memory", "string", |o, _| text(o, "/usage/memory")),
        ])),
        of("PodMetrics", "pods").unstored().folder("metrics.k8s.io/pods").columns(columns([
            Column::new("cpu", "string", |o, _| sum(o, "/usage/cpu").into()),
            Column::new("memory", "string", |o, _| sum(o, "/usage/memory").into()),
        ])),
    ]
}

fn columns([cpu, memory]: [Column; 2]) -> Vec<Column> {
    let with = |format: &'static str, column: Column| Column { format: format.into(), ..column };
    let window = Column::new("Window", "string", |o, _| text(o, "/window"));
    vec![Column::name(), with("quantity", cpu), with("quantity", memory), with("duration", window)]
}

/// What all containers of a pod use of something.
fn sum(pod: &Object, path: &str) -> String {
    let containers = items_at(pod, "/containers").iter();
    let mut used = containers.filter_map(|c| c.pointer(path)?.as_str()?.parse::<Quantity>().ok());
    let first = used.next();
    first.map(|first| used.fold(first, |sum, more| sum + more).to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_of_a_pod_is_the_sum_of_its_containers() {
        let used = |cpu: &str, memory: &str| json!({"name": "c", "usage": {"cpu": cpu, "memory": memory}});
        let pod = json!({"containers": [used("1500000n", "4Ki"), used("2m", "1Mi")]});
        assert_eq!((sum(&pod, "/usage/cpu"), sum(&pod, "/usage/memory")), ("3500u".into(), "1028Ki".into()));
        assert_eq!(sum(&json!({"containers": []}), "/usage/cpu"), "");
    }
}
