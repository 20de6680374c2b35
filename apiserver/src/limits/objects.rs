//! FlowSchemas and PriorityLevelConfigurations: those that every cluster has are there, all of them count, and each schema says
//! whether its level is there.
//!
//! Source: upstream's `flowcontrol` controller, and the ensurer beside its storage.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};
use skiff_flow::{AUTO_UPDATE, Bootstrap, Config, Dangling, bootstrap};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::cache::Filter;
use crate::call::key_of;
use crate::clock::now;
use crate::lister::Lister;
use crate::objects::Next;
use crate::registry::Registry;
use crate::registry::ensure::Existing;
use crate::retry::{Backoff, Follow};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const LEVELS: &str = "prioritylevelconfigurations";
const SCHEMAS: &str = "flowschemas";
/// Objects that are written at the same time.
const TOGETHER: usize = 16;
/// How often seats are shared out anew.
const REBALANCE_EVERY: Duration = Duration::from_secs(10);
/// How often the objects of every cluster are looked after.
const ENSURE_EVERY: Duration = Duration::from_secs(60);

/// The objects, and who goes by them.
pub(crate) struct FlowObjects {
    pub(crate) registry: Arc<Registry>,
    pub(crate) limits: Arc<Limits>,
}

#[async_trait]
impl Follow for FlowObjects {
    const WHAT: &'static str = "follow flow schemas and priority levels";

    async fn once(&self, _: &CancellationToken, backoff: &mut Backoff) -> Result<(), Status> {
        let mut levels = self.lister().cache(GROUP, "v1", LEVELS)?.watch(Filter::default(), None)?;
        let mut schemas = self.lister().cache(GROUP, "v1", SCHEMAS)?.watch(Filter::default(), None)?;
        let mut rebalance = tokio::time::interval_at(Instant::now() + REBALANCE_EVERY, REBALANCE_EVERY);
        rebalance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ensure = tokio::time::interval_at(Instant::now() + ENSURE_EVERY, ENSURE_EVERY);
        loop {
            self.apply().await?;
            backoff.worked();
            loop {
                tokio::select! {
                    changed = levels.changes.recv() => if changed.is_none() { return Ok(()) },
                    changed = schemas.changes.recv() => if changed.is_none() { return Ok(()) },
                    _ = rebalance.tick() => {
                        self.limits.flow.rebalance();
                        continue;
                    }
                    _ = ensure.tick() => self.ensure().await?,
                }
                break;
            }
            while levels.changes.try_recv().is_ok() || schemas.changes.try_recv().is_ok() {}
        }
    }
}

impl FlowObjects {
    fn lister(&self) -> &Lister {
        &self.registry.objects.lister
    }

    /// Goes over to the objects as they stand, and tells which schemas dangle.
    pub(crate) async fn apply(&self) -> Result<(), Status> {
        self.lister().caches.wait_for_newest().await?;
        let kind = self.lister().kind(GROUP, "v1", SCHEMAS)?;
        let levels = self.all_of(LEVELS)?;
        let schemas = self.all_of(SCHEMAS)?;
        let config = Config::read(&levels, &schemas);
        self.limits.flow.configure(&config);
        let mut steps = Vec::new();
        for (dangling, schema) in config.dangling.iter().zip(&schemas) {
            if condition(schema, dangling).is_some() {
                steps.push(self.tell_dangling(&kind, dangling).boxed());
            }
        }
        together(steps).await
    }

    async fn tell_dangling(&self, kind: &Kind, dangling: &Dangling) -> Result<(), Status> {
        let tell = self.registry.objects.modify(kind, "", &dangling.schema, false, |current| {
            let mut schema = current.object.clone();
            if let Some(condition) = condition(&schema, dangling) {
                put(&mut schema, condition);
            }
            Ok(Next::Put(schema))
        });
        unless_gone(tell.await)
    }

    fn all_of(&self, plural: &str) -> Result<Vec<Object>, Status> {
        Ok(self.lister().cache(GROUP, "v1", plural)?.readable().values().map(|entry| entry.parse()).collect())
    }

    /// The objects that every cluster has: made if missing; of those that nobody has made their own, the `spec` is as it should be.
    pub(crate) async fn ensure(&self) -> Result<(), Status> {
        let all = bootstrap();
        for (plural, objects) in [(LEVELS, all.levels), (SCHEMAS, all.schemas)] {
            let kind = self.lister().kind(GROUP, "v1", plural)?;
            let mut steps = Vec::new();
            for object in &objects {
                steps.push(self.ensure_one(&kind, plural, object).boxed());
            }
            together(steps).await?;
            for entry in self.lister().caches.of(&kind)?.readable().values() {
                let found = entry.parse();
                // One that an older version of the server made for every cluster.
                if updates_itself(&found) == Some(true) && !objects.iter().any(|o| o.name() == found.name()) {
                    self.remove_unchanged(&kind, &found).await?;
                }
            }
        }
        Ok(())
    }

    async fn ensure_one(&self, kind: &Kind, plural: &str, object: &Object) -> Result<(), Status> {
        let name = object.name();
        match self.lister().caches.of(kind)?.get(&key_of(kind, "", name))? {
            None => {
                self.registry.ensure((GROUP, "v1", plural), "", name, object.clone(), Existing::Stays).await
            }
            Some(entry) if revised(&entry.parse(), object).is_some() => self.revise(kind, object).await,
            Some(_) => Ok(()),
        }
    }

    async fn revise(&self, kind: &Kind, wanted: &Object) -> Result<(), Status> {
        let revise = self.registry.objects.modify(kind, "", wanted.name(), false, |current| {
            Ok(Next::Put(revised(&current.object, wanted).unwrap_or_else(|| current.object.clone())))
        });
        unless_gone(revise.await)
    }

    async fn remove_unchanged(&self, kind: &Kind, found: &Object) -> Result<(), Status> {
        let remove = self.registry.objects.modify(kind, "", found.name(), false, |current| {
            if current.object.resource_version() != found.resource_version() {
                return Ok(Next::Put(current.object.clone()));
            }
            Ok(Next::Delete(current.object.clone()))
        });
        unless_gone(remove.await)
    }
}

/// Does several things at once: one after the other, each would wait for the disk.
async fn together(steps: Vec<BoxFuture<'_, Result<(), Status>>>) -> Result<(), Status> {
    let mut done = stream::iter(steps).buffer_unordered(TOGETHER);
    let mut outcome = Ok(());
    while let Some(step) = done.next().await {
        outcome = outcome.and(step);
    }
    outcome
}

/// What was deleted meanwhile needs no change any more.
fn unless_gone<T>(written: Result<T, Status>) -> Result<(), Status> {
    match written {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// What the annotation says, if it says it.
fn updates_itself(object: &Object) -> Option<bool> {
    match object["metadata"]["annotations"][AUTO_UPDATE].as_str()? {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// An object of every cluster as it should be, if it is otherwise.
fn revised(found: &Object, wanted: &Object) -> Option<Object> {
    let is_ours = Bootstrap::is_mandatory(wanted.name())
        // Without the annotation, nobody has changed a spec that is still the first.
        || updates_itself(found).unwrap_or_else(|| found["metadata"]["generation"] == 1);
    let has_changed = is_ours && !holds(&found["spec"], &wanted["spec"]);
    if !has_changed && updates_itself(found) == Some(is_ours) {
        return None;
    }
    let mut revised = found.clone();
    if has_changed {
        revised["spec"] = wanted["spec"].clone();
        let generation = found["metadata"]["generation"].as_i64().unwrap_or_default();
        revised["metadata"]["generation"] = (generation + 1).into();
    }
    if !revised["metadata"]["annotations"].is_object() {
        revised["metadata"]["annotations"] = json!({});
    }
    revised["metadata"]["annotations"][AUTO_UPDATE] = is_ours.to_string().into();
    Some(revised)
}

/// Whether everything wanted is as found; what is found besides are defaults.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| holds(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found.iter().zip(wanted).all(|(found, wanted)| holds(found, wanted))
        }
        (found, wanted) => found == wanted,
    }
}

/// The condition that a schema lacks.
fn condition(schema: &Object, dangling: &Dangling) -> Option<Value> {
    let (status, reason, exists) = if dangling.is_dangling {
        ("True", "NotFound", "but there is no such object")
    } else {
        ("False", "Found", "and it exists")
    };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {:?} {exists}",
        dangling.level
    );
    let conditions = schema["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == "Dangling");
    if found.is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == *message) {
        return None;
    }
    Some(json!({
        "type": "Dangling", "status": status, "lastTransitionTime": now(), "reason": reason, "message": message,
    }))
}

fn put(schema: &mut Object, condition: Value) {
    match schema["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|condition| condition["type"] != "Dangling");
            conditions.push(condition);
        }
        None => schema["status"] = json!({"conditions": [condition]}),
    }
}
