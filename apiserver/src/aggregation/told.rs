//! What servers tell of themselves: discovery and OpenAPI, asked for now and then, bounded, and kept as far as it is about what
//! their APIServices are for.
//!
//! Source: `handler_discovery.go` and `pkg/controllers/openapi*` of kube-aggregator.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HOST, HeaderMap, IF_NONE_MATCH};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::identity::{self, aggregator};
use super::peer::Peer;
use crate::auth::UserInfo;
use crate::heavy::Heavy;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
const JSON: &str = "application/json";
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);
const OPENAPI_TIMEOUT: Duration = Duration::from_secs(60);
/// A document of discovery, or the list of those of OpenAPI, is no larger.
const MAX_DISCOVERY_BYTES: usize = 2 << 20;
/// Nor is one of OpenAPI.
const MAX_OPENAPI_BYTES: usize = 8 << 20;
/// Resources of one version, subresources of one resource.
const MAX_RESOURCES: usize = 5000;

/// What a server has told, as far as it was asked already.
#[derive(Clone, Default)]
pub(crate) struct Told {
    pub(crate) discovery: Option<Discovered>,
    pub(crate) openapi: OpenApi,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Discovered {
    /// The resources of the version, as aggregated discovery has them.
    Current(Arc<Vec<Value>>),
    /// It is known that there is such a version, and no more.
    Stale,
}

#[derive(Clone, Default)]
pub(crate) struct OpenApi {
    /// Where version 3 of the own group and version is, with its hash.
    pub(crate) v3: Option<String>,
    /// Version 2: the own paths, and the definitions that they need.
    pub(crate) v2: Option<Arc<Value>>,
    /// Of the whole document of version 2.
    v2_tag: Option<HeaderValue>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("it cannot be asked: {0}")]
    Client(String),
    #[error("asking for {path}: {why}")]
    Unanswered { path: String, why: String },
    #[error("asking for {path}: context deadline exceeded")]
    Deadline { path: String },
    #[error("the answer to {path} is larger than {max_bytes} bytes, or broke off")]
    TooLarge { path: String, max_bytes: usize },
    #[error("the answer to {path} is {status}")]
    Refused { path: String, status: StatusCode },
    #[error("the answer to {path} cannot be read: {why}")]
    Undecodable { path: String, why: String },
}

/// An answer that is read as a whole.
struct Answer {
    status: StatusCode,
    content_type: String,
    tag: Option<HeaderValue>,
    body: bytes::Bytes,
}

/// How a document is asked for.
struct Question<'q> {
    path: &'q str,
    accept: &'static str,
    user: UserInfo,
    timeout: Duration,
    max_bytes: usize,
    /// Of the document that is known.
    tag: Option<HeaderValue>,
}

async fn ask(peer: &Peer, question: Question<'_>) -> Result<Answer, AskError> {
    let path = || question.path.to_owned();
    let client = peer.client().map_err(|why| AskError::Client(why.to_owned()))?;
    let authority = format!("{}.{}.svc:{}", peer.to.name, peer.to.namespace, peer.to.port);
    let unsendable =
        |error: &dyn std::fmt::Display| AskError::Unanswered { path: path(), why: error.to_string() };
    let mut headers = HeaderMap::new();
    identity::tell(&question.user, &mut headers);
    headers.insert(ACCEPT, HeaderValue::from_static(question.accept));
    if let Some(tag) = question.tag {
        headers.insert(IF_NONE_MATCH, tag);
    }
    headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|error| unsendable(&error))?);
    let url = format!("https://{authority}{}", question.path);
    let mut request = Request::get(url).body(Body::empty()).map_err(|error| unsendable(&error))?;
    *request.headers_mut() = headers;
    let answered = async {
        let answer = client
            .request(request)
            .await
            .map_err(|error| AskError::Unanswered { path: path(), why: skiff_webhook::of_request(&error) })?;
        let (head, body) = answer.into_parts();
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let tag = head.headers.get(ETAG).cloned();
        let body = Limited::new(body, question.max_bytes).collect().await;
        let body = body.map_err(|_| AskError::TooLarge { path: path(), max_bytes: question.max_bytes })?;
        Ok(Answer { status: head.status, content_type, tag, body: body.to_bytes() })
    };
    let answered = tokio::time::timeout(question.timeout, answered).await;
    answered.unwrap_or_else(|_| Err(AskError::Deadline { path: path() }))
}

/// Reads a document that others wrote.
fn parse<T: for<'d> Deserialize<'d>>(path: &str, bytes: &[u8]) -> Result<T, AskError> {
    let undecodable = |why: String| AskError::Undecodable { path: path.to_owned(), why };
    serde_json::from_slice(bytes).map_err(|error| undecodable(error.to_string()))
}

/// The resources of a group and version, as its server has them.
pub(super) async fn ask_discovery(
    heavy: &Heavy,
    peer: &Peer,
    group: &str,
    version: &str,
) -> Result<Vec<Value>, AskError> {
    let question = |path, accept, user| Question {
        path,
        accept,
        user,
        timeout: DISCOVERY_TIMEOUT,
        max_bytes: MAX_DISCOVERY_BYTES,
        tag: None,
    };
    let answer = ask(peer, question("/apis", AGGREGATED, aggregator())).await?;
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(AskError::Refused { path: "/apis".into(), status: answer.status });
    }
    if answer.status == StatusCode::OK && is_aggregated(&answer.content_type) {
        let (group, version) = (group.to_owned(), version.to_owned());
        let read = move || {
            let list: GroupList = parse("/apis", &answer.body)?;
            // A server that does not know the version serves nothing of it.
            let groups = list.items.into_iter().filter(|of| of.metadata.name == group);
            let found = groups.flat_map(|of| of.versions).find(|of| of.version == version);
            Ok(found.map(|of| told_resources(of.resources)).unwrap_or_default())
        };
        return heavily(heavy, read).await;
    }
    let path = format!("/apis/{group}/{version}");
    let user = UserInfo { groups: Vec::new(), ..aggregator() };
    let answer = ask(peer, question(&path, JSON, user)).await?;
    if answer.status != StatusCode::OK {
        return Err(AskError::Refused { path, status: answer.status });
    }
    heavily(heavy, move || legacy_resources(parse::<ResourceList>(&path, &answer.body)?.resources)).await
}

async fn heavily<T: Send + 'static>(
    heavy: &Heavy,
    read: impl FnOnce() -> Result<T, AskError> + Send + 'static,
) -> Result<T, AskError> {
    let outcome = heavy.run(read).await;
    outcome.unwrap_or_else(|status| Err(AskError::Client(status.message)))
}

/// Where the OpenAPI document of a group and version is, and the older one of all; each may be missing. What was `known` stays
/// if it is what the server still has.
pub(super) async fn ask_openapi(
    heavy: &Heavy,
    peer: &Peer,
    group: &str,
    version: &str,
    known: &OpenApi,
) -> OpenApi {
    let note = |error: &AskError| tracing::debug!(%error, group, version, "no OpenAPI of an API server");
    let v3 = ask_openapi_v3(heavy, peer, group, version).await.inspect_err(note).ok().flatten();
    let asked = ask_openapi_v2(heavy, peer, group, version, known).await.inspect_err(note);
    let (v2, v2_tag) = asked.unwrap_or_default();
    OpenApi { v3, v2, v2_tag }
}

async fn ask_openapi_v3(
    heavy: &Heavy,
    peer: &Peer,
    group: &str,
    version: &str,
) -> Result<Option<String>, AskError> {
    #[derive(Deserialize)]
    struct Root {
        #[serde(default)]
        paths: HashMap<String, Place>,
    }
    #[derive(Deserialize)]
    struct Place {
        #[serde(default, rename = "serverRelativeURL")]
        url: String,
    }
    const PATH: &str = "/openapi/v3";
    let answer = ask(peer, openapi_question(PATH, MAX_DISCOVERY_BYTES)).await?;
    if answer.status != StatusCode::OK {
        return Err(AskError::Refused { path: PATH.into(), status: answer.status });
    }
    let own = format!("apis/{group}/{version}");
    heavily(heavy, move || {
        let root: Root = parse(PATH, &answer.body)?;
        // Clients ask here for whatever is said there: it must lead back to this server.
        let prefix = format!("{PATH}/{own}");
        let place = root.paths.get(&own).map(|place| place.url.clone());
        Ok(place.filter(|url| url.split('?').next() == Some(prefix.as_str())))
    })
    .await
}

async fn ask_openapi_v2(
    heavy: &Heavy,
    peer: &Peer,
    group: &str,
    version: &str,
    known: &OpenApi,
) -> Result<(Option<Arc<Value>>, Option<HeaderValue>), AskError> {
    const PATH: &str = "/openapi/v2";
    let tag = known.v2_tag.clone().filter(|_| known.v2.is_some());
    let is_known = tag.is_some();
    let answer = ask(peer, Question { tag, ..openapi_question(PATH, MAX_OPENAPI_BYTES) }).await?;
    if answer.status == StatusCode::NOT_MODIFIED && is_known {
        return Ok((known.v2.clone(), known.v2_tag.clone()));
    }
    if answer.status != StatusCode::OK {
        return Err(AskError::Refused { path: PATH.into(), status: answer.status });
    }
    let (prefix, tag) = (format!("/apis/{group}/{version}/"), answer.tag);
    let part = heavily(heavy, move || Ok(own_part(parse(PATH, &answer.body)?, &prefix))).await?;
    Ok((Some(Arc::new(part)), tag))
}

fn openapi_question(path: &str, max_bytes: usize) -> Question<'_> {
    let user = UserInfo { name: "system:aggregator".into(), ..UserInfo::default() };
    Question { path, accept: JSON, user, timeout: OPENAPI_TIMEOUT, max_bytes, tag: None }
}

fn is_aggregated(content_type: &str) -> bool {
    let mut parameters = content_type.split(';').map(str::trim);
    let is_json = parameters.next() == Some(JSON);
    let parameters: BTreeSet<&str> = parameters.collect();
    is_json
        && parameters.contains("g=apidiscovery.k8s.io")
        && parameters.contains("as=APIGroupDiscoveryList")
        && (parameters.contains("v=v2") || parameters.contains("v=v2beta1"))
}

/// `null` and nothing are the same to Go.
fn or_default<'d, D: serde::Deserializer<'d>, T: Deserialize<'d> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct GroupList {
    #[serde(default, deserialize_with = "or_default")]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    versions: Vec<Version>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default, deserialize_with = "or_default")]
    version: String,
    #[serde(default, deserialize_with = "or_default")]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    #[serde(default, deserialize_with = "or_default")]
    resource: String,
    #[serde(default, deserialize_with = "or_default")]
    response_kind: KindName,
    #[serde(default, deserialize_with = "or_default")]
    scope: String,
    #[serde(default, deserialize_with = "or_default")]
    singular_resource: String,
    #[serde(default, deserialize_with = "or_default")]
    verbs: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    short_names: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    categories: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    subresources: Vec<Subresource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subresource {
    #[serde(default, deserialize_with = "or_default")]
    subresource: String,
    #[serde(default, deserialize_with = "or_default")]
    response_kind: KindName,
    #[serde(default, deserialize_with = "or_default")]
    accepted_types: Vec<KindName>,
    #[serde(default, deserialize_with = "or_default")]
    verbs: Vec<String>,
}

#[derive(Clone, Default, Deserialize)]
struct KindName {
    #[serde(default, deserialize_with = "or_default")]
    group: String,
    #[serde(default, deserialize_with = "or_default")]
    version: String,
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
}

impl KindName {
    fn to_json(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }
}

/// What of discovery is told on, and no more.
fn told_resources(resources: Vec<Resource>) -> Vec<Value> {
    let told = |resource: Resource| {
        let mut out = json!({
            "resource": resource.resource, "responseKind": resource.response_kind.to_json(),
            "scope": resource.scope, "singularResource": resource.singular_resource, "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            out["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            out["categories"] = json!(resource.categories);
        }
        let parts: Vec<Value> =
            resource.subresources.into_iter().take(MAX_RESOURCES).map(told_subresource).collect();
        if !parts.is_empty() {
            out["subresources"] = parts.into();
        }
        out
    };
    resources
        .into_iter()
        .filter(|resource| !resource.resource.is_empty())
        .take(MAX_RESOURCES)
        .map(told)
        .collect()
}

fn told_subresource(part: Subresource) -> Value {
    let mut out = json!({
        "subresource": part.subresource, "responseKind": part.response_kind.to_json(), "verbs": part.verbs,
    });
    if !part.accepted_types.is_empty() {
        out["acceptedTypes"] = part.accepted_types.iter().map(KindName::to_json).collect();
    }
    out
}

#[derive(Deserialize)]
struct ResourceList {
    #[serde(default, deserialize_with = "or_default")]
    resources: Vec<Legacy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Legacy {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    singular_name: String,
    #[serde(default, deserialize_with = "or_default")]
    namespaced: bool,
    #[serde(flatten)]
    of: KindName,
    #[serde(default, deserialize_with = "or_default")]
    verbs: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    short_names: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    categories: Vec<String>,
}

/// The older form in the words of the newer.
fn legacy_resources(list: Vec<Legacy>) -> Result<Vec<Value>, AskError> {
    let scope = |of: &Legacy| if of.namespaced { "Namespaced" } else { "Cluster" }.to_owned();
    let (parts, whole): (Vec<Legacy>, Vec<Legacy>) = list.into_iter().partition(|of| of.name.contains('/'));
    let mut resources: Vec<Resource> = whole
        .into_iter()
        .map(|of| Resource {
            scope: scope(&of),
            resource: of.name,
            response_kind: of.of,
            singular_resource: of.singular_name,
            verbs: of.verbs,
            short_names: of.short_names,
            categories: of.categories,
            subresources: Vec::new(),
        })
        .collect();
    let mut places: HashMap<String, usize> =
        resources.iter().enumerate().map(|(at, of)| (of.resource.clone(), at)).collect();
    for part in parts {
        let Some((parent, name)) = part.name.split_once('/') else { continue };
        let at = *places.entry(parent.to_owned()).or_insert_with(|| {
            resources.push(Resource {
                resource: parent.to_owned(),
                response_kind: KindName::default(),
                scope: scope(&part),
                singular_resource: String::new(),
                verbs: Vec::new(),
                short_names: Vec::new(),
                categories: Vec::new(),
                subresources: Vec::new(),
            });
            resources.len() - 1
        });
        if resources[at].scope != scope(&part) {
            let why = format!("{parent} and its subresource {name} are of different scopes");
            return Err(AskError::Undecodable { path: part.name.clone(), why });
        }
        let response_kind = if part.of.kind.is_empty() { KindName::default() } else { part.of };
        resources[at].subresources.push(Subresource {
            subresource: name.to_owned(),
            response_kind,
            accepted_types: Vec::new(),
            verbs: part.verbs,
        });
    }
    Ok(told_resources(resources))
}

/// Of an OpenAPI document of version 2 the paths below a prefix, and what they refer to.
fn own_part(mut document: Value, prefix: &str) -> Value {
    let mut paths = match document["paths"].take() {
        Value::Object(paths) => paths,
        _ => Map::new(),
    };
    paths.retain(|path, _| path.starts_with(prefix));
    let mut definitions = match document["definitions"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    let mut needed: BTreeMap<String, Value> = BTreeMap::new();
    let mut open: Vec<String> = Vec::new();
    paths.values().for_each(|path| references(path, &mut open));
    while let Some(name) = open.pop() {
        if let Some(definition) = definitions.remove(&name) {
            references(&definition, &mut open);
            needed.insert(name, definition);
        }
    }
    json!({"paths": paths, "definitions": needed})
}

const DEFINITIONS: &str = "#/definitions/";

/// The names of definitions that a part of a document refers to. What was parsed is no deeper than the parser goes.
fn references(part: &Value, into: &mut Vec<String>) {
    match part {
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value.as_str().and_then(|text| text.strip_prefix(DEFINITIONS))) {
                    ("$ref", Some(definition)) => into.push(definition.to_owned()),
                    _ => references(value, into),
                }
            }
        }
        _ => {}
    }
}

/// Adds what a server has told to a document of version 2. What is there under the same name and says something else keeps its
/// name, the other gets another.
pub(crate) fn merge_v2(into: &mut Value, part: &Value) {
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let (mut paths, mut definitions) = (fields(&part["paths"]), fields(&part["definitions"]));
    let mut renamed: HashMap<String, String> = HashMap::new();
    for (name, definition) in &definitions {
        let known = &into["definitions"][name];
        if known.is_null() || known == definition {
            continue;
        }
        let is_taken = |name: &String| definitions.contains_key(name) || !into["definitions"][name].is_null();
        let mut others = (2..).map(|n| format!("{name}_v{n}"));
        if let Some(other) = others.find(|other| !is_taken(other)) {
            renamed.insert(name.clone(), other);
        }
    }
    if !renamed.is_empty() {
        paths.values_mut().chain(definitions.values_mut()).for_each(|value| rename(value, &renamed));
    }
    for (name, definition) in definitions {
        let name = renamed.get(&name).cloned().unwrap_or(name);
        into["definitions"][name] = definition;
    }
    for (path, item) in paths {
        if into["paths"][&path].is_null() {
            into["paths"][path] = item;
        }
    }
}

fn rename(part: &mut Value, names: &HashMap<String, String>) {
    match part {
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, names)),
        Value::Object(fields) => {
            for (field, value) in fields {
                let other = value
                    .as_str()
                    .filter(|_| field == "$ref")
                    .and_then(|text| names.get(text.strip_prefix(DEFINITIONS)?));
                match other {
                    Some(other) => *value = format!("{DEFINITIONS}{other}").into(),
                    None => rename(value, names),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_of_discovery_is_told_in_the_newer() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"], "shortNames": ["fl"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "lost/scale", "namespaced": false, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": null},
        ]});
        let list: ResourceList = serde_json::from_value(list).expect("a list");
        let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
        assert_eq!(
            legacy_resources(list.resources).expect("resources"),
            [
                json!({
                    "resource": "flunders", "responseKind": kind("", "", "Flunder"), "scope": "Namespaced",
                    "singularResource": "flunder", "verbs": ["get", "list"], "shortNames": ["fl"],
                    "subresources": [{"subresource": "status", "responseKind": kind("", "", "Flunder"), "verbs": ["get"]}],
                }),
                json!({
                    "resource": "lost", "responseKind": kind("", "", ""), "scope": "Cluster", "singularResource": "",
                    "verbs": [],
                    "subresources": [{"subresource": "scale", "responseKind": kind("autoscaling", "v1", "Scale"), "verbs": []}],
                }),
            ]
        );
        let odd = json!({"resources": [
            {"name": "a", "namespaced": true, "kind": "A"}, {"name": "a/b", "namespaced": false, "kind": "A"},
        ]});
        let odd: ResourceList = serde_json::from_value(odd).expect("a list");
        assert!(legacy_resources(odd.resources).is_err());
    }

    #[test]
    fn only_documents_that_say_so_are_aggregated_discovery() {
        for yes in [
            AGGREGATED.split(',').next().expect("one"),
            "application/json; g=apidiscovery.k8s.io; v=v2beta1; as=APIGroupDiscoveryList",
        ] {
            assert!(is_aggregated(yes), "{yes}");
        }
        for no in
            ["", "application/json", "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList"]
        {
            assert!(!is_aggregated(no), "{no}");
        }
    }

    #[test]
    fn of_openapi_only_the_own_paths_and_what_they_need_are_taken() {
        let reference = |name: &str| json!({"schema": {"$ref": format!("#/definitions/{name}")}});
        let document = json!({
            "paths": {"/apis/g/v1/foos": reference("Foo"), "/apis/g/v12/foos": reference("Other"), "/api/v1/pods": {}},
            "definitions": {
                "Foo": {"properties": {"meta": {"$ref": "#/definitions/Meta"}, "self": {"$ref": "#/definitions/Foo"}}},
                "Meta": {"type": "object"}, "Other": {},
            },
        });
        let part = own_part(document, "/apis/g/v1/");
        assert_eq!(part["paths"], json!({"/apis/g/v1/foos": reference("Foo")}));
        let names: Vec<&String> = part["definitions"].as_object().expect("some").keys().collect();
        assert_eq!(names, ["Foo", "Meta"]);

        let mut ours = json!({"paths": {}, "definitions": {"Meta": {"type": "string"}, "Meta_v2": {}}});
        merge_v2(&mut ours, &part);
        assert_eq!(ours["definitions"]["Meta"], json!({"type": "string"}), "ours stays");
        assert_eq!(ours["definitions"]["Meta_v3"], json!({"type": "object"}));
        assert_eq!(ours["definitions"]["Foo"]["properties"]["meta"]["$ref"], "#/definitions/Meta_v3");
        assert_eq!(ours["paths"]["/apis/g/v1/foos"], reference("Foo"));
        let before = ours.clone();
        merge_v2(&mut ours, &json!({"paths": {}, "definitions": {"Meta": {"type": "string"}}}));
        assert_eq!(ours, before, "what says the same is the same");
    }
}
