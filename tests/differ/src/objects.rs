//! The objects that are mutated: rich ones of every kind, all accepted by upstream as they stand.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use skiff_api::{Kind, Kinds};
use std::sync::Arc;

const TEXTS: [&str; 5] = [
    include_str!("../objects/core.yaml"),
    include_str!("../objects/apps.yaml"),
    include_str!("../objects/network.yaml"),
    include_str!("../objects/storage.yaml"),
    include_str!("../objects/other.yaml"),
];

pub const NAMESPACE: &str = "differ";
/// Of objects that would change what others may be.
pub const LIMITS_NAMESPACE: &str = "differ-limits";

/// One object and its kind.
#[derive(Clone)]
pub struct Subject {
    /// `apps/v1/Deployment/rich`.
    pub id: String,
    pub kind: Arc<Kind>,
    pub object: Value,
}

impl Subject {
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub fn namespace(&self) -> &'static str {
        match self.kind.kind.as_str() {
            "ResourceQuota" | "LimitRange" => LIMITS_NAMESPACE,
            _ => NAMESPACE,
        }
    }

    /// The path of its collection.
    pub fn collection(&self) -> String {
        let kind = &self.kind;
        let root = match kind.group.as_str() {
            "" => format!("/api/{}", kind.version),
            group => format!("/apis/{group}/{}", kind.version),
        };
        match kind.is_namespaced() {
            true => format!("{root}/namespaces/{}/{}", self.namespace(), kind.plural),
            false => format!("{root}/{}", kind.plural),
        }
    }

    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name())
    }
}

/// All of them, in the order of the files.
pub fn all() -> Result<Vec<Subject>> {
    let kinds = Kinds::builtin();
    let mut subjects = Vec::new();
    for text in TEXTS.iter().flat_map(|text| text.split("\n---\n")) {
        let text = text.replace("$NS", NAMESPACE);
        let object: Value = serde_saphyr::from_str(&text).with_context(|| format!("reading {text}"))?;
        let (api_version, kind) =
            (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(found) = kinds.by_kind(group, version, kind) else { bail!("no kind {api_version} {kind}") };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let id = format!("{api_version}/{kind}/{name}");
        subjects.push(Subject { id, kind: found.clone(), object });
    }
    Ok(subjects)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use skiff_api::kinds::Storage;

    use super::*;

    #[test]
    fn every_stored_kind_has_an_object() {
        let have: BTreeSet<String> = all().unwrap().into_iter().map(|s| s.kind.kind.clone()).collect();
        let missing: Vec<String> = Kinds::builtin()
            .iter()
            .filter(|kind| kind.storage == Storage::Stored && !have.contains(&kind.kind))
            .map(|kind| kind.kind.clone())
            .collect();
        // Those whose rules are languages of their own: expressions and schemas.
        let known = [
            "CustomResourceDefinition",
            "MutatingAdmissionPolicy",
            "MutatingAdmissionPolicyBinding",
            "ValidatingAdmissionPolicy",
        ];
        assert!(missing.iter().all(|kind| known.contains(&kind.as_str())), "{missing:?}");
    }
}
