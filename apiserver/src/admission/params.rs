//! The objects that policies are given to judge by, out of the caches.

use skiff_api::{LabelSelector, Object, Status};
use skiff_policy::{Params, Scope};
use skiff_webhook::admission::GroupVersionKind;

use super::dynamic::Kinds;
use crate::call::key_of;
use crate::convert::convert;

impl Params for Kinds<'_> {
    fn scope(&self, kind: &GroupVersionKind) -> Option<Scope> {
        let kind = self.of_kind(kind)?;
        Some(if kind.is_namespaced() { Scope::Namespaced } else { Scope::Cluster })
    }

    fn get(
        &self,
        kind: &GroupVersionKind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Object>, Status> {
        let Some(kind) = self.of_kind(kind) else { return Ok(None) };
        let cache = self.objects.lister.caches.of(kind)?;
        let entry = cache.get(&key_of(kind, namespace.unwrap_or_default(), name))?;
        Ok(entry.map(|entry| convert(cache.kind(), kind, entry.parse())))
    }

    fn select(
        &self,
        kind: &GroupVersionKind,
        namespace: Option<&str>,
        selector: &LabelSelector,
    ) -> Result<Vec<Object>, Status> {
        let Some(kind) = self.of_kind(kind) else { return Ok(Vec::new()) };
        let cache = self.objects.lister.caches.of(kind)?;
        let (_, entries) = cache.snapshot_of(namespace)?;
        let within =
            entries.values().filter(|entry| namespace.is_none_or(|namespace| entry.namespace() == namespace));
        let matching = within.filter(|entry| selector.matches(|key| entry.label(key)));
        Ok(matching.map(|entry| convert(cache.kind(), kind, entry.parse())).collect())
    }
}
