//! What is given hostile input, and what must hold of what comes of it.

use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use axum::body::Body;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use skiff_api::apply::{self, FieldManager, Force, OneVersion};
use skiff_api::decode::{self, FieldValidation, Format};
use skiff_api::kinds::kinds_of;
use skiff_api::patch::{Patch, PatchType};
use skiff_api::quantity::{self, Quantity};
use skiff_api::schema::Schema;
use skiff_api::{FieldSelector, Kind, Kinds, LabelSelector, Object, Status, default, protobuf, structural};
use skiff_cel as cel;
use skiff_policy::Policies;
use skiff_spdy::Session;
use skiff_webhook::{admission, conversion};
use tokio::io::AsyncWriteExt as _;
use tower::ServiceExt as _;

use crate::server::Server;

/// Gives an input; an error is something that must not be.
type Give = Box<dyn Fn(&[u8]) -> Result<()>>;

/// Something that reads what others wrote.
pub struct Target {
    pub name: &'static str,
    /// Makes what is needed for all inputs.
    pub prepare: fn() -> Give,
    /// Inputs in CI: fewer where one takes longer.
    pub inputs: u64,
}

pub const TARGETS: &[Target] = &[
    Target { name: "json", prepare: json, inputs: 4000 },
    Target { name: "yaml", prepare: yaml, inputs: 3000 },
    Target { name: "protobuf", prepare: from_protobuf, inputs: 4000 },
    Target { name: "json-patch", prepare: json_patch, inputs: 4000 },
    Target { name: "merge-patch", prepare: merge_patch, inputs: 3000 },
    Target { name: "strategic-patch", prepare: strategic_patch, inputs: 3000 },
    Target { name: "selectors", prepare: selectors, inputs: 8000 },
    Target { name: "quantities", prepare: quantities, inputs: 8000 },
    Target { name: "expressions", prepare: expressions, inputs: 4000 },
    Target { name: "definitions", prepare: definitions, inputs: 1500 },
    Target { name: "structural", prepare: structural_values, inputs: 4000 },
    Target { name: "field-sets", prepare: field_sets, inputs: 4000 },
    Target { name: "applied", prepare: applied, inputs: 2000 },
    Target { name: "policies", prepare: policies, inputs: 1500 },
    Target { name: "admission-answers", prepare: admission_answers, inputs: 4000 },
    Target { name: "conversion-answers", prepare: conversion_answers, inputs: 4000 },
    Target { name: "requests", prepare: requests, inputs: 1500 },
    Target { name: "spdy", prepare: spdy, inputs: 4000 },
];

static KINDS: LazyLock<Kinds> = LazyLock::new(Kinds::builtin);

fn kind(group: &str, version: &str, plural: &str) -> Arc<Kind> {
    let kind = KINDS.by_resource(group, version, plural);
    kind.cloned().unwrap_or_else(|| unreachable!("{plural} are built in"))
}

/// The kinds that documents are read as: the one that a document says first, some others otherwise.
fn kinds_for(bytes: &[u8]) -> Vec<Arc<Kind>> {
    let said = serde_json::from_slice::<Value>(bytes).ok().and_then(|document| {
        let api_version = document["apiVersion"].as_str()?;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        KINDS.by_kind(group, version, document["kind"].as_str()?).cloned()
    });
    let others =
        || vec![kind("", "v1", "pods"), kind("apiextensions.k8s.io", "v1", "customresourcedefinitions")];
    said.map_or_else(others, |kind| vec![kind])
}

/// A refusal is one that a client can be given.
fn refused(status: &Status) -> Result<()> {
    ensure!((400..500).contains(&status.code), "refused with {}: {}", status.code, status.message);
    Ok(())
}

/// What was decoded can be completed, checked, written, and read again.
fn kept(kind: &Kind, mut object: Object) -> Result<()> {
    default::apply(kind, &mut object);
    kind.write(&mut object);
    _ = kind.faults(&object, None, Vec::new());
    _ = kind.warnings(&object, None);
    let bytes = serde_json::to_vec(&object)?;
    let again = decode::decode(kind, &bytes, Format::Json, FieldValidation::Ignore);
    let again = again.map_err(|status| anyhow!("what was read cannot be read again: {}", status.message))?;
    let mut again = again.object;
    default::apply(kind, &mut again);
    kind.write(&mut again);
    same("an object and what is read of it", &object, &again)
}

/// Two values are one; else where they first differ.
fn same(what: &str, a: &Value, b: &Value) -> Result<()> {
    let (mut a, mut b, mut path) = (a, b, String::new());
    while a != b {
        let keys: Vec<String> = match (a, b) {
            (Value::Object(x), Value::Object(y)) => x.keys().chain(y.keys()).cloned().collect(),
            (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
                (0..x.len()).map(|n| n.to_string()).collect()
            }
            _ => bail!("{what} differ at {path:?}: {a} and {b}"),
        };
        let Some(key) = keys.into_iter().find(|key| part(a, key) != part(b, key)) else {
            bail!("{what} differ at {path:?} in what is null")
        };
        (a, b) = (part(a, &key), part(b, &key));
        path = format!("{path}/{key}");
    }
    Ok(())
}

fn part<'v>(value: &'v Value, key: &str) -> &'v Value {
    let found = match value {
        Value::Array(list) => key.parse().ok().and_then(|at: usize| list.get(at)),
        other => other.get(key),
    };
    found.unwrap_or(&Value::Null)
}

fn decoded(format: Format, bytes: &[u8]) -> Result<()> {
    for kind in kinds_for(bytes) {
        for validation in [FieldValidation::Ignore, FieldValidation::Warn, FieldValidation::Strict] {
            match decode::decode(&kind, bytes, format, validation) {
                Ok(decoded) => kept(&kind, decoded.object)?,
                Err(status) => refused(&status)?,
            }
        }
    }
    Ok(())
}

fn json() -> Give {
    Box::new(|bytes| decoded(Format::Json, bytes))
}

fn yaml() -> Give {
    Box::new(|bytes| decoded(Format::Yaml, bytes))
}

/// What can be read is written as it was understood, and reads the same again.
fn from_protobuf() -> Give {
    Box::new(|bytes| {
        for kind in [kind("", "v1", "pods"), kind("apps", "v1", "deployments"), kind("", "v1", "secrets")] {
            match decode::decode(&kind, bytes, Format::Protobuf, FieldValidation::Ignore) {
                Ok(decoded) => {
                    let id = protobuf::type_of(&kind.api_version(), &kind.kind).context("it has a type")?;
                    let message = protobuf::message(id, &decoded.object);
                    let whole = protobuf::envelope(&kind.api_version(), &kind.kind, &message);
                    let again = decode::decode(&kind, &whole, Format::Protobuf, FieldValidation::Ignore);
                    let again = again.map_err(|status| anyhow!("not read again: {}", status.message))?;
                    ensure!(
                        protobuf::message(id, &again.object) == message,
                        "what was written is written otherwise the second time"
                    );
                }
                Err(status) => refused(&status)?,
            }
        }
        Ok(())
    })
}

fn pod() -> Object {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "a", "labels": {"a": "b"}, "finalizers": ["x/a", "x/b"]},
        "spec": {
            "containers": [
                {"name": "a", "image": "i", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "j", "args": ["x", "y"]},
            ],
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "nodeSelector": {"a": "b"},
        },
    })
}

fn patched(patch_type: PatchType, bytes: &[u8]) -> Result<()> {
    let (kind, object) = (kind("", "v1", "pods"), pod());
    let outcome =
        Patch::read(patch_type, bytes, FieldValidation::Warn).and_then(|patch| patch.apply(&kind, &object));
    match outcome {
        Ok(decoded) => kept(&kind, decoded.object),
        // As upstream answers a list that contradicts its own order.
        Err(status) if patch_type == PatchType::Strategic && status.code == 500 => Ok(()),
        Err(status) => refused(&status),
    }
}

fn json_patch() -> Give {
    Box::new(|bytes| patched(PatchType::Json, bytes))
}

fn merge_patch() -> Give {
    Box::new(|bytes| patched(PatchType::Merge, bytes))
}

fn strategic_patch() -> Give {
    Box::new(|bytes| patched(PatchType::Strategic, bytes))
}

fn selectors() -> Give {
    Box::new(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        match LabelSelector::parse(&text) {
            Ok(selector) => _ = selector.matches(|key| (key == "a").then_some("b")),
            Err(status) => refused(&status)?,
        }
        match FieldSelector::parse(&text) {
            Ok(selector) => _ = selector.matches(|field| field.to_owned()),
            Err(status) => refused(&status)?,
        }
        if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
            match LabelSelector::from_json(&value) {
                Ok(selector) => _ = selector.matches(|key| (key == "a").then_some("b")),
                Err(status) => refused(&status)?,
            }
        }
        Ok(())
    })
}

/// What is brought into its canonical form stays as it is.
fn quantities() -> Give {
    Box::new(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(canonical) = quantity::canonical(&text) {
            let again = quantity::canonical(&canonical).context("what is canonical is a quantity")?;
            ensure!(again == canonical, "{canonical} becomes {again}");
        }
        if let Ok(quantity) = text.parse::<Quantity>() {
            _ = (
                quantity.units(),
                quantity.millis(),
                quantity.rounded_up(),
                quantity.rounded_up_to_thousandths(),
            );
        }
        _ = quantity::rounded_up_to_thousandths(&text);
        _ = cel::duration(&text);
        _ = cel::is_url(&text);
        Ok(())
    })
}

/// No expression costs more than it may, and what it costs is no less than what was estimated at least.
fn expressions() -> Give {
    const LIMIT: u64 = 20_000;
    let object = pod();
    Box::new(move |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let environment = cel::Environment::default()
            .bindings()
            .patches()
            .variable("object", cel::Type::Dyn)
            .variable("oldObject", cel::Type::Dyn);
        let Ok(program) = environment.compile(&source) else { return Ok(()) };
        let value = || cel::Value::from_json(&object, &cel::Type::Dyn);
        let run = cel::Run::default().variable("object", value()).variable("oldObject", value()).limit(LIMIT);
        _ = program.run(run);
        Ok(())
    })
}

/// A definition that has no faults makes kinds, and those take objects.
fn definitions() -> Give {
    Box::new(|bytes| {
        let kind = kind("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        let decoded = match decode::decode(&kind, bytes, Format::Json, FieldValidation::Ignore) {
            Ok(decoded) => decoded,
            Err(status) => return refused(&status),
        };
        let mut definition = decoded.object;
        default::apply(&kind, &mut definition);
        kind.strategy.prepare_create(&mut definition);
        if !kind.faults(&definition, None, Vec::new()).is_empty() {
            return Ok(());
        }
        definition["status"]["acceptedNames"] = definition["spec"]["names"].clone();
        for kind in kinds_of(&definition).context("it has no faults")? {
            let object = json!({
                "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "a"},
                "spec": {"a": [{"b": 1}], "c": "d", "replicas": 3},
            });
            if let Ok(decoded) = decode::conform(&kind, object, FieldValidation::Ignore) {
                let mut object = decoded.object;
                default::apply(&kind, &mut object);
                _ = kind.faults(&object, None, Vec::new());
                _ = skiff_api::table::row(&kind, &object, &object, skiff_api::table::IncludeObject::None, 0);
            }
        }
        Ok(())
    })
}

/// What is pruned and completed once stays so.
fn structural_values() -> Give {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["a"], "properties": {
            "a": {"type": "array", "maxItems": 50, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {
                "type": "object", "required": ["n"], "properties": {
                    "n": {"type": "string", "maxLength": 20}, "v": {"type": "integer", "default": 3, "minimum": 0},
                },
            }},
            "port": {"x-kubernetes-int-or-string": true},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[a-z]*$", "nullable": true}},
            "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            "when": {"type": "string", "format": "date-time"},
            "one": {"type": "number", "oneOf": [{"maximum": 1}, {"minimum": 2}]},
        }, "x-kubernetes-validations": [
            {"rule": "self.a.size() < 40", "messageExpression": "'too many: ' + string(self.a.size())"},
            {"rule": "!has(oldSelf.port) || has(self.port)"},
        ]},
    }});
    let names = json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"});
    let definition = json!({
        "metadata": {"name": "things.example.com"}, "status": {"acceptedNames": names},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": names,
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    let kinds = kinds_of(&definition).unwrap_or_default();
    let before = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"a": [], "port": 1}});
    Box::new(move |bytes| {
        let kind = kinds.first().context("the definition makes a kind")?;
        for validation in [FieldValidation::Ignore, FieldValidation::Strict] {
            let mut object = match decode::decode(kind, bytes, Format::Json, validation) {
                Ok(decoded) => decoded.object,
                Err(status) => {
                    refused(&status)?;
                    continue;
                }
            };
            default::apply(kind, &mut object);
            let once = object.clone();
            let schema: &Schema = &kind.schema.schema;
            structural::prune(schema, &mut object).map_err(|why| anyhow!("{why}"))?;
            structural::default(schema, &mut object);
            ensure!(object == once, "pruned and completed twice it is another");
            _ = kind.faults(&object, None, Vec::new());
            _ = kind.faults(&object, Some(&before), Vec::new());
            _ = kind.warnings(&object, Some(&before));
        }
        Ok(())
    })
}

/// A set that can be read is written as it was.
fn field_sets() -> Give {
    Box::new(|bytes| {
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return Ok(()) };
        let Ok(set) = apply::Set::from_json(&value) else { return Ok(()) };
        let again = apply::Set::from_json(&set.to_json()).context("what was written is a set")?;
        ensure!(again.to_json() == set.to_json(), "a set is read as another than it was written");
        ensure!(set.union(again.clone()).to_json() == again.to_json(), "a set is not its own union");
        ensure!(again.clone().difference(&again).is_empty(), "a set is not empty without itself");
        Ok(())
    })
}

/// A document that is applied twice changes nothing the second time.
fn applied() -> Give {
    Box::new(|bytes| {
        let document = match apply::read(bytes, FieldValidation::Warn) {
            Ok(read) => read.object,
            Err(status) => return refused(&status),
        };
        let kind = kind("", "v1", "pods");
        let manager = FieldManager::new(&kind, "", &OneVersion);
        let mut live = pod();
        default::apply(&kind, &mut live);
        // Whoever applies may bring managers of his own.
        live["metadata"]["managedFields"] = document["metadata"]["managedFields"].clone();
        let mut document = document;
        if let Some(meta) = document["metadata"].as_object_mut() {
            meta.remove("managedFields");
        }
        // As in Go, a number that its field has no room for is cut off: the next time it is another item of its list.
        if has_large_number(&document) {
            _ = manager.apply(Some(&live), &document, "me", Force::Yes, "2026-01-01T00:00:00Z");
            return Ok(());
        }
        let Ok(once) = manager.apply(Some(&live), &document, "me", Force::Yes, "2026-01-01T00:00:00Z") else {
            return Ok(());
        };
        let twice = manager.apply(Some(&once), &document, "me", Force::Yes, "2026-01-01T00:00:00Z");
        let twice = twice.map_err(|error| anyhow!("what was applied cannot be applied again: {error}"))?;
        // As upstream: where nobody is left who manages anything, the next one finds an object of before all managers.
        if once["metadata"]["managedFields"].is_null() {
            return Ok(());
        }
        // What differs in nothing else is not written.
        if apply::differ_in_times_only(&twice, &once) {
            return Ok(());
        }
        same("an object and the one that the same is applied to", &once, &twice)
    })
}

fn has_large_number(value: &Value) -> bool {
    let mut parts = vec![value];
    while let Some(part) = parts.pop() {
        match part {
            Value::Number(number) if number.as_i64().is_none_or(|n| i32::try_from(n).is_err()) => {
                return true;
            }
            Value::Array(list) => parts.extend(list),
            Value::Object(map) => parts.extend(map.values()),
            _ => {}
        }
    }
    false
}

fn policies() -> Give {
    Box::new(|bytes| {
        let kind = kind("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies");
        match decode::decode(&kind, bytes, Format::Json, FieldValidation::Ignore) {
            Ok(decoded) => {
                let mut policy = decoded.object;
                default::apply(&kind, &mut policy);
                _ = kind.faults(&policy, None, Vec::new());
                let binding = json!({
                    "metadata": {"name": "b"},
                    "spec": {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]},
                });
                _ = Policies::compile([&policy], [&binding], None);
                Ok(())
            }
            Err(status) => refused(&status),
        }
    })
}

fn admission_answers() -> Give {
    let object = pod();
    Box::new(move |bytes| {
        if let Ok(patched) = admission::answered(bytes, "u", &object) {
            let kind = kind("", "v1", "pods");
            match decode::conform(&kind, patched, FieldValidation::Ignore) {
                Ok(decoded) => kept(&kind, decoded.object)?,
                Err(status) => refused(&status)?,
            }
        }
        Ok(())
    })
}

fn conversion_answers() -> Give {
    let original = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a", "uid": "1"}, "spec": {}});
    Box::new(move |bytes| {
        for object in conversion::answered(bytes, "u", &original, "example.com/v2").unwrap_or_default() {
            for field in ["name", "uid"] {
                ensure!(object["metadata"][field] == original["metadata"][field], "another object's {field}");
            }
        }
        Ok(())
    })
}

/// A request as it would stand on a wire: what is asked, headers, an empty line, a body. Whatever it is, it is answered, and a refusal is
/// a `Status`.
fn requests() -> Give {
    let server = Server::start();
    Box::new(move |bytes| {
        let server = server.as_ref().map_err(|error| anyhow!("the server does not start: {error:#}"))?;
        let end = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..end]);
        let body = bytes.get(end + 2..).unwrap_or_default();
        let mut lines = head.lines();
        let (method, uri) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or(("GET", "/"));
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            request = request.header(name, value);
        }
        // What is no request at all never reaches the server.
        let Ok(request) = request.body(Body::from(body.to_vec())) else { return Ok(()) };
        server.runtime.block_on(async {
            let answered = tokio::time::timeout(server.patience, server.service().oneshot(request)).await;
            let answer = match answered.context("no answer in time")? {
                Ok(answer) => answer,
                Err(never) => match never {},
            };
            let code = answer.status();
            // A watch has no end.
            if code.is_success() || code.is_redirection() || code.is_informational() {
                return Ok(());
            }
            let bytes = answer.into_body().collect().await?.to_bytes();
            let text = String::from_utf8_lossy(&bytes);
            ensure!(!text.contains("panicked"), "{code}: {text}");
            Ok(())
        })
    })
}

/// A connection that was upgraded: it ends, and so does each stream of it.
fn spdy() -> Give {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Box::new(move |bytes| {
        let runtime = runtime.as_ref().map_err(|error| anyhow!("no runtime: {error}"))?;
        let sent = bytes.to_vec();
        runtime.block_on(async move {
            let (client, server) = tokio::io::duplex(1 << 16);
            let (mut from_server, mut to_server) = tokio::io::split(client);
            tokio::spawn(async move {
                // A server that has hung up hears no more.
                let _gone = to_server.write_all(&sent).await;
                let _gone = to_server.shutdown().await;
            });
            tokio::spawn(async move {
                let _gone = tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await;
            });
            let mut session = Session::new(server);
            let mut streams = tokio::task::JoinSet::new();
            while let Some(incoming) = session.accept().await {
                let Ok((mut reader, writer)) = incoming.accept().await else { break };
                streams.spawn(async move {
                    while let Ok(Some(_)) = reader.read().await {}
                    writer.finish().await.is_ok()
                });
            }
            while streams.join_next().await.is_some() {}
            session.close().await;
            Ok(())
        })
    })
}
