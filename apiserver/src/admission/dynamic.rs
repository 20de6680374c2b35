//! Admission by policies and webhooks: which there are, and what the server tells them of a request. Policies come first, as
//! upstream's plug-ins do.
//!
//! They are compiled again when their objects have changed, which the first request after that notices. Without any a request costs a
//! look.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::decode::FieldValidation;
use skiff_api::meta::Meta;
use skiff_api::{FieldSelector, Kind, LabelSelector, Object, Status, decode, default};
use skiff_cel::{Authorizer, Check, Decision, Subject};
use skiff_policy::Policies;
use skiff_webhook::Client;
use skiff_webhook::admission::{
    self as hooks, Attributes, Called, Caller, GroupVersionKind, GroupVersionResource, Host, Operation,
    Permissions, Phase, Record, Reinvocation,
};
use tokio::time::Instant;

use super::latest::Latest;
use super::timed::Timed;
use crate::auth::authorize::Authorization;
use crate::auth::{UserInfo, attributes as auth};
use crate::call::{Call, is_core};
use crate::limits::REQUEST_TIMEOUT;
use crate::lister::Lister;
use crate::live::Table;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::request::{LabelTerm, is_true};

/// What of admission is written in objects: policies, and webhooks.
pub(crate) struct Dynamic {
    objects: Arc<Objects>,
    authorizer: Arc<Authorization>,
    /// Calls webhooks.
    client: Arc<Client>,
    metrics: Arc<Metrics>,
    mutating_webhooks: Latest<hooks::Webhooks>,
    validating_webhooks: Latest<hooks::Webhooks>,
    mutating_policies: Latest<Policies>,
    validating_policies: Latest<Policies>,
}

impl Dynamic {
    pub(crate) fn new(
        objects: Arc<Objects>,
        authorizer: Arc<Authorization>,
        client: Arc<Client>,
        metrics: Arc<Metrics>,
    ) -> Dynamic {
        let policies = |objects: &[Vec<Object>], last: &Policies| match objects {
            [policies, bindings] => Policies::compile(policies, bindings, Some(last)),
            _ => Policies::default(),
        };
        Dynamic {
            objects,
            authorizer,
            client,
            metrics,
            mutating_webhooks: Latest::new(
                &["mutatingwebhookconfigurations"],
                hooks::Webhooks::none(Phase::Mutating),
                |objects, last| {
                    hooks::Webhooks::compile(Phase::Mutating, objects.iter().flatten(), Some(last))
                },
            ),
            validating_webhooks: Latest::new(
                &["validatingwebhookconfigurations"],
                hooks::Webhooks::none(Phase::Validating),
                |objects, last| {
                    hooks::Webhooks::compile(Phase::Validating, objects.iter().flatten(), Some(last))
                },
            ),
            mutating_policies: Latest::new(
                &["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"],
                Policies::default(),
                policies,
            ),
            validating_policies: Latest::new(
                &["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
                Policies::default(),
                policies,
            ),
        }
    }
}

/// What rounds of mutation carry from one to the next.
#[derive(Default)]
pub(crate) struct Rounds {
    policies: Reinvocation,
    webhooks: Reinvocation,
}

impl Rounds {
    /// Whether all of mutating admission is to run once more.
    pub(crate) fn is_wanted(&self) -> bool {
        self.policies.is_wanted() || self.webhooks.is_wanted()
    }

    pub(crate) fn begin_again(&mut self) {
        self.policies.begin_again();
        self.webhooks.begin_again();
    }
}

/// What webhooks have left of an object.
pub(crate) struct Mutated {
    pub(crate) object: Option<Object>,
    pub(crate) has_changed: bool,
}

/// What admission is told of one request.
pub(crate) struct Admitted<'c> {
    pub(crate) operation: Operation,
    pub(crate) call: &'c Call,
    pub(crate) dry_run: bool,
    /// `CreateOptions`, `DeleteOptions`, …
    pub(crate) options: &'c Object,
}

/// What a request is about, in the words of webhooks. It is made only where there are webhooks.
struct Told {
    kind: GroupVersionKind,
    resource: GroupVersionResource,
    namespace: String,
    namespace_object: Option<Object>,
    user: hooks::UserInfo,
    name: String,
    deadline: Instant,
}

impl Told {
    fn of(lister: &Lister, call: &Call, name: &str) -> Result<Told, Status> {
        let api_version = call.kind.api_version();
        let namespace = if is_core(&call.kind, "Namespace") { name } else { call.info.namespace.as_str() };
        let namespace_object = match namespace {
            "" => None,
            namespace => lister.cached("namespaces", namespace)?.map(|entry| entry.parse()),
        };
        let UserInfo { name: user, uid, groups, extra } = call.user.clone();
        Ok(Told {
            kind: kind_of(&call.kind, &call.info.subresource),
            resource: GroupVersionResource::new(&api_version, &call.kind.plural),
            namespace: namespace.to_owned(),
            namespace_object,
            user: hooks::UserInfo { name: user, uid, groups, extra },
            name: name.to_owned(),
            deadline: Instant::now() + REQUEST_TIMEOUT,
        })
    }
}

/// The kind of what a resource, or a subresource of it, is sent.
fn kind_of(kind: &Kind, subresource: &str) -> GroupVersionKind {
    match subresource {
        "scale" => GroupVersionKind::new("autoscaling/v1", "Scale"),
        "binding" => GroupVersionKind::new("v1", "Binding"),
        "eviction" => GroupVersionKind::new("policy/v1", "Eviction"),
        "token" => GroupVersionKind::new("authentication.k8s.io/v1", "TokenRequest"),
        "exec" => GroupVersionKind::new("v1", "PodExecOptions"),
        "attach" => GroupVersionKind::new("v1", "PodAttachOptions"),
        "portforward" => GroupVersionKind::new("v1", "PodPortForwardOptions"),
        "proxy" => GroupVersionKind::new("v1", &format!("{}ProxyOptions", kind.kind)),
        _ => GroupVersionKind::new(&kind.api_version(), &kind.kind),
    }
}

impl Dynamic {
    /// What policies and webhooks make of a new object, or of one that replaces `old`; nothing of a deletion. What they warn of is
    /// added to `warnings`, whatever comes of it.
    pub(crate) async fn mutate(
        &self,
        admitted: &Admitted<'_>,
        object: Option<Object>,
        old: Option<&Object>,
        rounds: &mut Rounds,
        warnings: &mut Vec<String>,
    ) -> Result<Mutated, Status> {
        let policies = self.mutating_policies.current(&self.objects.lister)?;
        let webhooks = self.mutating_webhooks.current(&self.objects.lister)?;
        if (policies.value.is_empty() && webhooks.value.is_empty()) || admitted.call.is_own {
            return Ok(Mutated { object, has_changed: false });
        }
        let before = object.clone();
        let name = name_of(admitted.call, object.as_ref(), old);
        let told = Told::of(&self.objects.lister, admitted.call, &name)?;
        let (host, rights) = (
            Kinds { objects: &self.objects, table: &admitted.call.table },
            Rights::of(&self.authorizer, admitted.call, told.deadline),
        );
        let mut record = Record::default();
        let attributes = attributes(admitted, &told, &rights, None, old);
        let judges = skiff_policy::Caller { host: &host, params: &host };
        let schema_of = |kind: &GroupVersionKind| host.of_kind(kind).map(|kind| kind.schema.clone());
        let timed = Timed { metrics: &self.metrics, operation: admitted.operation, type_: "admit" };
        let changed = policies.value.mutate(judges, &schema_of, &attributes, object, &mut rounds.policies);
        let object = match policies.value.is_empty() {
            true => changed.await?,
            false => timed.of("MutatingAdmissionPolicy", changed).await?,
        };
        let caller = Caller { client: &self.client, host: &host };
        let mutated = webhooks.value.mutate(caller, &attributes, object, &mut rounds.webhooks, &mut record);
        let mutated = match webhooks.value.is_empty() {
            true => mutated.await,
            false => timed.of("MutatingAdmissionWebhook", mutated).await,
        };
        warnings.extend(record.warnings);
        let object = mutated?;
        Ok(Mutated { has_changed: object != before, object })
    }

    /// Whether policies and webhooks have nothing against a request.
    pub(crate) async fn validate(
        &self,
        admitted: &Admitted<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let policies = self.validating_policies.current(&self.objects.lister)?;
        let webhooks = self.validating_webhooks.current(&self.objects.lister)?;
        if (policies.value.is_empty() && webhooks.value.is_empty()) || admitted.call.is_own {
            return Ok(());
        }
        let name = name_of(admitted.call, object, old);
        let told = Told::of(&self.objects.lister, admitted.call, &name)?;
        let (host, rights) = (
            Kinds { objects: &self.objects, table: &admitted.call.table },
            Rights::of(&self.authorizer, admitted.call, told.deadline),
        );
        let mut record = Record::default();
        let attributes = attributes(admitted, &told, &rights, object, old);
        let judges = skiff_policy::Caller { host: &host, params: &host };
        let timed = Timed { metrics: &self.metrics, operation: admitted.operation, type_: "validate" };
        let judged = policies.value.validate(judges, &attributes, &mut record);
        let judged = match policies.value.is_empty() {
            true => judged.await,
            false => timed.of("ValidatingAdmissionPolicy", judged).await,
        };
        let caller = Caller { client: &self.client, host: &host };
        let validated = match judged {
            Ok(()) if webhooks.value.is_empty() => Ok(()),
            Ok(()) => {
                let validated = webhooks.value.validate(caller, &attributes, &mut record);
                timed.of("ValidatingAdmissionWebhook", validated).await
            }
            refused => refused,
        };
        warnings.extend(record.warnings);
        validated
    }

    /// The same of a request that connects to something, which brings no object but what it asks for.
    pub(crate) async fn admit_connection(&self, call: &mut Call) -> Result<(), Status> {
        let mut options = json!({});
        for (name, value) in call.query.pairs() {
            match (name, &mut options[name]) {
                ("stdin" | "stdout" | "stderr" | "tty", slot) => *slot = is_true(value).into(),
                ("ports", slot @ Value::Null) => *slot = json!([value.parse::<u16>().unwrap_or_default()]),
                ("ports", Value::Array(ports)) => ports.push(value.parse::<u16>().unwrap_or_default().into()),
                ("command", slot @ Value::Null) => *slot = json!([value]),
                ("command", Value::Array(words)) => words.push(value.into()),
                // Of what is said twice the first counts.
                (_, slot @ Value::Null) => *slot = value.into(),
                _ => {}
            }
        }
        let kind = kind_of(&call.kind, &call.info.subresource);
        options["kind"] = kind.kind.into();
        options["apiVersion"] = "v1".into();
        self.admit_document(call, Operation::Connect, options, false).await.map(drop)
    }

    /// The same of a document that is sent to a subresource, such as a `Binding`.
    pub(crate) async fn admit_document(
        &self,
        call: &mut Call,
        operation: Operation,
        document: Value,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let options = match operation {
            Operation::Connect => Value::Null,
            _ => write_options("CreateOptions", call, dry_run),
        };
        let admitted = Admitted { operation, call, dry_run, options: &options };
        let (mut warnings, mut rounds) = (Vec::new(), Rounds::default());
        let mutated = self.mutate(&admitted, Some(document), None, &mut rounds, &mut warnings).await?;
        self.validate(&admitted, mutated.object.as_ref(), None, &mut warnings).await?;
        call.warnings.extend(warnings);
        Ok(mutated.object.unwrap_or_default())
    }
}

fn name_of(call: &Call, object: Option<&Object>, old: Option<&Object>) -> String {
    match call.info.name.as_str() {
        "" => object.or(old).map_or("", |object| object.name()).to_owned(),
        name => name.to_owned(),
    }
}

fn attributes<'a>(
    admitted: &'a Admitted<'_>,
    told: &'a Told,
    rights: &'a Rights<'_>,
    object: Option<&'a Object>,
    old_object: Option<&'a Object>,
) -> Attributes<'a> {
    Attributes {
        operation: admitted.operation,
        kind: &told.kind,
        resource: &told.resource,
        subresource: &admitted.call.info.subresource,
        namespace: &told.namespace,
        name: &told.name,
        user: &told.user,
        dry_run: admitted.dry_run,
        object,
        old_object,
        options: Some(admitted.options).filter(|options| !options.is_null()),
        namespace_object: told.namespace_object.as_ref(),
        authorizer: Some(rights),
        deadline: Some(told.deadline),
    }
}

/// What of the kinds webhooks need to know.
pub(super) struct Kinds<'a> {
    pub(super) objects: &'a Objects,
    pub(super) table: &'a Table,
}

impl Kinds<'_> {
    pub(super) fn of_resource(&self, resource: &GroupVersionResource) -> Option<&Arc<Kind>> {
        self.table.kinds.by_resource(&resource.group, &resource.version, &resource.resource)
    }

    pub(super) fn of_kind(&self, kind: &GroupVersionKind) -> Option<&Arc<Kind>> {
        self.table.kinds.by_kind(&kind.group, &kind.version, &kind.kind)
    }
}

#[async_trait]
impl Host for Kinds<'_> {
    fn equivalents(&self, resource: &GroupVersionResource, subresource: &str) -> Vec<GroupVersionResource> {
        let Some(kind) = self.of_resource(resource) else { return Vec::new() };
        let has = |other: &&Arc<Kind>| {
            other.registry_folder == kind.registry_folder
                && (subresource.is_empty() || other.has_subresource(subresource))
        };
        let others = self.table.kinds.iter().filter(has);
        others.map(|other| GroupVersionResource::new(&other.api_version(), &other.plural)).collect()
    }

    fn kind_for(&self, resource: &GroupVersionResource, subresource: &str) -> Option<GroupVersionKind> {
        self.of_resource(resource).map(|kind| kind_of(kind, subresource))
    }

    async fn convert(&self, object: Object, kind: &GroupVersionKind) -> Result<Object, String> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let said = GroupVersionKind::new(text("apiVersion"), text("kind"));
        match (self.of_kind(&said), self.of_kind(kind)) {
            (Some(from), Some(to)) if from.registry_folder == to.registry_folder => {
                self.objects.converted(from, to, object).await.map_err(|status| status.message)
            }
            _ => Err(format!(
                "{} {} is no {} {}/{}",
                said.version, said.kind, kind.kind, kind.group, kind.version
            )),
        }
    }

    fn decode(&self, kind: &GroupVersionKind, object: Object) -> Result<Object, String> {
        let Some(kind) = self.of_kind(kind) else { return Ok(object) };
        let decoded = decode::conform(kind, object, FieldValidation::Ignore);
        decoded.map(|decoded| decoded.object).map_err(|status| status.message)
    }

    fn default(&self, kind: &GroupVersionKind, object: &mut Object) {
        if let Some(kind) = self.of_kind(kind) {
            default::apply(kind, object);
        }
    }

    fn called(&self, call: &Called<'_>) {
        self.objects.metrics.called(call);
    }
}

/// More answers are not remembered. One expression asks for far fewer, so that it comes to its end.
const MAX_KNOWN: usize = 1024;

/// What an expression asks, and the verb.
type Question = (Check, String);

/// The rights of who makes a request, for expressions. What others had to be asked about is remembered for the request.
struct Rights<'a> {
    authorizer: &'a Authorization,
    user: &'a UserInfo,
    /// When nobody is asked any more.
    deadline: Instant,
    known: Mutex<Vec<(Question, Decision)>>,
    /// The first that was not known.
    wanted: Mutex<Option<Question>>,
}

impl<'a> Rights<'a> {
    fn of(authorizer: &'a Authorization, call: &'a Call, deadline: Instant) -> Rights<'a> {
        Rights { authorizer, user: &call.user, deadline, known: Mutex::default(), wanted: Mutex::default() }
    }
}

/// A question, as authorizers are asked it.
struct Asked {
    user: Option<UserInfo>,
    fields: Vec<(String, bool, String)>,
    labels: Vec<LabelTerm>,
}

impl Asked {
    fn of(check: &Check) -> Asked {
        let user = match &check.subject {
            Subject::Requester => None,
            Subject::ServiceAccount { namespace, name } => {
                let all = format!("system:serviceaccounts:{namespace}");
                let groups = ["system:serviceaccounts", &all];
                Some(UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), &groups))
            }
        };
        // Selectors only narrow: without one that cannot be read, more is asked for.
        let fields = FieldSelector::parse(&check.field_selector).map(|selector| selector.terms);
        let labels = LabelSelector::parse(&check.label_selector).map(|selector| LabelTerm::of(&selector));
        Asked { user, fields: fields.unwrap_or_default(), labels: labels.unwrap_or_default() }
    }

    fn attributes<'a>(
        &'a self,
        requester: &'a UserInfo,
        check: &'a Check,
        verb: &'a str,
    ) -> auth::Attributes<'a> {
        let user = self.user.as_ref().unwrap_or(requester);
        auth::Attributes {
            is_resource: check.path.is_empty(),
            subresource: &check.subresource,
            namespace: &check.namespace,
            name: &check.name,
            path: &check.path,
            fields: &self.fields,
            labels: &self.labels,
            ..auth::Attributes::on(user, verb, &check.group, &check.resource)
        }
    }
}

fn told(decision: auth::Decision) -> Decision {
    Decision { is_allowed: decision.is_allowed(), reason: decision.reason, error: decision.error }
}

impl Authorizer for Rights<'_> {
    fn check(&self, check: &Check, verb: &str) -> Decision {
        let known = self.known.lock();
        let is_it = |(of, by): &Question| of == check && by == verb;
        if let Some((_, decision)) = known.iter().find(|(question, _)| is_it(question)) {
            return decision.clone();
        }
        drop(known);
        let asked = Asked::of(check);
        if let Some(decision) = self.authorizer.at_once(&asked.attributes(self.user, check, verb)) {
            return told(decision);
        }
        self.wanted.lock().get_or_insert_with(|| (check.clone(), verb.to_owned()));
        Decision::default()
    }
}

#[async_trait]
impl Permissions for Rights<'_> {
    async fn find_out(&self) -> bool {
        let Some((check, verb)) = self.wanted.lock().take() else { return false };
        let asked = Asked::of(&check);
        let asked = asked.attributes(self.user, &check, &verb);
        let decision = match tokio::time::timeout_at(self.deadline, self.authorizer.authorize(&asked)).await {
            Ok(decision) => told(decision),
            Err(_) => Decision { error: Some("context deadline exceeded".to_owned()), ..Decision::default() },
        };
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.push(((check, verb), decision));
        true
    }
}

/// The options of a write, as webhooks are shown them.
pub(crate) fn write_options(kind: &str, call: &Call, dry_run: bool) -> Object {
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if dry_run {
        options["dryRun"] = json!(["All"]);
    }
    for (field, parameter) in [("fieldManager", "fieldManager"), ("fieldValidation", "fieldValidation")] {
        if let Some(value) = call.query.non_empty(parameter) {
            options[field] = value.into();
        }
    }
    options
}
