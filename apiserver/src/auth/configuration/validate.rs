//! What a configuration that can be read must be beyond that.
//!
//! Source: `ValidateAuthorizationConfiguration` of `apis/apiserver/validation` of apiserver, to the wording.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_api::{Cause, name};

use super::duration::Signed;
use super::{BuiltIn, Configuration, Configured, Webhook};
use crate::auth::attributes::Opinion;
use crate::auth::webhook::{Condition, Version};

const TYPES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
const AUTHORIZED_TTL: Duration = Duration::from_secs(5 * 60);
const UNAUTHORIZED_TTL: Duration = Duration::from_secs(30);
const MAX_CONDITIONS: usize = 64;

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// # Errors
/// All that is wrong.
pub(in crate::auth) fn validate(document: &Value) -> Result<Configuration, Vec<Cause>> {
    let mut causes = Vec::new();
    let mut configured = Vec::new();
    let authorizers = document["authorizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if authorizers.is_empty() {
        causes.push(Cause::required("authorizers", "at least one authorization mode must be defined"));
    }
    let (mut types, mut names) = (HashSet::new(), HashSet::new());
    for (at, authorizer) in authorizers.iter().enumerate() {
        let path = format!("authorizers[{at}]");
        let type_ = text(authorizer, "type");
        let built_in = BuiltIn::parse(type_);
        let fault = match (type_, built_in) {
            ("", _) => Some(Cause::required(format!("{path}.type"), "")),
            ("Webhook", _) => None,
            (other, None) => Some(Cause::not_supported(format!("{path}.type"), &other.into(), &TYPES)),
            (other, Some(_)) if !types.insert(other) => {
                Some(Cause::duplicate(format!("{path}.type"), &other.into()))
            }
            _ => None,
        };
        if let Some(fault) = fault {
            causes.push(fault);
            continue;
        }
        let name = text(authorizer, "name");
        causes.extend(name_fault(&format!("{path}.name"), name, &mut names));
        let webhook = &authorizer["webhook"];
        match built_in {
            Some(built_in) => {
                if !webhook.is_null() {
                    let why = "may only be specified when type=Webhook";
                    causes.push(Cause::invalid(format!("{path}.webhook"), &"non-null".into(), why));
                }
                configured.push(Configured::BuiltIn(built_in));
            }
            None if webhook.is_null() => {
                causes.push(Cause::required(format!("{path}.webhook"), "required when type=Webhook"));
            }
            None => {
                let webhook = Reader { path, causes: &mut causes }.webhook(name, webhook);
                configured.extend(webhook.map(Configured::Webhook));
            }
        }
    }
    if causes.is_empty() { Ok(Configuration(configured)) } else { Err(causes) }
}

fn name_fault<'n>(path: &str, name: &'n str, known: &mut HashSet<&'n str>) -> Option<Cause> {
    if name.is_empty() {
        return Some(Cause::required(path, ""));
    }
    if !known.insert(name) {
        return Some(Cause::duplicate(path, &name.into()));
    }
    let why = name::dns_subdomain_fault(name)?;
    Some(Cause::invalid(path, &name.into(), &format!("authorizer name is invalid: {why}")))
}

/// Reads one webhook, and notes what is wrong with it.
struct Reader<'r> {
    /// Of the authorizer; upstream says of no field that it is the webhook's.
    path: String,
    causes: &'r mut Vec<Cause>,
}

impl Reader<'_> {
    fn at(&self, field: &str) -> String {
        format!("{}.{field}", self.path)
    }

    /// `None` where something is wrong, which is noted.
    fn webhook(mut self, name: &str, webhook: &Value) -> Option<Webhook> {
        let timeout = self.timeout(&webhook["timeout"]);
        let authorized_ttl = self.ttl(webhook, ["authorizedTTL", "cacheAuthorizedRequests"], AUTHORIZED_TTL);
        let unauthorized_ttl =
            self.ttl(webhook, ["unauthorizedTTL", "cacheUnauthorizedRequests"], UNAUTHORIZED_TTL);
        let version = self.one_of(webhook, "subjectAccessReviewVersion", &["v1", "v1beta1"]);
        self.condition_version(webhook);
        let policy = self.one_of(webhook, "failurePolicy", &["NoOpinion", "Deny"]);
        let kubeconfig = self.connection(&webhook["connectionInfo"]);
        let conditions = self.conditions(&webhook["matchConditions"]);
        Some(Webhook {
            name: name.to_owned(),
            timeout: timeout?,
            authorized_ttl: authorized_ttl?,
            unauthorized_ttl: unauthorized_ttl?,
            version: Version::parse(version?)?,
            on_error: if policy? == "Deny" { Opinion::Deny } else { Opinion::None },
            kubeconfig: kubeconfig?,
            conditions,
        })
    }

    fn timeout(&mut self, value: &Value) -> Option<Duration> {
        let path = self.at("timeout");
        let timeout = Signed::parse(value.as_str().unwrap_or("0")).ok()?;
        if timeout.size.is_zero() {
            self.causes.push(Cause::required(path, ""));
            return None;
        }
        if timeout.is_negative || timeout.size > MAX_TIMEOUT {
            let why = "must be > 0s and <= 30s";
            self.causes.push(Cause::invalid(path, &timeout.shown().into(), why));
            return None;
        }
        Some(timeout.size)
    }

    /// How long something is remembered: zero if it is not.
    fn ttl(&mut self, webhook: &Value, [field, whether]: [&str; 2], default: Duration) -> Option<Duration> {
        let ttl = Signed::parse(webhook[field].as_str().unwrap_or("0")).ok()?;
        if ttl.is_negative {
            let cause = Cause::invalid(self.at(field), &ttl.shown().into(), "must be > 0s");
            self.causes.push(cause);
            return None;
        }
        let ttl = if ttl.size.is_zero() { default } else { ttl.size };
        Some(if webhook[whether] == false { Duration::ZERO } else { ttl })
    }

    fn one_of<'v>(&mut self, webhook: &'v Value, field: &str, supported: &[&str]) -> Option<&'v str> {
        let value = text(webhook, field);
        if value.is_empty() {
            self.causes.push(Cause::required(self.at(field), ""));
            return None;
        }
        if !supported.contains(&value) {
            self.causes.push(Cause::not_supported(self.at(field), &value.into(), supported));
            return None;
        }
        Some(value)
    }

    fn condition_version(&mut self, webhook: &Value) {
        const FIELD: &str = "matchConditionSubjectAccessReviewVersion";
        let has_conditions = webhook["matchConditions"].as_array().is_some_and(|all| !all.is_empty());
        match text(webhook, FIELD) {
            "" if has_conditions => {
                let why = "required if match conditions are specified";
                self.causes.push(Cause::required(self.at(FIELD), why));
            }
            "" | "v1" => {}
            other => self.causes.push(Cause::not_supported(self.at(FIELD), &other.into(), &["v1"])),
        }
    }

    /// The kubeconfig; `Some(None)` where the webhook is to be found as pods find the API.
    #[allow(clippy::option_option)]
    fn connection(&mut self, connection: &Value) -> Option<Option<std::path::PathBuf>> {
        const FILE: &str = "connectionInfo.kubeConfigFile";
        let file = text(connection, "kubeConfigFile");
        let invalid = |this: &Self, why: &str| Cause::invalid(this.at(FILE), &file.into(), why);
        let fault = match text(connection, "type") {
            "" => Cause::required(self.at("connectionInfo.type"), ""),
            "InClusterConfig" if connection["kubeConfigFile"].is_null() => return Some(None),
            "InClusterConfig" => invalid(self, "can only be set when type=KubeConfigFile"),
            "KubeConfigFile" if file.is_empty() => Cause::required(self.at(FILE), ""),
            "KubeConfigFile" if !Path::new(file).is_absolute() => invalid(self, "must be an absolute path"),
            "KubeConfigFile" => match std::fs::metadata(file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let why = format!("error loading file: stat {file}: no such file or directory");
                    invalid(self, &why)
                }
                Err(error) => invalid(self, &format!("error loading file: {error}")),
                Ok(found) if !found.is_file() => invalid(self, "must be a regular file"),
                Ok(_) => return Some(Some(file.into())),
            },
            _ => {
                let value = json!({
                    "Type": connection["type"], "KubeConfigFile": connection["kubeConfigFile"],
                });
                let supported = ["InClusterConfig", "KubeConfigFile"];
                Cause::not_supported(self.at("connectionInfo.type"), &value, &supported)
            }
        };
        self.causes.push(fault);
        None
    }

    fn conditions(&mut self, conditions: &Value) -> Vec<String> {
        let conditions = conditions.as_array().map(Vec::as_slice).unwrap_or_default();
        if conditions.len() > MAX_CONDITIONS {
            let path = self.at("matchConditions");
            self.causes.push(Cause::too_many(path, conditions.len(), MAX_CONDITIONS));
            return Vec::new();
        }
        let mut known: HashSet<&str> = HashSet::new();
        let mut expressions = Vec::new();
        for (at, condition) in conditions.iter().enumerate() {
            let path = self.at(&format!("matchConditions[{at}].expression"));
            let expression = text(condition, "expression");
            if expression.trim().is_empty() {
                self.causes.push(Cause::required(path, ""));
            } else if !known.insert(expression) {
                self.causes.push(Cause::duplicate(path, &expression.into()));
            } else if let Err(why) = Condition::compile(expression) {
                self.causes.push(Cause::invalid(path, &expression.into(), &why));
            } else {
                expressions.push(expression.to_owned());
            }
        }
        expressions
    }
}
