//! Objects as Go's clients read them.
//!
//! The API server stores what upstream's stores, and that includes times that the types of k8s-openapi refuse: `null`, where
//! the writer of a `metav1.Condition` gave no `lastTransitionTime`, and the last hours of the year 9999. A watch that meets
//! one object which it cannot read delivers nothing of any other, so whoever may write one object could blind every
//! component to all objects of its kind.
//!
//! # Guarantees
//! - An object that Go's types read is read: a time that is missing is Go's zero time, and one that is too late the latest.
//! - An object that cannot be read is named, with the reason, in the log; the list or the watch fails.
//!
//! # Caveats
//! In an event of a watch `type` comes before `object`, as Go writes it and the API server too.

use std::borrow::Cow;
use std::fmt::Debug;

use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Resource};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::warn;

/// Go's zero time, which it writes as `null` and reads from either.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";
/// The latest time that has every offset, which is what `jiff::Timestamp` takes.
const LATEST_TIME: &str = "9999-12-30T22:00:00Z";
/// How the names of fields end that are times.
const TIME_NAMES: [&str; 4] = ["Time", "Timestamp", "At", "timeAdded"];
/// Maps with keys and values of users, which are no fields.
const USER_MAPS: [&str; 6] = ["annotations", "labels", "matchLabels", "nodeSelector", "data", "binaryData"];
/// Of `metav1.Condition` and `events.k8s.io` `EventSeries`: times without which k8s-openapi refuses what holds them.
const TIMES: [&str; 2] = ["lastTransitionTime", "lastObservedTime"];

/// A `K` that is read as Go reads it. It is for `Api<Read<K>>`: what comes out is taken as `.0`.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Read<K>(pub K);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Read<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        // Nearly every object is read here; only what cannot be is read a second time.
        if let Ok(object) = serde_json::from_str(raw.get()) {
            return Ok(Read(object));
        }
        let mut value: Value = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        fill_times(&mut value);
        let named = name(&value);
        match serde_json::from_value(value) {
            Ok(object) => Ok(Read(object)),
            Err(error) => {
                warn!(object = named, %error, "an object of the API server cannot be read");
                Err(D::Error::custom(format!("cannot read {named}: {error}")))
            }
        }
    }
}

fn name(value: &Value) -> String {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// Gives conditions, and all that has such a time as `null`, Go's zero time; brings times that are too late into range.
fn fill_times(value: &mut Value) {
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(list) => rest.extend(list),
            Value::Object(map) => {
                for (key, value) in map {
                    fill_time(key, value);
                    if !USER_MAPS.contains(&key.as_str()) {
                        rest.push(value);
                    }
                }
            }
            _ => {}
        }
    }
}

fn fill_time(key: &str, value: &mut Value) {
    match value {
        Value::Null if TIMES.contains(&key) => *value = ZERO_TIME.into(),
        Value::String(text) if TIME_NAMES.iter().any(|name| key.ends_with(name)) && is_too_late(text) => {
            *value = LATEST_TIME.into();
        }
        Value::Object(times) if key == "disruptedPods" => {
            for time in times.values_mut().filter(|time| time.as_str().is_some_and(is_too_late)) {
                *time = LATEST_TIME.into();
            }
        }
        Value::Array(conditions) if key == "conditions" => {
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                condition.entry("lastTransitionTime").or_insert_with(|| ZERO_TIME.into());
            }
        }
        _ => {}
    }
}

/// Whether a text is a time, but none that a `jiff::Timestamp` can be.
fn is_too_late(text: &str) -> bool {
    let civil = text.strip_suffix('Z').is_some_and(|text| text.parse::<jiff::civil::DateTime>().is_ok());
    civil && text.parse::<jiff::Timestamp>().is_err()
}

impl<K: Resource> Resource for Read<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    /// Of a view that is read elsewhere, its own.
    fn url_path(of: &K::DynamicType, namespace: Option<&str>) -> String {
        K::url_path(of, namespace)
    }

    fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        self.0.meta_mut()
    }
}

/// A list and then a watch, tried again with back-off, of which no object takes the others out.
pub fn watched<K>(
    api: Api<Read<K>>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watch(api, config).default_backoff().map(|event| {
        event.map(|event| match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(object.0),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(object.0),
            Event::Delete(object) => Event::Delete(object.0),
        })
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use kube::api::WatchEvent;
    use serde_json::json;

    use super::*;

    fn read<K: DeserializeOwned>(value: &Value) -> Result<K, serde_json::Error> {
        serde_json::from_str::<Read<K>>(&value.to_string()).map(|read| read.0)
    }

    #[test]
    fn a_condition_without_its_time_has_go_s_zero_time() {
        let given = json!({"type": "T", "status": "True", "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        for (what, time) in [("null", Some(Value::Null)), ("missing", None)] {
            let mut condition = json!({"type": "U", "status": "True"});
            if let Some(time) = time {
                condition["lastTransitionTime"] = time;
            }
            let status = json!({"status": {"conditions": [condition, given]}});
            let service: Service = read(&status).unwrap_or_else(|error| panic!("{what}: {error}"));
            let conditions = service.status.and_then(|status| status.conditions).unwrap();
            assert_eq!(
                serde_json::to_value(&conditions[0].last_transition_time).unwrap(),
                ZERO_TIME,
                "{what}"
            );
            assert_eq!(serde_json::to_value(&conditions[1]).unwrap(), given, "{what}");
            read::<PodDisruptionBudget>(&status).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }

    #[test]
    fn a_time_at_the_end_of_the_year_9999_is_read_wherever_it_is() {
        let late = "9999-12-31T23:59:59Z";
        let mut budget = json!({"metadata": {"deletionTimestamp": late, "annotations": {"startTime": late}},
            "status": {"disruptedPods": {"p": late}, "conditions": [{"type": "T", "lastTransitionTime": late}]}});
        let read_one = serde_json::to_value(read::<PodDisruptionBudget>(&budget).unwrap()).unwrap();
        for time in [
            "/metadata/deletionTimestamp",
            "/status/disruptedPods/p",
            "/status/conditions/0/lastTransitionTime",
        ] {
            assert_eq!(read_one.pointer(time).unwrap(), LATEST_TIME, "{time}");
        }
        assert_eq!(read_one.pointer("/metadata/annotations/startTime").unwrap(), late);
        budget["metadata"]["deletionTimestamp"] = "9999-12-32T00:00:00Z".into();
        read::<PodDisruptionBudget>(&budget).unwrap_err();
    }

    #[test]
    fn an_event_of_a_watch_is_read_in_the_same_way() {
        let object = json!({"metadata": {"name": "a"},
            "status": {"conditions": [{"type": "T", "lastTransitionTime": null}]}});
        for kind in ["ADDED", "MODIFIED", "DELETED"] {
            let line = format!(r#"{{"type":"{kind}","object":{object}}}"#);
            assert!(serde_json::from_str::<WatchEvent<Service>>(&line).is_err(), "{kind}: nothing to mend");
            serde_json::from_str::<WatchEvent<Read<Service>>>(&line)
                .unwrap_or_else(|e| panic!("{kind}: {e}"));
        }
    }

    #[test]
    fn what_is_no_such_object_is_named() {
        let odd =
            json!({"kind": "Service", "metadata": {"namespace": "n", "name": "a"}, "spec": {"ports": 1}});
        let error = read::<Service>(&odd).unwrap_err().to_string();
        assert!(error.starts_with("cannot read Service n/a: "), "{error}");
    }
}
