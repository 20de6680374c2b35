//! What the server offers: groups, versions, resources; plain and aggregated; OpenAPI.

mod listed;
mod openapi;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::RwLock;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skiff_api::kinds::Storage;
use skiff_api::{Kind, Kinds, encode, kubernetes};

use crate::aggregation::Aggregated;
use crate::aggregation::told::Discovered;
use crate::digest::hex_of;
use crate::openid;
use crate::respond::{self, Encoding, Response};
use listed::{Listed, Source};
pub(crate) use openapi::MergedV2;
use openapi::OpenApi;

const AGGREGATED: &[(&str, &str, &str)] = &[
    ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "apidiscovery.k8s.io/v2"),
    (
        "v2beta1",
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        "apidiscovery.k8s.io/v2beta1",
    ),
];

/// A group and its versions, in the order of declaration.
struct Group {
    name: String,
    versions: Vec<(String, Vec<Arc<Kind>>)>,
}

/// How the documents of discovery are written: what is about the same comes in the same order in all of them. What a document is
/// comes first.
const ORDER: &[&str] = &[
    "name",
    "singularName",
    "namespaced",
    "subresource",
    "resource",
    "responseKind",
    "scope",
    "singularResource",
    "group",
    "groupVersion",
    "version",
    "kind",
    "acceptedTypes",
    "verbs",
    "shortNames",
    "categories",
    "storageVersionHash",
    "metadata",
    "versions",
    "preferredVersion",
    "serverAddressByClientCIDRs",
    "clientCIDR",
    "serverAddress",
    "subresources",
    "resources",
    "freshness",
];
/// Of the document itself.
const TOP_ORDER: &[&str] =
    &["kind", "apiVersion", "metadata", "name", "versions", "groupVersion", "preferredVersion"];

pub(crate) struct Discovery {
    /// The kinds in whose version objects are stored.
    stored: Vec<Arc<Kind>>,
    groups: Vec<Group>,
    address: Arc<RwLock<SocketAddr>>,
    pub(crate) openapi: OpenApi,
}

/// One resource or subresource as discovery tells it.
struct Offer {
    /// `pods`, `pods/log`.
    path: String,
    group: String,
    version: String,
    kind: String,
    verbs: &'static [&'static str],
}

/// The order of the groups, as upstream ranks them; others follow in the order of declaration.
const GROUPS: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "storagemigration.k8s.io",
    "metrics.k8s.io",
];

const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// In upstream's order.
const CUSTOM_VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];
const PART_VERBS: &[&str] = &["get", "patch", "update"];

impl Discovery {
    /// `address` is where the API is reached from outside, at the moment. What was rendered `before` is kept as far as it still
    /// holds.
    pub(crate) fn new(
        kinds: &Kinds,
        address: Arc<RwLock<SocketAddr>>,
        before: Option<&Discovery>,
    ) -> Discovery {
        let mut groups: Vec<Group> = Vec::new();
        for kind in kinds.iter() {
            let at = groups.iter().position(|g| g.name == kind.group).unwrap_or_else(|| {
                groups.push(Group { name: kind.group.clone(), versions: Vec::new() });
                groups.len() - 1
            });
            let versions = &mut groups[at].versions;
            let at = versions.iter().position(|(v, _)| *v == kind.version).unwrap_or_else(|| {
                versions.push((kind.version.clone(), Vec::new()));
                versions.len() - 1
            });
            versions[at].1.push(kind.clone());
        }
        groups.sort_by_key(|group| GROUPS.iter().position(|g| *g == group.name).unwrap_or(GROUPS.len()));
        let openapi = OpenApi::new(kinds, before.map(|before| &before.openapi));
        let stored = kinds.stored();
        Discovery { stored, groups, address, openapi }
    }

    /// The answer to a path below `/api` or `/apis` that is no resource.
    pub(crate) fn answer(
        &self,
        aggregated: &Aggregated,
        path: &str,
        headers: &HeaderMap,
        encoding: &Encoding,
    ) -> Option<Response> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let root = matches!(parts.as_slice(), ["api"] | ["apis"]);
        if root && let Some((media_type, version)) = wants_aggregated(headers) {
            let document = self.aggregated(aggregated, parts[0] == "api", version);
            return Some(tagged(headers, media_type, &document));
        }
        let document = match parts.as_slice() {
            ["api"] => json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs":
                    [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.address.read().to_string()}],
            }),
            ["apis"] => {
                let groups: Vec<Value> = self
                    .listed(aggregated)
                    .iter()
                    .filter(|group| !group.name.is_empty())
                    .map(group_document)
                    .collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            }
            ["apis", group] => {
                let groups = self.listed(aggregated);
                let mut document =
                    group_document(groups.iter().find(|g| !g.name.is_empty() && g.name == *group)?);
                document["kind"] = "APIGroup".into();
                document["apiVersion"] = "v1".into();
                document
            }
            ["api", version] => self.resource_list("", version)?,
            ["apis", group, version] => self.resource_list(group, version)?,
            _ => return None,
        };
        Some(respond::document_in_order(encoding, &document, TOP_ORDER, ORDER))
    }

    /// All paths, as `/` lists them.
    pub(crate) fn paths(&self, aggregated: &Aggregated) -> Value {
        let mut paths: Vec<String> = vec!["/api".into(), "/api/v1".into(), "/apis".into()];
        for group in self.listed(aggregated).iter().filter(|group| !group.name.is_empty()) {
            paths.push(format!("/apis/{}", group.name));
            paths.extend(group.versions.iter().map(|of| format!("/apis/{}/{}", group.name, of.version)));
        }
        let others = ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3"];
        paths.insert(0, openid::CONFIGURATION_PATH.into());
        paths.extend(
            others.iter().chain(&[openid::KEYS_PATH, "/readyz", "/version"]).map(|p| (*p).to_owned()),
        );
        json!({"paths": paths})
    }

    fn resource_list(&self, group: &str, version: &str) -> Option<Value> {
        let found = self.groups.iter().find(|g| g.name == group)?;
        let (_, kinds) = found.versions.iter().find(|(v, _)| v == version)?;
        let mut resources = Vec::new();
        for kind in kinds {
            for (at, offer) in offers(kind).iter().enumerate() {
                resources.push(self.plain_resource(kind, offer, at == 0));
            }
        }
        let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let mut document =
            json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
        if !group.is_empty() {
            document["apiVersion"] = "v1".into();
        }
        Some(document)
    }

    fn plain_resource(&self, kind: &Kind, offer: &Offer, is_main: bool) -> Value {
        let mut resource = json!({
            "name": offer.path, "singularName": if is_main { kind.singular.as_str() } else { "" },
            "namespaced": kind.is_namespaced(), "kind": offer.kind, "verbs": offer.verbs,
        });
        if offer.group != kind.group || offer.version != kind.version {
            resource["group"] = offer.group.as_str().into();
            resource["version"] = offer.version.as_str().into();
        }
        if is_main {
            if !kind.short_names.is_empty() {
                resource["shortNames"] = json!(kind.short_names);
            }
            if !kind.categories.is_empty() {
                resource["categories"] = json!(kind.categories);
            }
            let same = |stored: &&Arc<Kind>| stored.registry_folder == kind.registry_folder;
            if let Some(stored) = self.stored.iter().find(same) {
                resource["storageVersionHash"] = storage_version_hash(stored).into();
            }
        }
        resource
    }

    fn aggregated(&self, aggregated: &Aggregated, core: bool, api_version: &str) -> Value {
        let groups = self.listed(aggregated);
        let items: Vec<Value> = groups
            .iter()
            .filter(|group| group.name.is_empty() == core)
            .filter_map(|group| {
                let versions: Vec<Value> = group.versions.iter().filter_map(version_document).collect();
                let metadata = if core { json!({}) } else { json!({"name": group.name}) };
                // Of a group of which nobody has told yet nothing is said here.
                (!versions.is_empty()).then(|| json!({"metadata": metadata, "versions": versions}))
            })
            .collect();
        json!({"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items})
    }
}

/// A hash of the version that a kind is stored in, by which clients notice that it has changed: the first eight bytes of SHA-256.
fn storage_version_hash(stored: &Kind) -> String {
    // These upstream still encodes in a version before, which clients take for what it is.
    let version = match (stored.group.as_str(), stored.kind.as_str()) {
        ("apiextensions.k8s.io", "CustomResourceDefinition")
        | ("certificates.k8s.io", "ClusterTrustBundle" | "PodCertificateRequest")
        | ("storagemigration.k8s.io", "StorageVersionMigration") => "v1beta1",
        ("resource.k8s.io", "DeviceTaintRule") => "v1beta2",
        _ => &stored.version,
    };
    let name = format!("{}/{version}/{}", stored.group, stored.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(name)[..8])
}

/// The media type of aggregated discovery that the client prefers, if any.
fn wants_aggregated(headers: &HeaderMap) -> Option<(&'static str, &'static str)> {
    let accept = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    for clause in accept.flat_map(|line| line.split(',')) {
        let has = |parameter: &str| clause.split(';').any(|p| p.trim() == parameter);
        if !has("as=APIGroupDiscoveryList") || !has("g=apidiscovery.k8s.io") || !has("application/json") {
            continue;
        }
        for (version, media_type, api_version) in AGGREGATED {
            if has(&format!("v={version}")) {
                return Some((media_type, api_version));
            }
        }
    }
    None
}

/// A document with an `ETag`, so that clients need not read it again.
fn tagged(headers: &HeaderMap, media_type: &'static str, document: &Value) -> Response {
    let bytes = Bytes::from(encode::json_in_order(document, TOP_ORDER, ORDER));
    let tag = format!("\"{}\"", hex_of(&Sha256::digest(&bytes)).to_uppercase());
    let unchanged = headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if unchanged { Body::empty() } else { Body::from(bytes) });
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}

fn version_document(of: &listed::Version<'_>) -> Option<Value> {
    let version = of.version;
    let document = match of.source {
        Source::Local(kinds) => {
            let resources: Vec<Value> = kinds.iter().map(|kind| aggregated_resource(kind)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        }
        Source::Remote(told) => match told.discovery.as_ref()? {
            Discovered::Current(resources) if resources.is_empty() => {
                json!({"version": version, "freshness": "Current"})
            }
            Discovered::Current(resources) => {
                json!({"version": version, "resources": &**resources, "freshness": "Current"})
            }
            Discovered::Stale => json!({"version": version, "freshness": "Stale"}),
        },
    };
    Some(document)
}

fn group_document(group: &Listed<'_>) -> Value {
    let version =
        |version: &str| json!({"groupVersion": format!("{}/{version}", group.name), "version": version});
    let versions: Vec<Value> = group.versions.iter().map(|of| version(of.version)).collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

fn aggregated_resource(kind: &Kind) -> Value {
    // Of the version that the document is about, nothing is said again.
    let response_kind = |offer: &Offer| match offer.group == kind.group && offer.version == kind.version {
        true => json!({"group": "", "version": "", "kind": offer.kind}),
        false => json!({"group": offer.group, "version": offer.version, "kind": offer.kind}),
    };
    let offers = offers(kind);
    let mut resource = json!({
        "resource": kind.plural, "responseKind": response_kind(&offers[0]),
        "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": offers[0].verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = offers[1..]
        .iter()
        .map(|offer| {
            let name = offer.path.split_once('/').map_or("", |(_, name)| name);
            json!({"subresource": name, "responseKind": response_kind(offer), "verbs": offer.verbs})
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = Value::Array(subresources);
    }
    resource
}

/// The kind itself, then its subresources in alphabetical order.
fn offers(kind: &Kind) -> Vec<Offer> {
    let offer = |path: String, (group, version, name): (&str, &str, &str), verbs| Offer {
        path,
        group: group.to_owned(),
        version: version.to_owned(),
        kind: name.to_owned(),
        verbs,
    };
    let own = (kind.group.as_str(), kind.version.as_str(), kind.kind.as_str());
    let mut offers = vec![offer(kind.plural.clone(), own, verbs_of(kind))];
    let mut names: Vec<&str> = kind.subresources.iter().map(String::as_str).collect();
    names.sort_unstable();
    for name in names {
        let options = format!("{}ProxyOptions", kind.kind);
        let (of, verbs): (_, &'static [&'static str]) = match name {
            "scale" => (("autoscaling", "v1", "Scale"), PART_VERBS),
            "binding" => (("", "v1", "Binding"), &["create"]),
            "eviction" => (("policy", "v1", "Eviction"), &["create"]),
            "token" => (("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
            "log" => (own, &["get"]),
            "exec" => (("", "v1", "PodExecOptions"), &["create", "get"]),
            "attach" => (("", "v1", "PodAttachOptions"), &["create", "get"]),
            "portforward" => (("", "v1", "PodPortForwardOptions"), &["create", "get"]),
            "proxy" => (("", "v1", options.as_str()), PROXY_VERBS),
            "finalize" => (own, &["update"]),
            _ => (own, PART_VERBS),
        };
        offers.push(offer(format!("{}/{name}", kind.plural), of, verbs));
    }
    offers
}

pub(crate) fn verbs_of(kind: &Kind) -> &'static [&'static str] {
    match (kind.storage, kind.kind.as_str()) {
        (Storage::Virtual, "ComponentStatus" | "NodeMetrics" | "PodMetrics") => &["get", "list"],
        (Storage::Virtual, _) => &["create"],
        (Storage::Stored, "Namespace") if kind.group.is_empty() => NAMESPACE_VERBS,
        (Storage::Stored, _) if kind.custom().is_some() => CUSTOM_VERBS,
        (Storage::Stored, _) => ALL_VERBS,
    }
}

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": kubernetes::MAJOR, "minor": kubernetes::MINOR,
        "gitVersion": kubernetes::VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": platform(),
    })
}

/// The same, as metrics tell it.
pub(crate) fn build() -> Vec<(&'static str, String)> {
    const FIELDS: [(&str, &str); 7] = [
        ("major", "major"),
        ("minor", "minor"),
        ("git_version", "gitVersion"),
        ("git_commit", "gitCommit"),
        ("git_tree_state", "gitTreeState"),
        ("compiler", "compiler"),
        ("platform", "platform"),
    ];
    let version = version();
    let text = |field: &str| version[field].as_str().unwrap_or_default().to_owned();
    FIELDS.map(|(label, field)| (label, text(field))).to_vec()
}

/// The platform as Go names it.
fn platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{arch}", std::env::consts::OS)
}
