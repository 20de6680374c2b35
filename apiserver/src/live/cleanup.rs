//! What happens to the objects of a definition that is deleted: they are deleted first.
//!
//! Source: apiextensions-apiserver's `pkg/controller/finalizer/crd_finalizer.go`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_api::kinds::kinds_of;
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};
use tokio_util::sync::CancellationToken;

use super::names::{DEFINITIONS, is_true, set_condition};
use crate::cache::Filter;
use crate::call::Call;
use crate::lister::Lister;
use crate::objects::Next;
use crate::registry::Registry;
use crate::registry::options::DeleteOptions;
use crate::retry::RETRY_MAX;

pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// How long a deletion waits for objects that have finalizers before it says so.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// How far the deletion of a definition's objects has come.
enum Cleaned {
    All,
    /// The definition was never served, so that it has none.
    NeverServed,
}

/// What deletes the objects of definitions.
pub(super) struct Cleanups {
    registry: Arc<Registry>,
    /// The definitions whose objects are being deleted.
    under_way: Mutex<BTreeSet<Arc<str>>>,
}

impl Cleanups {
    pub(super) fn new(registry: Arc<Registry>) -> Cleanups {
        Cleanups { registry, under_way: Mutex::default() }
    }

    fn lister(&self) -> &Lister {
        &self.registry.objects.lister
    }

    /// Starts to delete the objects of a definition that goes, unless that is under way.
    pub(super) fn start(self: &Arc<Self>, definition: &Object, shutdown: &CancellationToken) {
        let name: Arc<str> = definition.name().into();
        if !definition.finalizers().contains(&FINALIZER) || !self.under_way.lock().insert(name.clone()) {
            return;
        }
        let (cleanups, shutdown) = (self.clone(), shutdown.clone());
        tokio::spawn(async move {
            let mut delay = RETRY_FIRST;
            // Dropped only where everything ends: what is half deleted is taken up at the next start.
            while let Some(Err(status)) = shutdown.run_until_cancelled(cleanups.clean(&name)).await {
                tracing::warn!(%status, definition = &*name, "cannot delete all objects of a definition; trying again");
                if shutdown.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                    break;
                }
                delay = (delay * 2).min(RETRY_MAX);
            }
            cleanups.under_way.lock().remove(&name);
        });
    }

    async fn clean(&self, name: &str) -> Result<(), Status> {
        let kind = self.lister().kind(DEFINITIONS.0, DEFINITIONS.1, DEFINITIONS.2)?;
        let Some(entry) = self.lister().caches.of(&kind)?.get(name)? else { return Ok(()) };
        let definition = entry.parse();
        let terminating = |status: &'static str, reason: &'static str, message: String| {
            move |object: &mut Object| set_condition(object, "Terminating", status, reason, &message)
        };
        let progress = "CustomResource deletion is in progress".to_owned();
        self.tell_of_cleanup(&kind, &definition, terminating("True", "InstanceDeletionInProgress", progress))
            .await?;
        match self.delete_instances(&definition).await {
            Ok(Cleaned::All) => {
                let told =
                    terminating("False", "InstanceDeletionCompleted", "removed all instances".to_owned());
                self.finish_cleanup(&kind, &definition, told).await
            }
            Ok(Cleaned::NeverServed) => {
                let told =
                    terminating("False", "NeverEstablished", "resource was never established".to_owned());
                self.finish_cleanup(&kind, &definition, told).await
            }
            Err((reason, status)) => {
                let message = match reason {
                    "InstanceDeletionCheck" => {
                        format!("could not confirm zero CustomResources remaining: {}", status.message)
                    }
                    _ => format!("could not issue all deletes: {}", status.message),
                };
                self.tell_of_cleanup(&kind, &definition, terminating("True", reason, message)).await?;
                Err(status)
            }
        }
    }

    async fn tell_of_cleanup(
        &self,
        kind: &Kind,
        definition: &Object,
        tell: impl Fn(&mut Object),
    ) -> Result<(), Status> {
        let told = self
            .registry
            .objects
            .modify(kind, "", definition.name(), false, |current| {
                let mut object = current.object.clone();
                if object.uid() == definition.uid() {
                    tell(&mut object);
                }
                Ok(Next::Put(object))
            })
            .await;
        match told {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }

    /// Lets the definition go.
    async fn finish_cleanup(
        &self,
        kind: &Kind,
        definition: &Object,
        tell: impl Fn(&mut Object),
    ) -> Result<(), Status> {
        let finished = self
            .registry
            .objects
            .modify(kind, "", definition.name(), false, |current| {
                let mut object = current.object.clone();
                if object.uid() != definition.uid() {
                    return Ok(Next::Put(object));
                }
                tell(&mut object);
                let left: Vec<&str> = object.finalizers().into_iter().filter(|f| *f != FINALIZER).collect();
                let left: Vec<String> = left.into_iter().map(str::to_owned).collect();
                let is_last = left.is_empty();
                if is_last {
                    object.meta_mut().remove("finalizers");
                } else {
                    object.set_meta("finalizers", left);
                }
                Ok(if is_last && object.is_being_deleted() {
                    Next::Delete(object)
                } else {
                    Next::Put(object)
                })
            })
            .await;
        match finished {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }

    /// Deletes all objects, and waits until they are gone.
    async fn delete_instances(&self, definition: &Object) -> Result<Cleaned, (&'static str, Status)> {
        const FAILED: &str = "InstanceDeletionFailed";
        if !is_true(definition, "Established") {
            return Ok(Cleaned::NeverServed);
        }
        let failed = |status: Status| (FAILED, status);
        let kinds = kinds_of(definition).map_err(|error| failed(Status::internal(error)))?;
        let is_stored = |kind: &Kind| kind.custom().is_some_and(|custom| custom.is_stored);
        let Some(kind) = kinds.into_iter().find(is_stored).map(Arc::new) else {
            return Ok(Cleaned::NeverServed);
        };
        let Ok(cache) = self.lister().caches.of(&kind) else { return Ok(Cleaned::NeverServed) };
        self.lister().caches.wait_for_newest().await.map_err(failed)?;
        let (options, mut first_failure) = (DeleteOptions::default(), None);
        for entry in cache.readable().values() {
            let (namespace, name) = (entry.namespace().to_owned(), entry.name().to_owned());
            let call = Call::of_server(self.lister(), kind.clone(), "delete", &namespace, &name);
            match self.registry.delete_object(&call, &namespace, &name, &options).await {
                Err(status) if status.code != 404 => first_failure = first_failure.or(Some(status)),
                _ => {}
            }
        }
        if let Some(status) = first_failure {
            return Err(failed(status));
        }
        let mut watcher = cache.watch(Filter::default(), None).map_err(failed)?;
        let mut left: BTreeSet<Arc<str>> =
            watcher.backlog.iter().map(|change| change.entry.key.clone()).collect();
        let gone = async {
            while !left.is_empty() {
                let Some(change) = watcher.changes.recv().await else { break };
                match change.kind.as_str() {
                    "DELETED" => _ = left.remove(&change.entry.key),
                    // What was created in the last moment is deleted by the next try.
                    _ => _ = left.insert(change.entry.key.clone()),
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, gone).await.is_ok();
        if !in_time || !left.is_empty() {
            let why = format!("timed out waiting for {} objects to be deleted", left.len());
            return Err(("InstanceDeletionCheck", Status::timeout(why)));
        }
        Ok(Cleaned::All)
    }
}
