//! The texts of types that k8s-openapi does not have: those of resource metrics. In words of our own.

const PACKAGE: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1.";
/// A type whose fields of every object say the same as of any other.
const LIKE: &str = "io.k8s.api.core.v1.Pod";
const LIKE_LIST: &str = "io.k8s.api.core.v1.PodList";

/// What a type is for, and what some of its fields are.
type Text = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const USAGE: (&str, &str) = (
    "usage",
    "How much is used of each resource: `cpu` is a rate over the window, `memory` the working set at its end.",
);
const TIMESTAMP: (&str, &str) = ("timestamp", "The end of the window that was measured.");
const WINDOW: (&str, &str) = ("window", "How long the window is that ends at `timestamp`.");

const TEXTS: &[Text] = &[
    (
        "ContainerMetrics",
        "What a container uses.",
        &[("name", "The name of the container, as the spec of its pod has it."), USAGE],
    ),
    ("NodeMetrics", "What a node uses, with everything that runs on it.", &[TIMESTAMP, USAGE, WINDOW]),
    (
        "NodeMetricsList",
        "What several nodes use.",
        &[("items", "One for each node of which something is known.")],
    ),
    (
        "PodMetrics",
        "What the containers of a pod use.",
        &[("containers", "One for each container that runs."), TIMESTAMP, WINDOW],
    ),
    (
        "PodMetricsList",
        "What several pods use.",
        &[("items", "One for each pod of which everything is known.")],
    ),
];

fn find(name: &str) -> Option<&'static Text> {
    let short = name.strip_prefix(PACKAGE)?;
    TEXTS.iter().find(|(of, _, _)| *of == short)
}

pub(crate) fn of_type(name: &str) -> Option<&'static str> {
    find(name).map(|(_, text, _)| *text)
}

pub(crate) fn of_field(name: &str, field: &str) -> Option<&'static str> {
    let (_, _, fields) = find(name)?;
    fields.iter().find(|(of, _)| *of == field).map(|(_, text)| *text)
}

/// The type whose texts those of all objects are taken from.
pub(crate) fn like(name: &str) -> Option<&'static str> {
    let (name, _, _) = find(name)?;
    Some(if name.ends_with("List") { LIKE_LIST } else { LIKE })
}
