//! Which resources the API serves, as they come and go.
//!
//! ```text
//!  definitions, API services ─ changed ─▶ read discovery ─▶ watch channel ─▶ whoever acts on all kinds
//! ```
//!
//! # Guarantees
//! - A kind that is established is known soon after; one that nobody told of, within [`READ_EVERY`].
//! - A document that has not changed is not read again (`ETag`).
//! - What cannot be read leaves what was known: nobody forgets kinds because a server is away. Of a group and version whose own
//!   server is away it is known that there is one ([`Resources::stale`]), and no more.
//!
//! Source: aggregated discovery (KEP-3352).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::api::{ApiResource, DynamicObject};
use kube::client::Body;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As upstream's garbage collector does.
const READ_EVERY: Duration = Duration::from_secs(30);
/// What has just been deleted may still be served for a moment.
const READ_AGAIN: Duration = Duration::from_secs(1);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// A document of discovery is no larger, whoever sends it.
const MAX_BYTES: usize = 16 << 20;

/// One resource in one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedResource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub is_namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<String>,
}

impl ServedResource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`.
    pub fn name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|known| known == name)
    }

    /// How a client addresses it.
    pub fn described(&self) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }
}

/// Everything that is served, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    all: Vec<Arc<ServedResource>>,
    stale: Vec<String>,
    by_kind: HashMap<(String, String, String), Arc<ServedResource>>,
}

impl Resources {
    pub fn new(all: Vec<ServedResource>) -> Resources {
        let all: Vec<Arc<ServedResource>> = all.into_iter().map(Arc::new).collect();
        let key = |r: &ServedResource| (r.group.clone(), r.version.clone(), r.kind.clone());
        let mut by_kind = HashMap::new();
        for resource in &all {
            by_kind.entry(key(resource)).or_insert_with(|| resource.clone());
        }
        Resources { all, by_kind, stale: Vec::new() }
    }

    /// With groups and versions of which nobody can tell what they have.
    pub fn with_stale(mut self, stale: Vec<String>) -> Resources {
        self.stale = stale;
        self
    }

    /// The groups and versions of which nobody can tell at the moment what they have, such as `example.com/v1`.
    pub fn stale(&self) -> &[String] {
        &self.stale
    }

    /// The same as one sentence, in upstream's words; `None` if there are none.
    pub fn failure(&self) -> Option<String> {
        let told = |of: &String| format!("{of}: stale GroupVersion discovery: {of}");
        let all: Vec<String> = self.stale.iter().map(told).collect();
        let listed = || format!("unable to retrieve the complete list of server APIs: {}", all.join(", "));
        (!all.is_empty()).then(listed)
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ServedResource>> {
        self.by_kind.get(&(group.to_owned(), version.to_owned(), kind.to_owned()))
    }

    /// Each resource once, in the version that its group prefers of those that have it.
    pub fn preferred(&self) -> impl Iterator<Item = &Arc<ServedResource>> {
        let mut seen: HashSet<(&str, &str)> = HashSet::new();
        self.all.iter().filter(move |r| seen.insert((&r.group, &r.plural)))
    }
}

/// What is served, and the news of it. Cloning shares it.
#[derive(Clone)]
pub struct Discovery(watch::Receiver<Option<Arc<Resources>>>);

impl Discovery {
    /// Follows what `client` may see until `shutdown`.
    pub fn start(client: Client, shutdown: CancellationToken) -> Discovery {
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(follow(client, sender, shutdown));
        Discovery(receiver)
    }

    /// What never changes.
    pub fn of(resources: Resources) -> Discovery {
        Discovery(watch::channel(Some(Arc::new(resources))).1)
    }

    /// What is served now; `None` as long as nobody could tell.
    pub fn now(&self) -> Option<Arc<Resources>> {
        self.0.borrow().clone()
    }

    /// Waits until what is served is known for the first time; for ever if that never is.
    pub async fn known(&self) -> Arc<Resources> {
        let mut receiver = self.0.clone();
        loop {
            if let Some(resources) = receiver.borrow_and_update().clone() {
                return resources;
            }
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is served, now and whenever that changes.
    pub fn changes(&self) -> impl Stream<Item = Arc<Resources>> + Send + Unpin + use<> {
        let stream = futures::stream::unfold((self.0.clone(), true), |(mut receiver, is_first)| async move {
            if !is_first {
                receiver.changed().await.ok()?;
            }
            let resources = receiver.borrow_and_update().clone();
            Some((resources, (receiver, false)))
        });
        Box::pin(stream.filter_map(std::future::ready))
    }
}

/// A document of discovery as it was read last.
#[derive(Default)]
struct Document {
    tag: Option<http::HeaderValue>,
    resources: Vec<ServedResource>,
    stale: Vec<String>,
}

async fn follow(client: Client, sender: watch::Sender<Option<Arc<Resources>>>, shutdown: CancellationToken) {
    let mut wakers = std::pin::pin!(futures::stream::select(
        wakes(&client, "apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions"),
        wakes(&client, "apiregistration.k8s.io", "APIService", "apiservices"),
    ));
    let mut documents: BTreeMap<&str, Document> = BTreeMap::new();
    let mut is_new = true;
    loop {
        let mut has_changed = false;
        for path in ["/api", "/apis"] {
            match read(&client, path, documents.get(path)).await {
                Ok(None) => {}
                Ok(Some(document)) => {
                    documents.insert(path, document);
                    has_changed = true;
                }
                Err(error) => tracing::debug!(path, %error, "cannot read which resources are served"),
            }
        }
        // A half is not enough: the other would count as gone.
        if has_changed && documents.len() == 2 {
            let all = documents.values().flat_map(|document| document.resources.iter().cloned()).collect();
            let stale = documents.values().flat_map(|document| document.stale.iter().cloned()).collect();
            sender.send_replace(Some(Arc::new(Resources::new(all).with_stale(stale))));
        }
        // Each arm only waits.
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(()) = wakers.next() => is_new = true,
            () = tokio::time::sleep(if is_new { READ_AGAIN } else { READ_EVERY }) => is_new = false,
        }
    }
}

/// An item for each change of a kind's objects that may change what is served.
fn wakes(client: &Client, group: &str, kind: &str, plural: &str) -> impl Stream<Item = ()> + Send + use<> {
    let resource = ApiResource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{group}/v1"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &resource);
    watcher(api, watcher::Config::default()).default_backoff().map(drop)
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the answer is {0} instead of the document")]
    Refused(http::StatusCode),
    #[error("the document is larger than {MAX_BYTES} bytes, or broke off")]
    TooLarge,
    #[error("the document cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// The document at a path; `None` if it is the one that is known.
async fn read(client: &Client, path: &str, known: Option<&Document>) -> Result<Option<Document>, ReadError> {
    let mut request = http::Request::get(path).header(http::header::ACCEPT, AGGREGATED);
    if let Some(tag) = known.and_then(|document| document.tag.as_ref()) {
        request = request.header(http::header::IF_NONE_MATCH, tag);
    }
    let request =
        request.body(Body::empty()).map_err(|error| ReadError::Api(kube::Error::HttpError(error)))?;
    let response = client.send(request).await?;
    match response.status() {
        http::StatusCode::NOT_MODIFIED => return Ok(None),
        http::StatusCode::OK => {}
        status => return Err(ReadError::Refused(status)),
    }
    let tag = response.headers().get(http::header::ETAG).cloned();
    let body = http_body_util::Limited::new(response.into_body(), MAX_BYTES);
    let bytes = http_body_util::BodyExt::collect(body).await.map_err(|_| ReadError::TooLarge)?.to_bytes();
    let list: GroupList = serde_json::from_slice(&bytes)?;
    let stale = stale_of(&list);
    Ok(Some(Document { tag, resources: resources_of(list), stale }))
}

#[derive(Deserialize)]
struct GroupList {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    resources: Vec<Listed>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    resource: String,
    response_kind: Option<ResponseKind>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    subresources: Vec<Subresource>,
}

#[derive(Deserialize)]
struct ResponseKind {
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct Subresource {
    subresource: String,
}

const STALE: &str = "Stale";

fn stale_of(list: &GroupList) -> Vec<String> {
    let mut stale = Vec::new();
    for group in &list.items {
        let versions = group.versions.iter().filter(|version| version.freshness == STALE);
        stale.extend(versions.map(|version| format!("{}/{}", group.metadata.name, version.version)));
    }
    stale.sort();
    stale
}

/// What is stale may be something else by now.
fn resources_of(list: GroupList) -> Vec<ServedResource> {
    let mut all = Vec::new();
    for group in list.items {
        for version in group.versions.into_iter().filter(|version| version.freshness != STALE) {
            all.extend(version.resources.into_iter().map(|listed| ServedResource {
                group: group.metadata.name.clone(),
                version: version.version.clone(),
                kind: listed.response_kind.map(|of| of.kind).unwrap_or_default(),
                plural: listed.resource,
                is_namespaced: listed.scope == "Namespaced",
                verbs: listed.verbs,
                subresources: listed.subresources.into_iter().map(|of| of.subresource).collect(),
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_several_versions_the_first_that_has_a_resource_is_preferred() {
        let resource = |name: &str, kind: &str| {
            json!({
                "resource": name, "responseKind": {"group": "", "version": "", "kind": kind}, "scope": "Namespaced",
                "verbs": ["get", "list"], "subresources": [{"subresource": "scale", "responseKind": {"kind": "Scale"}, "verbs": ["get"]}],
            })
        };
        let document = json!({"kind": "APIGroupDiscoveryList", "metadata": {}, "items": [{
            "metadata": {"name": "example.com"},
            "versions": [
                {"version": "v2", "resources": [resource("foos", "Foo")], "freshness": "Current"},
                {"version": "v1", "resources": [resource("foos", "Foo"), resource("bars", "Bar")]},
            ],
        }]});
        let resources = Resources::new(resources_of(serde_json::from_value(document).expect("a document")));
        let preferred: Vec<String> =
            resources.preferred().map(|r| format!("{} {}", r.name(), r.api_version())).collect();
        assert_eq!(preferred, ["foos.example.com example.com/v2", "bars.example.com example.com/v1"]);
        let old = resources.by_kind("example.com", "v1", "Foo").expect("both versions are known");
        assert!(old.can("list") && !old.can("delete") && old.has_subresource("scale") && old.is_namespaced);
    }

    #[test]
    fn of_what_is_stale_nothing_is_known_but_that_it_is_there() {
        let document = json!({"kind": "APIGroupDiscoveryList", "metadata": {}, "items": [{
            "metadata": {"name": "example.com"},
            "versions": [
                {"version": "v1", "freshness": "Current", "resources": [{"resource": "foos", "scope": "Namespaced"}]},
                {"version": "v2", "freshness": "Stale", "resources": [{"resource": "bars", "scope": "Namespaced"}]},
            ],
        }]});
        let list: GroupList = serde_json::from_value(document).expect("a document");
        let stale = stale_of(&list);
        let resources = Resources::new(resources_of(list)).with_stale(stale);
        assert_eq!(resources.preferred().map(|r| r.name()).collect::<Vec<_>>(), ["foos.example.com"]);
        assert_eq!(
            resources.failure().expect("one is stale"),
            "unable to retrieve the complete list of server APIs: example.com/v2: stale GroupVersion discovery: example.com/v2"
        );
        assert_eq!(Resources::default().failure(), None);
    }
}
