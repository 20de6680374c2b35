//! Policies read their params with the server's rights: who writes a policy, or binds one, must be allowed to read the params, as
//! the messages of a policy could tell them otherwise.
//!
//! Source: `authz.go` beside the storage of upstream's two policies and their bindings.

use serde_json::Value;
use skiff_api::{Cause, Kind, Object, Status};

use crate::auth::attributes::Attributes;
use crate::auth::authorize::Authorization;
use crate::auth::{MASTERS, UserInfo};
use crate::call::{Call, key_of};
use crate::lister::Lister;

const GROUP: &str = "admissionregistration.k8s.io";

/// The kinds that name params, with the plural of the policies they belong to.
enum Names {
    /// A policy names the kind of its params.
    Kind,
    /// A binding names the params themselves.
    Params { policies: &'static str },
}

fn names(kind: &Kind) -> Option<Names> {
    if kind.group != GROUP {
        return None;
    }
    match kind.plural.as_str() {
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => Some(Names::Kind),
        "validatingadmissionpolicybindings" => {
            Some(Names::Params { policies: "validatingadmissionpolicies" })
        }
        "mutatingadmissionpolicybindings" => Some(Names::Params { policies: "mutatingadmissionpolicies" }),
        _ => None,
    }
}

/// What must be readable; `*` is everything, where it is not known what it is.
struct Resource {
    group: String,
    version: String,
    plural: String,
    /// What is in the way of knowing it.
    unknown: Option<String>,
}

/// What is looked at to say so.
pub(super) struct Access<'a> {
    pub(super) lister: &'a Lister,
    pub(super) authorizer: &'a Authorization,
}

impl Access<'_> {
    /// What a policy or a binding names that its author must not read, if anything.
    ///
    /// # Errors
    /// What the cache of policies fails with.
    pub(super) async fn unreadable(
        &self,
        call: &Call,
        new: &Object,
        old: Option<&Object>,
    ) -> Result<Option<Cause>, Status> {
        let Some(names) = names(&call.kind) else { return Ok(None) };
        if call.user.is_in(MASTERS) {
            return Ok(None);
        }
        let spec = &new["spec"];
        let is_same = |fields: &[&str]| {
            old.is_some_and(|old| fields.iter().all(|field| old["spec"][*field] == spec[*field]))
        };
        let refused = match names {
            Names::Kind if spec["paramKind"].is_null() || is_same(&["paramKind"]) => return Ok(None),
            Names::Params { .. } if spec["paramRef"].is_null() || is_same(&["paramRef", "policyName"]) => {
                return Ok(None);
            }
            Names::Kind => self.unreadable_kind(call, &spec["paramKind"]).await,
            Names::Params { policies } => self.unreadable_object(call, spec, policies).await?,
        };
        let field = if matches!(names, Names::Kind) { "spec.paramKind" } else { "spec.paramRef" };
        Ok(refused.map(|why| Cause::forbidden(field, &why)))
    }

    async fn unreadable_kind(&self, call: &Call, kind: &Value) -> Option<String> {
        let resource = resolve(call, kind);
        if self.may_read(&call.user, "get", &resource, "*", "*").await {
            return None;
        }
        let text = |field: &str| kind[field].as_str().unwrap_or_default();
        Some(format!(
            "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            told(&call.user),
            text("kind"),
            text("apiVersion")
        ))
    }

    async fn unreadable_object(
        &self,
        call: &Call,
        spec: &Value,
        policies: &str,
    ) -> Result<Option<String>, Status> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let policy = text(&spec["policyName"]);
        let kind = self.lister.kind(GROUP, &call.kind.version, policies)?;
        let found =
            self.lister.caches.of(&kind)?.get(&key_of(&kind, "", &policy))?.map(|entry| entry.parse());
        let resource = match found {
            Some(found) if found["spec"]["paramKind"].is_null() => Resource::anything(None),
            Some(found) => resolve(call, &found["spec"]["paramKind"]),
            None => Resource::anything(Some(format!("unable to get policy {policy}"))),
        };
        let (name, namespace) = (text(&spec["paramRef"]["name"]), text(&spec["paramRef"]["namespace"]));
        let verb = if name.is_empty() { "list" } else { "get" };
        if self.may_read(&call.user, verb, &resource, &namespace, &name).await {
            return Ok(None);
        }
        let user = told(&call.user);
        Ok(Some(match resource.unknown {
            Some(why) => format!(
                "{why} to determine minimum required permissions and user {user} does not have {verb:?} permission for all \
                 groups, versions and resources"
            ),
            None => {
                format!("user {user} does not have {verb:?} permission on the object referenced by paramRef")
            }
        }))
    }

    async fn may_read(
        &self,
        user: &UserInfo,
        verb: &str,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> bool {
        let version = of.version.as_str();
        let asked =
            Attributes { version, namespace, name, ..Attributes::on(user, verb, &of.group, &of.plural) };
        self.authorizer.authorize(&asked).await.is_allowed()
    }
}

impl Resource {
    fn anything(unknown: Option<String>) -> Resource {
        let any = || "*".to_owned();
        Resource { group: any(), version: any(), plural: any(), unknown }
    }
}

fn resolve(call: &Call, kind: &Value) -> Resource {
    let text = |field: &str| kind[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let told = format!("{api_version}, Kind={kind}");
    let (group, version) = match api_version.split('/').collect::<Vec<_>>()[..] {
        [version] => ("", version),
        [group, version] => (group, version),
        _ => return Resource::anything(Some(format!("unable to parse paramKind {told}"))),
    };
    let found = call.table.kinds.by_kind(group, version, kind);
    let unknown = found.is_none().then(|| format!("unable to resolve paramKind {told}"));
    Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: found.map_or("*", |kind| kind.plural.as_str()).to_owned(),
        unknown,
    }
}

/// A user as upstream prints one: a Go struct.
fn told(user: &UserInfo) -> String {
    let extra: Vec<String> =
        user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}
