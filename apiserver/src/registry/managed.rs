//! Who manages which fields of what is written: each write through the API goes by here before anything else is done to its
//! object, as upstream's handlers do it before admission.

use std::sync::Arc;

use http::header::USER_AGENT;
use skiff_api::apply::{FieldManager, Force, Versions};
use skiff_api::schema::TypeRef;
use skiff_api::{Kind, Object, Status};

use super::options::{MAX_MANAGER_BYTES, WriteOptions};
use crate::auth::UserInfo;
use crate::call::Call;
use crate::clock::timestamp;
use crate::convert::{convert, needs_webhook};
use crate::live::Table;
use crate::threads::Class;

/// One write, as far as managers are concerned.
pub(crate) struct Tracker {
    table: Arc<Table>,
    kind: Arc<Kind>,
    subresource: String,
    manager: String,
    now: String,
}

impl Tracker {
    /// Of a call.
    pub(crate) fn of(call: &Call, options: &WriteOptions) -> Tracker {
        let manager = Some(options.manager.clone()).filter(|name| !name.is_empty());
        Tracker {
            table: call.table.clone(),
            kind: call.kind.clone(),
            subresource: call.info.subresource.clone(),
            manager: manager.unwrap_or_else(|| by_agent(call)),
            now: timestamp(jiff::Timestamp::now()),
        }
    }

    /// Notes in `new` what it changes of `live`, which is none where it is created.
    pub(crate) fn note(&self, live: Option<&Object>, new: &mut Object) {
        let versions = Served(self);
        FieldManager::new(&self.kind, &self.subresource, &versions).update(
            live,
            new,
            &self.manager,
            &self.now,
        );
    }

    /// What an applied document makes of `live`, or of nothing.
    pub(crate) fn apply(
        &self,
        live: Option<&Object>,
        document: &Object,
        force: Force,
    ) -> Result<Object, Status> {
        let versions = Served(self);
        let manager = FieldManager::new(&self.kind, &self.subresource, &versions);
        Ok(manager.apply(live, document, &self.manager, force, &self.now)?)
    }
}

/// The versions in which a kind is served here.
struct Served<'t>(&'t Tracker);

impl Versions for Served<'_> {
    fn in_version(&self, object: &Object, api_version: &str) -> Option<(Object, TypeRef)> {
        let Served(Tracker { table, kind, .. }) = self;
        let of_version = |api_version: &str| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let found = table.kinds.by_kind(group, version, &kind.kind)?;
            (found.registry_folder == kind.registry_folder).then_some(found)
        };
        let (from, to) = (of_version(object["apiVersion"].as_str()?)?, of_version(api_version)?);
        // Who manages what in a version that only a webhook converts to is forgotten.
        if needs_webhook(from, to) {
            return None;
        }
        Some((convert(from, to, object.clone()), to.schema.clone()))
    }
}

/// The manager of a write that names none: the program that sent it, as far as the first slash of what it calls itself. Of
/// the cluster's own, which call in process and do not say, it is who they are.
///
/// Source: `managerOrUserAgent` of apiserver's `endpoints/handlers/create.go`.
fn by_agent(call: &Call) -> String {
    match call.headers.get(USER_AGENT) {
        Some(agent) => program_of(&String::from_utf8_lossy(agent.as_bytes())),
        None if call.extensions.get::<Class>().is_none() => component_of(&call.user),
        None => String::new(),
    }
}

fn program_of(agent: &str) -> String {
    let mut program = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()) {
        if program.len() + c.len_utf8() > MAX_MANAGER_BYTES {
            break;
        }
        program.push(c);
    }
    program
}

fn component_of(user: &UserInfo) -> String {
    match user.name.strip_prefix("system:node:") {
        Some(_) => "kubelet".to_owned(),
        None => user.name.rsplit(':').next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_what_comes_before_the_first_slash() {
        assert_eq!(program_of("kubectl/v1.36.3 (linux/amd64) kubernetes/abc"), "kubectl");
        assert_eq!(program_of("a\u{7}b"), "ab");
        assert_eq!(program_of(""), "");
        assert_eq!(program_of(&"x".repeat(200)).len(), MAX_MANAGER_BYTES);
        assert_eq!(program_of(&"é".repeat(100)).len(), MAX_MANAGER_BYTES);
    }

    #[test]
    fn the_clusters_own_are_who_they_are() {
        let name = |name: &str| component_of(&UserInfo::new(name, &[]));
        assert_eq!(name("system:kube-scheduler"), "kube-scheduler");
        assert_eq!(name("system:serviceaccount:kube-system:job-controller"), "job-controller");
        assert_eq!(name("system:node:n1"), "kubelet");
    }
}
