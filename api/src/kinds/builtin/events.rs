//! Events, of the core group.

use serde_json::Value;

use super::kind;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{int_at, since, since_text, str_at, text};
use crate::{Kind, Object};

pub(super) fn core() -> Kind {
    kind("", "v1", "Event", "events")
        .short(&["ev"])
        .fields(&[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ])
        .strategy(&Events)
        .columns(vec![
            Column::new("Last Seen", "string", last_seen),
            Column::new("Type", "string", |o, _| text(o, "/type")),
            Column::new("Reason", "string", |o, _| text(o, "/reason")),
            Column::new("Object", "string", |o, _| involved(o)),
            Column::new("Subobject", "string", |o, _| text(o, "/involvedObject/fieldPath")).wide(),
            Column::new("Source", "string", |o, _| source(o)).wide(),
            Column::new("Message", "string", |o, _| str_at(o, "/message").trim().into()),
            Column::new("First Seen", "string", first_seen).wide(),
            Column::new("Count", "string", |o, _| times_seen(o).into()).wide(),
            Column { priority: 1, ..Column::name() },
        ])
}

fn involved(event: &Object) -> Value {
    let kind = str_at(event, "/involvedObject/kind").to_lowercase();
    match str_at(event, "/involvedObject/name") {
        "" => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

fn first_seen(event: &Object, now_s: i64) -> Value {
    match str_at(event, "/firstTimestamp") {
        "" => since(event, "/eventTime", now_s),
        time => since_text(time, now_s).into(),
    }
}

fn last_seen(event: &Object, now_s: i64) -> Value {
    let last = match str_at(event, "/series/lastObservedTime") {
        "" => str_at(event, "/lastTimestamp"),
        time => time,
    };
    if last.is_empty() { first_seen(event, now_s) } else { since_text(last, now_s).into() }
}

fn times_seen(event: &Object) -> i64 {
    match (int_at(event, "/series/count"), int_at(event, "/count")) {
        (0, 0) => 1,
        (0, count) | (count, _) => count,
    }
}

/// `component, host`.
fn source(event: &Object) -> Value {
    let either = |path: &str, otherwise: &str| match str_at(event, path) {
        "" => str_at(event, otherwise).to_owned(),
        found => found.to_owned(),
    };
    let parts =
        [either("/source/component", "/reportingComponent"), either("/source/host", "/reportingInstance")];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", ").into()
}

struct Events;

impl Strategy for Events {
    fn field(&self, object: &Object, field: &str) -> String {
        let path = match field {
            // Upstream's one alias: the component that reported.
            "source" => "/source/component".to_owned(),
            field => format!("/{}", field.replace('.', "/")),
        };
        str_at(object, &path).to_owned()
    }
}
