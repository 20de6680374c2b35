//! Who asks, and what they may do.

pub(crate) mod attributes;
pub(crate) mod authenticate;
pub(crate) mod authorize;
mod bootstrap_token;
pub(crate) mod configuration;
pub(crate) mod impersonate;
pub(crate) mod node;
pub(crate) mod node_index;
pub(crate) mod rbac;
pub(crate) mod reload;
pub(crate) mod shared_keys;
pub(crate) mod token;
pub(crate) mod validity;
pub(crate) mod webhook;

use std::collections::BTreeMap;

pub(crate) const MASTERS: &str = "system:masters";
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
pub(crate) const ANONYMOUS: &str = "system:anonymous";
pub(crate) const NODES: &str = "system:nodes";
pub(crate) const BOOTSTRAPPERS: &str = "system:bootstrappers";
pub(crate) const NODE_PREFIX: &str = "system:node:";
pub(crate) const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub(crate) const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// The cluster's own, besides nodes and the accounts of `kube-system`.
const COMPONENTS: &[&str] = &[
    "system:apiserver",
    "system:dns",
    "system:kube-controller-manager",
    "system:kube-proxy",
    "system:kube-scheduler",
];

/// An identity. As a request extension it authenticates an in-process request; nothing that comes over the
/// network can carry one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of the given groups and of `system:authenticated`.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> UserInfo {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        UserInfo { name: name.into(), groups, ..UserInfo::default() }
    }

    pub(crate) fn anonymous() -> UserInfo {
        UserInfo { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..UserInfo::default() }
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    pub(crate) fn is_component(&self) -> bool {
        COMPONENTS.contains(&self.name.as_str())
    }

    /// Whether this is a service account of `kube-system`.
    pub(crate) fn is_of_kube_system(&self) -> bool {
        let account = self.name.strip_prefix(SERVICE_ACCOUNT_PREFIX);
        account.is_some_and(|account| account.starts_with("kube-system:"))
    }

    /// The node that this user is, if it is one.
    pub(crate) fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty() && self.is_in(NODES))
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut out = serde_json::json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            out["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            out["extra"] = serde_json::json!(self.extra);
        }
        out
    }
}
