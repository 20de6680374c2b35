//! The one task that follows the definitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use skiff_api::kinds::kinds_of;
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};
use skiff_webhook::Client;
use skiff_webhook::conversion::Converter;
use tokio_util::sync::CancellationToken;

use super::cleanup::Cleanups;
use super::names::{self, DEFINITIONS};
use crate::cache::{Filter, Snapshot};
use crate::failure::store_failure;
use crate::lister::Lister;
use crate::objects::Next;
use crate::registry::Registry;
use crate::retry::{Backoff, Follow};
use crate::store::Revision;

/// The definitions, and what is served of them.
pub(crate) struct Definitions {
    registry: Arc<Registry>,
    /// Asks webhooks to convert.
    client: Arc<Client>,
    /// Held by one pass at a time.
    state: tokio::sync::Mutex<State>,
    cleanups: Arc<Cleanups>,
}

/// What a pass knows from the one before, by the names of definitions.
#[derive(Default)]
struct State {
    seen: BTreeMap<Arc<str>, Seen>,
    served: BTreeMap<Arc<str>, Served>,
}

/// A definition as it was read last. They may be large, and most do not change when one does.
struct Seen {
    revision: Revision,
    source: Source,
    /// Without its versions.
    rest: Object,
}

/// What is served of a definition.
struct Served {
    /// What it was made of: as long as it is this, nothing changes.
    source: Source,
    kinds: Vec<Arc<Kind>>,
    converter: Option<Arc<Converter>>,
}

/// A digest of what decides about the kinds of a definition.
#[derive(Clone, PartialEq)]
struct Source([u8; 32]);

impl Seen {
    fn of(mut definition: Object, revision: Revision) -> Seen {
        let mut digest = Sha256::new();
        for part in
            [&definition["metadata"]["uid"], &definition["spec"], &definition["status"]["acceptedNames"]]
        {
            // Writing a `Value` to memory cannot fail.
            digest.update(serde_json::to_vec(part).unwrap_or_default());
        }
        if let Some(spec) = definition["spec"].as_object_mut() {
            spec.remove("versions");
        }
        definition.meta_mut().remove("managedFields");
        Seen { revision, source: Source(digest.finalize().into()), rest: definition }
    }
}

#[async_trait]
impl Follow for Definitions {
    const WHAT: &'static str = "follow the CustomResourceDefinitions";

    async fn once(&self, shutdown: &CancellationToken, backoff: &mut Backoff) -> Result<(), Status> {
        let kind = self.lister().kind(DEFINITIONS.0, DEFINITIONS.1, DEFINITIONS.2)?;
        let mut watcher = self.lister().caches.of(&kind)?.watch(Filter::default(), None)?;
        loop {
            self.serve(shutdown).await?;
            backoff.worked();
            if watcher.changes.recv().await.is_none() {
                return Ok(());
            }
            // Whatever else has come by now is seen by the same pass.
            while watcher.changes.try_recv().is_ok() {}
        }
    }
}

impl Definitions {
    pub(crate) fn new(registry: Arc<Registry>, client: Arc<Client>) -> Definitions {
        let cleanups = Arc::new(Cleanups::new(registry.clone()));
        Definitions { registry, client, state: tokio::sync::Mutex::default(), cleanups }
    }

    fn lister(&self) -> &Lister {
        &self.registry.objects.lister
    }

    /// One pass: what the definitions say as they stand becomes what is served, and is told in their status. One that fails holds up
    /// no other.
    ///
    /// # Errors
    /// The first failure: another pass may do better.
    pub(crate) async fn serve(&self, shutdown: &CancellationToken) -> Result<(), Status> {
        let kind = self.lister().kind(DEFINITIONS.0, DEFINITIONS.1, DEFINITIONS.2)?;
        let mut state = self.state.lock().await;
        let State { seen, served } = &mut *state;
        let stored = self.lister().caches.of(&kind)?.readable();
        seen.retain(|name, _| stored.contains_key(name));
        for (name, entry) in &stored {
            if seen.get(name).is_none_or(|seen| seen.revision != entry.mod_revision) {
                seen.insert(name.clone(), Seen::of(entry.parse(), entry.mod_revision));
            }
        }
        let definitions: Vec<Object> = seen.values().map(|seen| seen.rest.clone()).collect();
        let decided = names::decide(&definitions);
        let mut outcome = Ok(());
        for definition in &definitions {
            if let Some(names) = decided.get(definition.name()) {
                outcome =
                    outcome.and(self.write_status(&kind, definition, |object| names.tell(object)).await);
            }
        }
        outcome = outcome.and(self.serve_changes(served, seen, &stored).await);
        for definition in &definitions {
            let is_served = served.contains_key(definition.name());
            if is_served && names::is_accepted(definition) && !names::is_true(definition, "Established") {
                outcome = outcome.and(self.write_status(&kind, definition, names::establish).await);
            }
            if definition.is_being_deleted() {
                self.cleanups.start(definition, shutdown);
            }
        }
        outcome
    }

    /// Opens and closes caches, and publishes the table, where anything changed.
    async fn serve_changes(
        &self,
        served: &mut BTreeMap<Arc<str>, Served>,
        seen: &BTreeMap<Arc<str>, Seen>,
        stored: &Snapshot,
    ) -> Result<(), Status> {
        let mut outcome = Ok(());
        let is_wanted =
            |seen: &Seen| names::is_accepted(&seen.rest) || names::is_true(&seen.rest, "Established");
        let wanted: BTreeMap<&Arc<str>, &Seen> = seen.iter().filter(|(_, seen)| is_wanted(seen)).collect();
        let mut has_changed = false;
        let gone: Vec<Arc<str>> = served.keys().filter(|name| !wanted.contains_key(name)).cloned().collect();
        let mut closed: Vec<String> = Vec::new();
        for name in gone {
            if let Some(served) = served.remove(&name) {
                closed.extend(served.kinds.first().map(|kind| kind.registry_folder.clone()));
                has_changed = true;
            }
        }
        for (name, seen) in wanted {
            if served.get(name).is_some_and(|served| served.source == seen.source) {
                continue;
            }
            let Some(definition) = stored.get(name).map(|entry| entry.parse()) else { continue };
            let name = &**name;
            let kinds = match kinds_of(&definition) {
                Ok(kinds) => kinds.into_iter().map(Arc::new).collect::<Vec<_>>(),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, definition = name, "a CustomResourceDefinition cannot be served");
                    continue;
                }
            };
            let is_stored = |kind: &&Arc<Kind>| kind.custom().is_some_and(|custom| custom.is_stored);
            let Some(stored) = kinds.iter().find(is_stored) else { continue };
            if self.lister().live.is_builtin(stored) {
                tracing::warn!(
                    definition = name,
                    "a CustomResourceDefinition of a built-in resource is not served"
                );
                continue;
            }
            if let Err(cause) = self.lister().caches.open(stored.clone()).await {
                let error = &cause as &dyn std::error::Error;
                tracing::error!(
                    error,
                    definition = name,
                    "the objects of a CustomResourceDefinition cannot be read"
                );
                outcome = outcome.and(Err(store_failure(&cause)));
                continue;
            }
            let (source, converter) = (seen.source.clone(), self.converter_of(&definition));
            served.insert(name.into(), Served { source, kinds, converter });
            has_changed = true;
        }
        let is_going =
            |seen: &Seen| seen.rest.is_being_deleted() || names::is_true(&seen.rest, "Terminating");
        let terminating: BTreeSet<Arc<str>> =
            seen.iter().filter(|(_, seen)| is_going(seen)).map(|(name, _)| name.clone()).collect();
        if has_changed || terminating != self.lister().table().terminating {
            let kinds = served.values().flat_map(|served| served.kinds.iter().cloned()).collect();
            let converters =
                served.iter().filter_map(|(name, served)| Some((name.clone(), served.converter.clone()?)));
            self.lister().live.publish(kinds, converters.collect(), terminating);
        }
        // Nobody is led there any more.
        closed.iter().for_each(|folder| self.lister().caches.close(folder));
        outcome
    }

    fn converter_of(&self, definition: &Object) -> Option<Arc<Converter>> {
        if definition["spec"]["conversion"]["strategy"] != "Webhook" {
            return None;
        }
        let converter = Converter::new(self.client.clone(), definition);
        let converter = converter.inspect_err(|error| {
            tracing::warn!(%error, definition = definition.name(), "nobody can be asked to convert objects");
        });
        converter.ok().map(Arc::new)
    }

    /// Changes the status of a definition as it stands, if it is still the one that was looked at.
    async fn write_status(
        &self,
        kind: &Kind,
        definition: &Object,
        tell: impl Fn(&mut Object),
    ) -> Result<(), Status> {
        let written = self
            .registry
            .objects
            .modify(kind, "", definition.name(), false, |current| {
                let mut object = current.object.clone();
                // Whatever it is by now, another pass will look at it.
                if object["spec"]["names"] == definition["spec"]["names"] && object.uid() == definition.uid()
                {
                    tell(&mut object);
                }
                Ok(Next::Put(object))
            })
            .await;
        match written {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }
}
