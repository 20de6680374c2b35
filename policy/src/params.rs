//! The objects that a binding gives its policy to judge by.
//!
//! Source: `CollectParams` in `generic/policy_dispatcher.go` of upstream's policy plug-in.

use serde_json::Value;
use skiff_api::{LabelSelector, Object, Status};
use skiff_webhook::admission::GroupVersionKind;

/// Whether objects of a kind are in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// Where the params of policies are looked up. Objects have their `apiVersion` and `kind`.
pub trait Params: Send + Sync {
    /// `None` for a kind that is not served.
    fn scope(&self, kind: &GroupVersionKind) -> Option<Scope>;

    /// One object; `None` if there is no such.
    ///
    /// # Errors
    /// It cannot be known at present.
    fn get(
        &self,
        kind: &GroupVersionKind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Object>, Status>;

    /// The objects with such labels, by name; of all namespaces of the cluster only for a kind that is in none.
    ///
    /// # Errors
    /// They cannot be known at present.
    fn select(
        &self,
        kind: &GroupVersionKind,
        namespace: Option<&str>,
        selector: &LabelSelector,
    ) -> Result<Vec<Object>, Status>;
}

/// `paramRef` of a binding.
pub(crate) struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Result<LabelSelector, Status>>,
    not_found: NotFound,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NotFound {
    Allow,
    Deny,
}

impl ParamRef {
    pub(crate) fn read(reference: &Value) -> Option<ParamRef> {
        if reference.is_null() {
            return None;
        }
        let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
        let selector = &reference["selector"];
        Some(ParamRef {
            name: text("name"),
            namespace: text("namespace"),
            selector: (!selector.is_null()).then(|| LabelSelector::from_json(selector)),
            not_found: match reference["parameterNotFoundAction"].as_str() {
                Some("Deny") => NotFound::Deny,
                _ => NotFound::Allow,
            },
        })
    }

    /// The params for a request in a namespace. The sentence says why there are none to be had.
    pub(crate) fn collect(
        &self,
        params: &dyn Params,
        kind: &GroupVersionKind,
        scope: Scope,
        namespace: &str,
    ) -> Result<Vec<Object>, String> {
        let namespace = match (scope, self.namespace.as_str()) {
            (Scope::Cluster, "") => None,
            (Scope::Cluster, _) => {
                return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
            }
            (Scope::Namespaced, "") if namespace.is_empty() => {
                return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped \
                            resources"
                    .into());
            }
            (Scope::Namespaced, "") => Some(namespace),
            (Scope::Namespaced, own) => Some(own),
        };
        let told = |status: Status| status.message;
        let found = match (self.name.as_str(), &self.selector) {
            ("", None) => return Err("one of name or selector must be provided".into()),
            ("", Some(Err(status))) => return Err(status.message.clone()),
            ("", Some(Ok(selector))) => params.select(kind, namespace, selector).map_err(told)?,
            (_, Some(_)) => {
                return Err("paramRef.name and paramRef.selector are mutually exclusive".into());
            }
            (name, None) => params.get(kind, namespace, name).map_err(told)?.into_iter().collect(),
        };
        if found.is_empty() && self.not_found == NotFound::Deny {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }
}
