//! Admission against what upstream's plug-ins sent and made of the same answers: `admission.jsonl.gz`, which `xtask/webhooks` records.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde::Deserialize;
use serde_json::{Value, json};
use skiff_api::Status;
use skiff_webhook::admission::{
    Attributes, Caller, GroupVersionKind, GroupVersionResource, Operation, Phase, Record, Reinvocation,
    UserInfo, Webhooks,
};

use crate::host::{Gadgets, MayGet};
use crate::server::{Reply, Server};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    mutating: bool,
    configurations: Option<Vec<Value>>,
    namespaces: Vec<Value>,
    attributes: Given,
    replies: BTreeMap<String, Reply>,
    between: Option<Value>,
    calls: Vec<Call>,
    object: Value,
    error: Option<Value>,
    #[serde(default)]
    reinvoked: bool,
    annotations: BTreeMap<String, String>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    operation: String,
    kind: Value,
    resource: Value,
    subresource: String,
    namespace: String,
    name: String,
    user: Value,
    dry_run: bool,
    object: Option<Value>,
    old_object: Option<Value>,
    options: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Call {
    path: String,
    query: String,
    body: Value,
}

/// Where we say something else, and why.
const KNOWN: &[(&str, &str)] = &[
    // Our engine of JSON patches has words of its own.
    ("a test fails", "testing value /spec/n failed"),
    ("a path is missing", "add operation does not apply: doc is missing path: \"/a/b/c\""),
    (
        "a path is missing and failures are ignored",
        "remove operation does not apply: doc is missing key: \"/a\"",
    ),
    ("an operation is none", "unexpected kind: increase"),
    (
        "the patch is no JSON",
        "failed calling webhook \"a\": received undecodable patch in webhook response: expected ident at line 1 column 2",
    ),
    // The host decodes, here one of the test; and nothing of a body is repeated in errors.
    ("the kind is removed", "Object 'Kind' is missing"),
    ("all is replaced by a list", "it is no object"),
];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The configurations, trusting the server where they trust nobody.
fn configurations(case: &Case, server: &Server) -> Vec<Value> {
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&server.ca_pem);
    let mut configurations = case.configurations.clone().unwrap_or_default();
    for webhook in configurations.iter_mut().filter_map(|c| c["webhooks"].as_array_mut()).flatten() {
        let config = &mut webhook["clientConfig"];
        if config["caBundle"].is_null() {
            config["caBundle"] = bundle.as_str().into();
        }
    }
    configurations
}

/// What came of a case.
struct Found {
    result: Result<Value, Status>,
    record: Record,
    was_reinvoked: bool,
}

async fn run(case: &Case, server: &Server) -> Found {
    let given = &case.attributes;
    let of = |value: &Value, field: &str| text(&value[field]);
    let kind = GroupVersionKind {
        group: of(&given.kind, "group"),
        version: of(&given.kind, "version"),
        kind: of(&given.kind, "kind"),
    };
    let resource = GroupVersionResource {
        group: of(&given.resource, "group"),
        version: of(&given.resource, "version"),
        resource: of(&given.resource, "resource"),
    };
    let user = UserInfo {
        name: of(&given.user, "Name"),
        uid: of(&given.user, "UID"),
        groups: serde_json::from_value::<Option<_>>(given.user["Groups"].clone())
            .expect("groups")
            .unwrap_or_default(),
        extra: serde_json::from_value::<Option<_>>(given.user["Extra"].clone())
            .expect("extra")
            .unwrap_or_default(),
    };
    let operation = match given.operation.as_str() {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        "DELETE" => Operation::Delete,
        _ => Operation::Connect,
    };
    let attributes = Attributes {
        operation,
        kind: &kind,
        resource: &resource,
        subresource: &given.subresource,
        namespace: &given.namespace,
        name: &given.name,
        user: &user,
        dry_run: given.dry_run,
        object: given.object.as_ref(),
        old_object: given.old_object.as_ref(),
        options: given.options.as_ref(),
        namespace_object: case.namespaces.iter().find(|n| n["metadata"]["name"] == given.namespace.as_str()),
        authorizer: Some(&MayGet),
        deadline: None,
    };
    let client = server.client();
    let caller = Caller { client: &client, host: &Gadgets::default() };
    let phase = if case.mutating { Phase::Mutating } else { Phase::Validating };
    let webhooks = Webhooks::compile(phase, &configurations(case, server), None);
    let (mut record, mut was_reinvoked) = (Record::default(), false);
    let result = if case.mutating {
        let mut reinvocation = Reinvocation::default();
        let object = given.object.clone();
        let mut result = webhooks.mutate(caller, &attributes, object, &mut reinvocation, &mut record).await;
        if result.is_ok() && reinvocation.is_wanted() {
            was_reinvoked = true;
            reinvocation.begin_again();
            let object = result.expect("an object");
            let object = case.between.clone().map_or(object, Some);
            result = webhooks.mutate(caller, &attributes, object, &mut reinvocation, &mut record).await;
        }
        result.map(Option::unwrap_or_default)
    } else {
        let result = webhooks.validate(caller, &attributes, &mut record).await;
        result.map(|()| given.object.clone().unwrap_or_default())
    };
    Found { result, record, was_reinvoked }
}

/// The error as it would be sent, as far as upstream says it here.
fn error_of(status: &Status) -> Value {
    let mut document = status.to_json();
    for field in ["kind", "apiVersion"] {
        document.as_object_mut().expect("an object").remove(field);
    }
    document
}

fn wanted_error(case: &Case, uids: &[String]) -> Option<Value> {
    let mut error = case.error.clone()?;
    if let Some((_, why)) = KNOWN.iter().find(|(name, _)| *name == case.name) {
        error["message"] = format!("Internal error occurred: {why}").into();
        error["details"]["causes"] = json!([{ "message": why }]);
    }
    let uid = uids.last().map(String::as_str).unwrap_or_default();
    // A UID stands in quotes, which JSON escapes.
    let mut error: Value = serde_json::from_str(&error.to_string().replace("$UID", uid)).expect("JSON");
    error.as_object_mut().expect("an object").remove("kind");
    error.as_object_mut().expect("an object").remove("apiVersion");
    Some(error)
}

fn compare(case: &Case, found: &Found, server: &Server) -> Result<(), String> {
    let mut calls = server.calls();
    if !case.mutating {
        calls.sort_by(|a, b| a.path.cmp(&b.path));
    }
    let uids: Vec<String> = calls.iter().map(|call| call.uid.clone()).collect();
    let same = |what: &str, found: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
        let (found, wanted) = (format!("{found:?}"), format!("{wanted:?}"));
        if found == wanted { Ok(()) } else { Err(format!("{what}\n   found {found}\n  wanted {wanted}")) }
    };
    same("error", &found.result.as_ref().err().map(error_of), &wanted_error(case, &uids))?;
    let shown = |path: &str, query: &str, body: &Value| format!("{path}?{query} {body}");
    let calls: Vec<String> = calls
        .iter()
        .map(|call| {
            let mut body = call.body.clone();
            body["request"]["uid"] = "$UID".into();
            shown(&call.path, &call.query, &body)
        })
        .collect();
    let wanted: Vec<String> =
        case.calls.iter().map(|call| shown(&call.path, &call.query, &call.body)).collect();
    same("calls", &calls, &wanted)?;
    if let Ok(object) = &found.result {
        same("object", object, &case.object)?;
    }
    let annotations: BTreeMap<String, String> =
        found.record.annotations.iter().map(|(key, (_, value))| (key.clone(), value.clone())).collect();
    same("annotations", &annotations, &case.annotations)?;
    let warnings: Vec<&String> = case.warnings.iter().filter(|text| !text.is_empty()).collect();
    same("warnings", &found.record.warnings, &warnings)?;
    same("a second round", &found.was_reinvoked, &case.reinvoked)
}

#[tokio::test]
async fn admission_asks_and_answers_as_upstream_does() {
    let packed = include_bytes!("admission.jsonl.gz");
    let mut lines = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut lines).expect("lines");
    let server = Server::start().await;
    let (mut faults, mut n_cases, mut n_known) = (Vec::new(), 0, 0);
    for line in lines.lines() {
        let case: Case = serde_json::from_str(line).expect(line);
        server.answer(case.replies.iter().map(|(path, reply)| (path.as_str(), reply.clone())));
        let found = run(&case, &server).await;
        if let Err(why) = compare(&case, &found, &server) {
            faults.push(format!("{} (mutating: {}): {why}", case.name, case.mutating));
        }
        n_cases += 1;
        n_known += usize::from(KNOWN.iter().any(|(name, _)| *name == case.name));
    }
    assert!(faults.is_empty(), "{} of {n_cases}:\n{}", faults.len(), faults.join("\n"));
    assert!(n_cases > 500, "{n_cases}");
    assert_eq!(n_known, KNOWN.len());
}
