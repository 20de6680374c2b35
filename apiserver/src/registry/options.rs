//! The parameters of requests: `ListOptions`, `CreateOptions`, `UpdateOptions`, `PatchOptions`,
//! `DeleteOptions`.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};
use skiff_api::apply::{self, Force};
use skiff_api::decode::FieldValidation;
use skiff_api::{Cause, FieldSelector, Kind, LabelSelector, Status, decode};

use crate::cache::Filter;
use crate::call::Call;
use crate::negotiate::body_format;
use crate::request::{NamedBy, Query, is_true};
use crate::store::Revision;

pub(super) fn media_type(call: &Call) -> &str {
    let header = call.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim()
}

/// Whether a patch is a document to apply.
pub(super) fn is_apply(call: &Call) -> bool {
    media_type(call) == apply::MEDIA_TYPE
}

/// Upstream's limit of a field manager's name.
pub(super) const MAX_MANAGER_BYTES: usize = 128;

pub(crate) fn revision(version: &str) -> Result<Revision, Status> {
    version.parse().map_err(|_| {
        let cause = Cause::invalid("resourceVersion", &json!(version), "strconv.ParseUint: invalid syntax");
        Status::invalid("meta.k8s.io", "ListOptions", "", vec![cause])
    })
}

/// What creating, updating and patching have in common.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
    /// Who the field manager is, if the request says so; empty otherwise.
    pub(crate) manager: String,
    /// Only of applied documents.
    pub(crate) force: Force,
}

impl WriteOptions {
    pub(crate) fn parse(call: &Call) -> Result<WriteOptions, Status> {
        let kind = match call.info.verb.as_str() {
            "create" => "CreateOptions",
            "patch" => "PatchOptions",
            _ => "UpdateOptions",
        };
        let validation = match call.query.get("fieldValidation") {
            Some("Ignore") => FieldValidation::Ignore,
            None | Some("" | "Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let cause = Cause::not_supported("fieldValidation", &json!(other), &supported);
                return Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]));
            }
        };
        let manager = call.query.get("fieldManager").unwrap_or_default();
        let force = call.query.get("force");
        let mut causes = Vec::new();
        if kind == "PatchOptions" {
            if is_apply(call) && manager.is_empty() {
                causes.push(Cause::required("fieldManager", "is required for apply patch"));
            } else if !is_apply(call) && force.is_some() {
                causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
            }
        }
        causes.extend(manager_faults(manager));
        if !causes.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", causes));
        }
        let force = if force.is_some_and(is_true) { Force::Yes } else { Force::No };
        let dry_run = dry_run(call.query.all("dryRun"), kind)?;
        Ok(WriteOptions { dry_run, validation, manager: manager.to_owned(), force })
    }
}

/// What is wrong with the name of a field manager.
fn manager_faults(manager: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if manager.len() > MAX_MANAGER_BYTES {
        causes.push(Cause::too_long("fieldManager", MAX_MANAGER_BYTES));
    }
    if let Some((at, c)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        causes.push(Cause::invalid("fieldManager", &json!(manager), &why));
    }
    causes
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, kind: &str) -> Result<bool, Status> {
    let mut dry = false;
    for value in values {
        if value != "All" {
            let cause = Cause::not_supported("dryRun", &json!([value]), &["All"]);
            return Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]));
        }
        dry = true;
    }
    Ok(dry)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VersionMatch {
    Unset,
    NotOlderThan,
    Exact,
}

#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub(crate) filter: Filter,
    /// Empty if unset.
    pub(crate) resource_version: String,
    pub(crate) version_match: VersionMatch,
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: String,
    pub(crate) timeout_s: Option<u64>,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial_events: Option<bool>,
}

impl ListOptions {
    pub(crate) fn parse(call: &Call) -> Result<ListOptions, Status> {
        let query = &call.query;
        let mut filter = filter(&call.kind, &call.info.namespace, query)?;
        // The legacy path of a watch names its object; a selector may not name another, nor leave it open.
        if !call.info.name.is_empty() && call.info.named_by == NamedBy::Path {
            match filter.fields.required("metadata.name") {
                Some(name) if name == call.info.name => {}
                None if filter.fields.is_empty() => {
                    filter.fields.terms.push(("metadata.name".into(), true, call.info.name.clone()));
                }
                _ => {
                    let why = "fieldSelector metadata.name doesn't match requested name";
                    return Err(Status::bad_request(why));
                }
            }
        }
        let number = |key: &str| match query.non_empty(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
            }),
        };
        let options = ListOptions {
            filter,
            resource_version: query.get("resourceVersion").unwrap_or_default().to_owned(),
            version_match: match query.get("resourceVersionMatch") {
                None | Some("") => VersionMatch::Unset,
                Some("NotOlderThan") => VersionMatch::NotOlderThan,
                Some("Exact") => VersionMatch::Exact,
                Some(other) => {
                    let supported = ["Exact", "NotOlderThan"];
                    let cause = Cause::not_supported("resourceVersionMatch", &json!(other), &supported);
                    return Err(invalid(vec![cause]));
                }
            },
            limit: number("limit")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0),
            continue_token: query.get("continue").unwrap_or_default().to_owned(),
            timeout_s: number("timeoutSeconds")?,
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.non_empty("sendInitialEvents").map(is_true),
        };
        options.check(call.info.verb == "watch")?;
        Ok(options)
    }

    fn check(&self, watch: bool) -> Result<(), Status> {
        let mut causes = Vec::new();
        if watch {
            let matches = self.version_match != VersionMatch::Unset;
            match self.send_initial_events {
                None if matches => causes.push(Cause::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )),
                Some(_) if self.version_match != VersionMatch::NotOlderThan => {
                    let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                    causes.push(if matches {
                        Cause::not_supported("resourceVersionMatch", &json!("Exact"), &["NotOlderThan"])
                    } else {
                        Cause::forbidden("resourceVersionMatch", why)
                    });
                }
                _ => {}
            }
        } else {
            self.check_list(&mut causes);
        }
        if causes.is_empty() { Ok(()) } else { Err(invalid(causes)) }
    }

    fn check_list(&self, causes: &mut Vec<Cause>) {
        if self.send_initial_events.is_some() {
            causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        if self.version_match == VersionMatch::Unset {
            return;
        }
        if self.resource_version.is_empty() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            causes.push(Cause::forbidden("resourceVersionMatch", why));
        }
        if !self.continue_token.is_empty() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            causes.push(Cause::forbidden("resourceVersionMatch", why));
        }
        if self.version_match == VersionMatch::Exact && self.resource_version == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            causes.push(Cause::forbidden("resourceVersionMatch", why));
        }
    }
}

fn invalid(causes: Vec<Cause>) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", causes)
}

fn filter(kind: &Kind, namespace: &str, query: &Query) -> Result<Filter, Status> {
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?;
    let mut fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())?;
    for (field, _, _) in &fields.terms {
        let offered = matches!(field.as_str(), "metadata.name" | "metadata.namespace")
            || kind.selectable.iter().any(|offered| **offered == **field);
        if !offered {
            return Err(Status::bad_request(if kind.selectable.is_empty() {
                format!(
                    "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                )
            } else {
                format!("field label not supported: {field}")
            }));
        }
    }
    // Objects are matched as they are stored.
    for (field, _, _) in &mut fields.terms {
        *field = kind.strategy.stored_field(field).to_owned();
    }
    let namespace = (kind.is_namespaced() && !namespace.is_empty()).then(|| namespace.to_owned());
    Ok(Filter { namespace, labels, fields })
}

const UNREADABLE: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_s: Option<i64>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) dry_run: bool,
    /// The legacy `orphanDependents`, which changes the answer's code.
    pub(crate) orphan_dependents: Option<bool>,
    /// `ignoreStoreReadErrorWithClusterBreakingPotential`: delete what cannot be read.
    pub(crate) unreadable: bool,
}

impl DeleteOptions {
    /// From the body if there is one, otherwise from the query.
    pub(crate) fn parse(call: &Call, body: &Bytes) -> Result<DeleteOptions, Status> {
        let document = if body.is_empty() {
            from_query(&call.query)?
        } else {
            let document = decode::document(body, body_format(&call.headers)?, "v1", "DeleteOptions")?;
            match document["kind"].as_str() {
                None | Some("" | "DeleteOptions") => document,
                Some(_) => {
                    return Err(Status::bad_request("decoded object cannot be converted to DeleteOptions"));
                }
            }
        };
        let mut options = DeleteOptions::from_json(&document)?;
        options.dry_run |= dry_run(call.query.all("dryRun"), "DeleteOptions")?;
        options.check_unreadable(call)?;
        Ok(options)
    }

    pub(crate) fn from_json(document: &Value) -> Result<DeleteOptions, Status> {
        let invalid = |cause| Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let grace_s = match &document["gracePeriodSeconds"] {
            Value::Null => None,
            value => Some(
                value.as_i64().ok_or_else(|| Status::bad_request("gracePeriodSeconds is not a number"))?,
            ),
        };
        let orphan_dependents = document["orphanDependents"].as_bool();
        let supported = ["Foreground", "Background", "Orphan", "nil"];
        let propagation = match &document["propagationPolicy"] {
            Value::Null => None,
            Value::String(policy) => match policy.as_str() {
                "Orphan" => Some(Propagation::Orphan),
                "Background" => Some(Propagation::Background),
                "Foreground" => Some(Propagation::Foreground),
                _ => {
                    let value = &document["propagationPolicy"];
                    return Err(invalid(Cause::not_supported("propagationPolicy", value, &supported)));
                }
            },
            value => return Err(invalid(Cause::not_supported("propagationPolicy", value, &supported))),
        };
        if propagation.is_some() && orphan_dependents.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            return Err(invalid(Cause::invalid("propagationPolicy", &document["propagationPolicy"], why)));
        }
        let dry = document["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(DeleteOptions {
            grace_s,
            uid: text(&document["preconditions"]["uid"]),
            resource_version: text(&document["preconditions"]["resourceVersion"]),
            propagation: propagation.or(orphan_dependents
                .map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background })),
            dry_run: dry_run(dry.iter().map(|v| v.as_str().unwrap_or_default()), "DeleteOptions")?,
            orphan_dependents,
            unreadable: document[UNREADABLE] == true,
        })
    }

    /// As admission is shown them.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        let policy = self.propagation.map(|policy| match policy {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        });
        let mut preconditions = json!({});
        for (field, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                preconditions[field] = value.as_str().into();
            }
        }
        let fields = [
            ("gracePeriodSeconds", self.grace_s.map(Value::from)),
            ("preconditions", Some(preconditions).filter(|fields| *fields != json!({}))),
            ("propagationPolicy", policy.map(Value::from).filter(|_| self.orphan_dependents.is_none())),
            ("orphanDependents", self.orphan_dependents.map(Value::from)),
            ("dryRun", self.dry_run.then(|| json!(["All"]))),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                document[field] = value;
            }
        }
        document
    }

    /// Deleting what cannot be read goes with nothing else: none of it could be heeded.
    fn check_unreadable(&self, call: &Call) -> Result<(), Status> {
        if !self.unreadable {
            return Ok(());
        }
        let invalid = |why: &str| Cause::invalid(UNREADABLE, &json!(true), why);
        if call.info.verb == "deletecollection" {
            let why = "is not allowed with DELETECOLLECTION, try again after removing the option";
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![invalid(why)]));
        }
        let others = [
            ("dryRun", self.dry_run),
            ("propagationPolicy", self.propagation.is_some() && self.orphan_dependents.is_none()),
            ("orphanDependents", self.orphan_dependents.is_some()),
            ("gracePeriodSeconds", self.grace_s.is_some()),
            ("preconditions", self.uid.is_some() || self.resource_version.is_some()),
        ];
        let causes: Vec<Cause> = others
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(name, _)| invalid(&format!("cannot be set together with .{name}")))
            .collect();
        if causes.is_empty() {
            Ok(())
        } else {
            Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", causes))
        }
    }
}

fn from_query(query: &Query) -> Result<Value, Status> {
    let mut document = json!({});
    if let Some(grace) = query.non_empty("gracePeriodSeconds") {
        let seconds: i64 = grace.parse().map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {grace:?}: invalid syntax"))
        })?;
        document["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(policy) = query.non_empty("propagationPolicy") {
        document["propagationPolicy"] = policy.into();
    }
    for flag in ["orphanDependents", UNREADABLE] {
        if query.non_empty(flag).is_some() {
            document[flag] = query.flag(flag).into();
        }
    }
    Ok(document)
}
