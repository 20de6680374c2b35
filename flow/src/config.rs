//! The objects that say who waits behind whom, read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::bootstrap::bootstrap;

pub(crate) const EXEMPT: &str = "exempt";
pub(crate) const CATCH_ALL: &str = "catch-all";
/// A hash of 60 bits is dealt: a hand must not need more (upstream's `MaxHashBits`).
const MAX_HASH_BITS: f64 = 60.0;
const MAX_HAND: usize = 15;
/// Queues of one level. Validation allows ten million, as upstream's: each takes memory, and all are looked at for each request
/// that waits.
const MAX_QUEUES: usize = 1024;

/// What a request is told apart by.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    pub user: &'r str,
    pub groups: &'r [String],
    pub verb: &'r str,
    pub is_resource: bool,
    pub group: &'r str,
    pub resource: &'r str,
    pub subresource: &'r str,
    pub namespace: &'r str,
    /// Of a request for no resource.
    pub path: &'r str,
}

/// How the requests of a level queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queuing {
    pub(crate) queues: usize,
    pub(crate) hand: usize,
    pub(crate) length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// No limit.
    Exempt,
    Reject,
    Queue(Queuing),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Level {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) shares: f64,
    pub(crate) lendable_percent: f64,
    /// No bound if unset.
    pub(crate) borrowing_percent: Option<f64>,
    pub(crate) response: Response,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    Account { namespace: String, name: String },
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    has_cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Names,
    paths: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

/// Names, or everything.
#[derive(Debug)]
struct Names(Option<Vec<String>>);

#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) level: String,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

/// What the `Dangling` condition of a FlowSchema must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dangling {
    pub schema: String,
    pub level: String,
    pub is_dangling: bool,
}

/// All objects of both kinds, as they are to be used: what is broken is left out, what must be there is there.
#[derive(Debug)]
pub struct Config {
    pub(crate) levels: BTreeMap<String, Level>,
    /// In the order in which they are asked.
    pub(crate) schemas: Vec<Arc<Schema>>,
    pub dangling: Vec<Dangling>,
}

impl Config {
    pub fn read<'o>(
        levels: impl IntoIterator<Item = &'o Value>,
        schemas: impl IntoIterator<Item = &'o Value>,
    ) -> Config {
        let mandatory = bootstrap();
        let wanted = |objects: &[Value], name: &str| objects.iter().find(|o| name_of(o) == name).cloned();
        let mut known: BTreeMap<String, Level> =
            levels.into_iter().filter_map(Level::read).map(|level| (level.name.clone(), level)).collect();
        for name in [EXEMPT, CATCH_ALL] {
            if !known.contains_key(name)
                && let Some(level) = wanted(&mandatory.levels, name).as_ref().and_then(Level::read)
            {
                known.insert(name.to_owned(), level);
            }
        }
        let (mut used, mut dangling) = (Vec::new(), Vec::new());
        for schema in schemas.into_iter().map(Schema::read) {
            let is_dangling = !known.contains_key(&schema.level);
            dangling.push(Dangling { schema: schema.name.clone(), level: schema.level.clone(), is_dangling });
            if !is_dangling {
                used.push(Arc::new(schema));
            }
        }
        used.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        for (name, is_first) in [(EXEMPT, true), (CATCH_ALL, false)] {
            if used.iter().any(|schema| schema.name == name) {
                continue;
            }
            if let Some(schema) = wanted(&mandatory.schemas, name) {
                let at = if is_first { 0 } else { used.len() };
                used.insert(at, Arc::new(Schema::read(&schema)));
            }
        }
        Config { levels: known, schemas: used, dangling }
    }
}

pub(crate) fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn size(value: &Value) -> usize {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default()
}

/// A number of the API, all of which are small.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|n| *n >= 0.0)
}

impl Level {
    pub(crate) fn catch_all() -> Level {
        Level {
            name: CATCH_ALL.to_owned(),
            uid: String::new(),
            shares: 5.0,
            lendable_percent: 0.0,
            borrowing_percent: None,
            response: Response::Reject,
        }
    }

    /// `None` for what validation would have refused.
    fn read(object: &Value) -> Option<Level> {
        let (name, spec) = (name_of(object), &object["spec"]);
        let is_exempt = spec["type"] == "Exempt";
        if is_exempt != (name == EXEMPT) || is_exempt == spec["limited"].is_object() {
            return None;
        }
        let common = if is_exempt { &spec["exempt"] } else { &spec["limited"] };
        let response = match (is_exempt, spec["limited"]["limitResponse"]["type"].as_str()) {
            (true, _) => Response::Exempt,
            (false, Some("Reject")) => Response::Reject,
            (false, Some("Queue")) => {
                Response::Queue(Queuing::read(&spec["limited"]["limitResponse"]["queuing"])?)
            }
            _ => return None,
        };
        Some(Level {
            name: name.to_owned(),
            uid: text(&object["metadata"]["uid"]),
            shares: number(&common["nominalConcurrencyShares"]).unwrap_or(if is_exempt { 0.0 } else { 30.0 }),
            lendable_percent: number(&common["lendablePercent"]).unwrap_or_default().min(100.0),
            borrowing_percent: number(&common["borrowingLimitPercent"]),
            response,
        })
    }
}

impl Queuing {
    fn read(value: &Value) -> Option<Queuing> {
        let queuing = Queuing {
            queues: size(&value["queues"]).min(MAX_QUEUES),
            hand: size(&value["handSize"]),
            length: size(&value["queueLengthLimit"]),
        };
        let Queuing { queues, hand, length } = queuing;
        #[expect(clippy::cast_precision_loss, reason = "both are small")]
        let bits = (queues as f64).log2() * hand as f64;
        let is_sound =
            queues > 0 && hand > 0 && length > 0 && hand <= queues.min(MAX_HAND) && bits <= MAX_HASH_BITS;
        is_sound.then_some(queuing)
    }
}

impl Schema {
    /// Without rules: nothing matches it.
    pub(crate) fn catch_all() -> Schema {
        Schema {
            name: CATCH_ALL.to_owned(),
            uid: String::new(),
            level: CATCH_ALL.to_owned(),
            precedence: i64::MAX,
            distinguisher: Distinguisher::None,
            rules: Vec::new(),
        }
    }

    fn read(object: &Value) -> Schema {
        let spec = &object["spec"];
        Schema {
            name: name_of(object).to_owned(),
            uid: text(&object["metadata"]["uid"]),
            level: text(&spec["priorityLevelConfiguration"]["name"]),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: spec["rules"].as_array().into_iter().flatten().map(Rule::read).collect(),
        }
    }

    pub(crate) fn matches(&self, request: &Request<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(request))
    }

    /// What sets a request's flow apart from the others of the schema.
    pub(crate) fn flow<'r>(&self, request: &Request<'r>) -> &'r str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => request.user,
            Distinguisher::Namespace => request.namespace,
        }
    }
}

impl Rule {
    fn read(value: &Value) -> Rule {
        let list = |field: &str| value[field].as_array().into_iter().flatten();
        Rule {
            subjects: list("subjects").filter_map(Subject::read).collect(),
            resources: list("resourceRules")
                .map(|rule| ResourceRule {
                    verbs: Names::read(&rule["verbs"]),
                    groups: Names::read(&rule["apiGroups"]),
                    resources: Names::read(&rule["resources"]),
                    namespaces: Names::read(&rule["namespaces"]),
                    has_cluster_scope: rule["clusterScope"] == true,
                })
                .collect(),
            paths: list("nonResourceRules")
                .map(|rule| PathRule {
                    verbs: Names::read(&rule["verbs"]),
                    paths: texts(&rule["nonResourceURLs"]),
                })
                .collect(),
        }
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(request)) {
            return false;
        }
        if request.is_resource {
            self.resources.iter().any(|rule| rule.matches(request))
        } else {
            self.paths.iter().any(|rule| rule.matches(request))
        }
    }
}

impl Subject {
    fn read(value: &Value) -> Option<Subject> {
        let kind = value["kind"].as_str()?;
        Some(match kind {
            "User" => Subject::User(text(&value["user"]["name"])),
            "Group" => Subject::Group(text(&value["group"]["name"])),
            "ServiceAccount" => Subject::Account {
                namespace: text(&value["serviceAccount"]["namespace"]),
                name: text(&value["serviceAccount"]["name"]),
            },
            _ => return None,
        })
    }

    fn is(&self, request: &Request<'_>) -> bool {
        match self {
            Subject::User(name) => name == "*" || name == request.user,
            Subject::Group(name) => name == "*" || request.groups.contains(name),
            Subject::Account { namespace, name } => {
                let account = request.user.strip_prefix("system:serviceaccount:");
                let account = account.and_then(|account| account.strip_prefix(namespace.as_str()));
                account
                    .and_then(|account| account.strip_prefix(':'))
                    .is_some_and(|account| name == "*" || account == name)
            }
        }
    }
}

impl Names {
    fn read(value: &Value) -> Names {
        let names = texts(value);
        Names(if names == ["*"] { None } else { Some(names) })
    }

    fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|one| one == name))
    }
}

impl ResourceRule {
    fn matches(&self, request: &Request<'_>) -> bool {
        if !self.verbs.has(request.verb) || !self.groups.has(request.group) {
            return false;
        }
        let is_named = if request.subresource.is_empty() {
            self.resources.has(request.resource)
        } else {
            self.resources.has(&format!("{}/{}", request.resource, request.subresource))
        };
        is_named
            && if request.namespace.is_empty() {
                self.has_cluster_scope
            } else {
                self.namespaces.has(request.namespace)
            }
    }
}

impl PathRule {
    fn matches(&self, request: &Request<'_>) -> bool {
        let is_below = |rule: &String| {
            let folder = rule.strip_suffix('*').unwrap_or(rule);
            let folder = folder.strip_suffix('/').unwrap_or(folder);
            request.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
        };
        self.verbs.has(request.verb)
            && self.paths.iter().any(|rule| rule == "*" || rule == request.path || is_below(rule))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn groups(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn config() -> Config {
        let all = bootstrap();
        Config::read(&all.levels, &all.schemas)
    }

    fn schema_of(config: &Config, request: &Request<'_>) -> String {
        let found = config.schemas.iter().find(|schema| schema.matches(request));
        found.map(|schema| schema.name.clone()).unwrap_or_default()
    }

    #[test]
    fn who_asks_for_what_decides_the_schema() {
        let config = config();
        let node = groups(&["system:nodes", "system:authenticated"]);
        let account = groups(&["system:serviceaccounts", "system:authenticated"]);
        let plain = groups(&["system:authenticated"]);
        let masters = groups(&["system:masters", "system:authenticated"]);
        let none = groups(&["system:unauthenticated"]);
        let system = "system:serviceaccount:kube-system:x";
        for (user, groups, verb, group, resource, namespace, expected) in [
            ("admin", &masters, "list", "", "pods", "a", "exempt"),
            ("system:node:n", &node, "update", "", "nodes/status", "", "system-node-high"),
            (
                "system:node:n",
                &node,
                "update",
                "coordination.k8s.io",
                "leases",
                "kube-node-lease",
                "system-node-high",
            ),
            ("system:node:n", &node, "update", "coordination.k8s.io", "leases", "", "system-nodes"),
            ("system:node:n", &node, "patch", "", "pods/status", "a", "system-nodes"),
            (
                "system:kube-scheduler",
                &plain,
                "update",
                "coordination.k8s.io",
                "leases",
                "kube-system",
                "system-leader-election",
            ),
            (
                "system:kube-scheduler",
                &plain,
                "watch",
                "coordination.k8s.io",
                "leases",
                "kube-system",
                "kube-scheduler",
            ),
            ("system:kube-controller-manager", &plain, "create", "", "pods", "a", "kube-controller-manager"),
            (system, &account, "create", "", "pods", "a", "kube-system-service-accounts"),
            (system, &account, "create", "coordination.k8s.io", "leases", "b", "system-leader-election"),
            ("system:serviceaccount:kube-system2:x", &account, "create", "", "pods", "a", "service-accounts"),
            ("jane", &plain, "get", "", "pods", "a", "global-default"),
            ("system:anonymous", &none, "get", "", "pods", "", "global-default"),
        ] {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let request = Request {
                user,
                groups,
                verb,
                is_resource: true,
                group,
                resource,
                subresource,
                namespace,
                path: "",
            };
            assert_eq!(schema_of(&config, &request), expected, "{request:?}");
        }
        for (user, groups, path, expected) in [
            ("system:anonymous", &none, "/healthz", "probes"),
            ("system:anonymous", &none, "/readyz/etcd", "probes"),
            ("system:anonymous", &none, "/readyzz", "global-default"),
            ("jane", &plain, "/version", "global-default"),
            ("admin", &masters, "/version", "exempt"),
        ] {
            let request = Request {
                user,
                groups,
                verb: "get",
                is_resource: false,
                group: "",
                resource: "",
                subresource: "",
                namespace: "",
                path,
            };
            assert_eq!(schema_of(&config, &request), expected, "{request:?}");
        }
    }

    #[test]
    fn a_small_object_makes_no_millions_of_queues() {
        let queuing = json!({"queues": 10_000_000, "handSize": 2, "queueLengthLimit": 50});
        assert_eq!(Queuing::read(&queuing), Some(Queuing { queues: MAX_QUEUES, hand: 2, length: 50 }));
    }

    #[test]
    fn what_must_be_there_is_there_and_what_is_broken_is_not() {
        let broken = json!({"metadata": {"name": "odd"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 1,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 512, "handSize": 10, "queueLengthLimit": 1}},
        }}});
        let of = |name: &str, level: &str| json!({"metadata": {"name": name}, "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 7}});
        let config = Config::read([&broken], [&of("b", "odd"), &of("c", "catch-all"), &of("a", "exempt")]);
        assert_eq!(config.levels.keys().collect::<Vec<_>>(), ["catch-all", "exempt"]);
        let names: Vec<_> = config.schemas.iter().map(|schema| schema.name.as_str()).collect();
        assert_eq!(names, ["exempt", "a", "c", "catch-all"]);
        let dangling: Vec<_> = config.dangling.iter().map(|d| (d.schema.as_str(), d.is_dangling)).collect();
        assert_eq!(dangling, [("b", true), ("c", false), ("a", false)]);
    }
}
