//! Events: `core/v1` and `events.k8s.io/v1` are two views of the same stored objects.

use serde_json::{Value, json};

use super::kind;
use crate::meta::Meta;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{int_at, since, since_text, str_at, text};
use crate::{Cause, Kind, Object, name};

/// What the core group calls a selectable field, and what `events.k8s.io` calls it, if it offers it.
const FIELDS: &[(&str, &str)] = &[
    ("involvedObject.kind", "regarding.kind"),
    ("involvedObject.namespace", "regarding.namespace"),
    ("involvedObject.name", "regarding.name"),
    ("involvedObject.uid", "regarding.uid"),
    ("involvedObject.apiVersion", "regarding.apiVersion"),
    ("involvedObject.resourceVersion", "regarding.resourceVersion"),
    ("involvedObject.fieldPath", "regarding.fieldPath"),
    ("reportingComponent", "reportingController"),
];

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
        .strategy(&CoreEvents)
        .columns(columns())
}

/// Stored as events of the core group, in the same folder.
pub(super) fn events() -> Kind {
    kind("events.k8s.io", "v1", "Event", "events")
        .short(&["ev"])
        .fields(&[
            "reason",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reportingController",
            "type",
        ])
        .strategy(&Events)
        .columns(columns())
}

/// Rows are printed of the stored version.
fn columns() -> Vec<Column> {
    vec![
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
    ]
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

struct CoreEvents;

impl Strategy for CoreEvents {
    fn field(&self, object: &Object, field: &str) -> String {
        let path = match field {
            // Upstream's one alias: the component that reported.
            "source" if str_at(object, "/source/component").is_empty() => "/reportingComponent".to_owned(),
            "source" => "/source/component".to_owned(),
            field => format!("/{}", field.replace('.', "/")),
        };
        str_at(object, &path).to_owned()
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let parts =
            Parts { involved: "involvedObject", controller: "reportingComponent", message: "message" };
        legacy_faults(object, &parts)
    }
}

struct Events;

impl Strategy for Events {
    fn stored_field<'f>(&self, field: &'f str) -> &'f str {
        FIELDS.iter().find(|(_, events)| *events == field).map_or(field, |(core, _)| core)
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let parts = Parts { involved: "regarding", controller: "reportingController", message: "note" };
        legacy_faults(object, &parts)
    }

    fn validate_create(&self, object: &Object) -> Vec<Cause> {
        let mut causes = series_faults(object);
        if str_at(object, "/eventTime").is_empty() {
            causes.push(Cause::required("eventTime", ""));
        }
        let kind = str_at(object, "/type");
        if !matches!(kind, "Normal" | "Warning") {
            causes.push(Cause::invalid("type", &json!(""), &format!("has invalid value: {kind}")));
        }
        let deprecated = [
            ("firstTimestamp", !object["deprecatedFirstTimestamp"].is_null()),
            ("lastTimestamp", !object["deprecatedLastTimestamp"].is_null()),
            ("count", int_at(object, "/deprecatedCount") != 0),
            ("source", !is_empty_source(&object["deprecatedSource"])),
        ];
        for (field, _) in deprecated.iter().filter(|(_, set)| *set) {
            causes.push(Cause::invalid(*field, &json!(""), "needs to be unset"));
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = Vec::new();
        if new["series"] != old["series"] {
            causes.extend(series_faults(new));
        }
        for (field, path) in IMMUTABLE {
            if !same(&new[*field], &old[*field]) {
                causes.push(Cause::invalid(*path, &new[*field], "field is immutable"));
            }
        }
        causes
    }
}

/// What an update through `events.k8s.io` may not change, and the stored version's name of it, which upstream
/// uses in its answers.
const IMMUTABLE: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("reason", "reason"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingController", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

/// Whether two values are one to a client that leaves out what is empty.
fn same(a: &Value, b: &Value) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Object(map) => map.values().all(|value| value.is_null() || *value == ""),
        _ => false,
    };
    a == b || (is_empty(a) && is_empty(b))
}

fn is_empty_source(source: &Value) -> bool {
    str_at(source, "/component").is_empty() && str_at(source, "/host").is_empty()
}

fn series_faults(event: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    if event["series"].is_null() {
        return causes;
    }
    if int_at(event, "/series/count") < 2 {
        causes.push(Cause::invalid("series.count", &json!(""), "should be at least 2"));
    }
    if str_at(event, "/series/lastObservedTime").is_empty() {
        causes.push(Cause::required("series.lastObservedTime", ""));
    }
    causes
}

/// What the version of the request calls a part of an event.
struct Parts {
    involved: &'static str,
    controller: &'static str,
    message: &'static str,
}

/// What both versions demand: little of events of the old style, which have no `eventTime`.
fn legacy_faults(event: &Object, parts: &Parts) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (namespace, involved) = (event.namespace(), str_at(&event[parts.involved], "/namespace"));
    let is_new = !str_at(event, "/eventTime").is_empty();
    let fits = match (involved, is_new) {
        ("", false) => matches!(namespace, "" | "default"),
        ("", true) => matches!(namespace, "default" | "kube-system"),
        (involved, false) => involved == namespace,
        (_, true) => true,
    };
    if !fits {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &json!(involved), why));
    }
    if is_new {
        causes.extend(reporting_faults(event, parts));
    }
    if let Some(fault) = name::dns_subdomain_fault(namespace) {
        causes.push(Cause::invalid("namespace", &json!(namespace), &fault));
    }
    causes
}

fn reporting_faults(event: &Object, parts: &Parts) -> Vec<Cause> {
    const MAX_BYTES: usize = 128;
    const MAX_NOTE_BYTES: usize = 1024;
    let mut causes = Vec::new();
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let too_long = |field: &str, max: usize| {
        Cause::invalid(field, &json!(""), &format!("can have at most {max} characters"))
    };
    let controller = text(parts.controller);
    if controller.is_empty() {
        causes.push(Cause::required(parts.controller, ""));
    }
    if let Some(fault) = name::qualified_name_fault(controller) {
        causes.push(Cause::invalid(parts.controller, &json!(controller), &fault));
    }
    for field in ["reportingInstance", "action", "reason"] {
        if text(field).is_empty() {
            causes.push(Cause::required(field, ""));
        }
        if text(field).len() > MAX_BYTES {
            causes.push(too_long(field, MAX_BYTES));
        }
    }
    if text(parts.message).len() > MAX_NOTE_BYTES {
        causes.push(too_long("message", MAX_NOTE_BYTES));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Object {
        json!({
            "metadata": {"name": "e", "namespace": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "regarding": {"kind": "Pod", "namespace": "a", "name": "p"}, "type": "Normal",
            "reportingController": "example.com/c", "reportingInstance": "c-0", "action": "Run", "reason": "Ran",
        })
    }

    fn fields(causes: &[Cause]) -> Vec<&str> {
        causes.iter().map(|cause| cause.field.as_str()).collect()
    }

    #[test]
    fn a_new_event_says_who_reports_what_and_uses_nothing_deprecated() {
        let good = event();
        assert!(Events.validate(&good).is_empty() && Events.validate_create(&good).is_empty());
        let mut bad = event();
        for field in ["reportingController", "reportingInstance", "action", "reason", "type"] {
            bad[field] = "".into();
        }
        bad["deprecatedCount"] = 2.into();
        bad["deprecatedSource"] = json!({"component": "c"});
        bad["series"] = json!({"count": 1});
        let causes = Events.validate(&bad);
        let wanted = ["reportingController", "reportingController", "reportingInstance", "action", "reason"];
        assert_eq!(fields(&causes), wanted);
        let causes = Events.validate_create(&bad);
        assert_eq!(fields(&causes), ["series.count", "series.lastObservedTime", "type", "count", "source"]);
    }

    #[test]
    fn only_the_series_of_an_event_changes() {
        let (old, mut new) = (event(), event());
        new["series"] = json!({"count": 3, "lastObservedTime": "2026-01-01T00:00:01.000000Z"});
        new["deprecatedSource"] = json!({});
        assert!(Events.validate_update(&new, &old).is_empty());
        new["note"] = "changed".into();
        new["regarding"]["name"] = "q".into();
        assert_eq!(fields(&Events.validate_update(&new, &old)), ["involvedObject", "message"]);
    }

    #[test]
    fn an_event_of_the_old_style_only_needs_its_namespace_to_match() {
        let mut old = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}});
        assert!(CoreEvents.validate(&old).is_empty());
        old["involvedObject"]["namespace"] = "b".into();
        assert_eq!(fields(&CoreEvents.validate(&old)), ["involvedObject.namespace"]);
    }
}
