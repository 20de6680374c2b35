//! What is scaled: anything with a `scale` subresource.

use std::sync::Arc;

use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use skiff_client::{Resources, ServedResource};

use crate::driver::{is_conflict, text};

/// A scale that somebody else changes meanwhile is read and written anew, so many times in all.
const MAX_TRIES: u32 = 5;

/// Why there is no scale. In upstream's words.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("unexpected GroupVersion string: {0}")]
    Version(String),
    #[error("no matches for kind {kind:?} in group {group:?}")]
    NoKind { group: String, kind: String },
    #[error("{}", text(.0))]
    Api(#[from] kube::Error),
}

/// The group of an `apiVersion`.
pub(super) fn group_of(api_version: &str) -> Result<&str, TargetError> {
    match api_version.split('/').collect::<Vec<_>>()[..] {
        [_] => Ok(""),
        [group, _] => Ok(group),
        _ => Err(TargetError::Version(api_version.to_owned())),
    }
}

/// The resource of a kind, in the version that its group prefers.
pub(super) fn mapped<'r>(
    resources: &'r Resources,
    group: &str,
    kind: &str,
) -> Result<&'r Arc<ServedResource>, TargetError> {
    let found = resources.preferred().find(|resource| resource.group == group && resource.kind == kind);
    found.ok_or_else(|| TargetError::NoKind { group: group.to_owned(), kind: kind.to_owned() })
}

/// What an autoscaler scales.
pub(super) struct Target {
    api: Api<DynamicObject>,
    name: String,
    pub(super) scale: Scale,
}

impl Target {
    pub(super) async fn of(
        client: &Client,
        resources: &Resources,
        namespace: &str,
        reference: &CrossVersionObjectReference,
    ) -> Result<Target, TargetError> {
        let group = group_of(reference.api_version.as_deref().unwrap_or_default())?;
        let resource = mapped(resources, group, &reference.kind)?;
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource.described());
        let scale = api.get_scale(&reference.name).await?;
        Ok(Target { api, name: reference.name.clone(), scale })
    }

    /// How many pods there are to be.
    pub(super) fn wanted(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
    }

    /// How many pods there are.
    pub(super) fn observed(&self) -> i32 {
        self.scale.status.as_ref().map_or(0, |status| status.replicas)
    }

    /// Empty if it has none.
    pub(super) fn selector(&self) -> &str {
        self.scale.status.as_ref().and_then(|status| status.selector.as_deref()).unwrap_or_default()
    }

    pub(super) async fn set(&mut self, replicas: i32) -> Result<(), TargetError> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.scale.spec = Some(ScaleSpec { replicas: Some(replicas) });
            match self.api.replace_scale(&self.name, &PostParams::default(), &self.scale).await {
                Err(error) if is_conflict(&error) && tries < MAX_TRIES => {
                    self.scale = self.api.get_scale(&self.name).await?;
                }
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_what_stands_before_the_version() {
        assert_eq!(
            [group_of("v1").ok(), group_of("").ok(), group_of("apps/v1").ok()],
            [Some(""), Some(""), Some("apps")]
        );
        let error = group_of("a/b/c").expect_err("two slashes").to_string();
        assert_eq!(error, "unexpected GroupVersion string: a/b/c");
        let error = mapped(&Resources::default(), "example.com", "Foo").expect_err("nothing is served");
        assert_eq!(error.to_string(), "no matches for kind \"Foo\" in group \"example.com\"");
    }
}
