//! What the cluster's own components may do, as a table. RBAC will replace it; until then whoever is not in
//! it, and no administrator, is denied.
//!
//! Source: upstream's bootstrap policy for the same components.

use super::ANONYMOUS;
use super::authorize::Attributes;

pub(super) struct Rule {
    /// `*` is any.
    pub(super) groups: &'static [&'static str],
    /// `pods`, `pods/log`, `*/scale`, `*`. A `*` covers subresources too.
    pub(super) resources: &'static [&'static str],
    pub(super) verbs: &'static [&'static str],
    /// Only in this namespace, if set.
    pub(super) namespace: Option<&'static str>,
    /// Only the object of this name, if set.
    pub(super) name: Option<&'static str>,
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch", "delete"];
const EDIT: &[&str] = &["get", "list", "watch", "update", "patch"];

const fn rule(
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule { groups, resources, verbs, namespace: None, name: None }
}

/// The one object of its kind, namespace and name.
const fn only(resources: &'static [&'static str], namespace: &'static str, name: &'static str) -> Rule {
    Rule { groups: &[""], resources, verbs: &["get"], namespace: Some(namespace), name: Some(name) }
}

const EVENTS: Rule = rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]);
const LEASES: Rule =
    rule(&["coordination.k8s.io"], &["leases"], &["get", "list", "watch", "create", "update", "patch"]);
const REVIEWS: Rule = rule(
    &["authentication.k8s.io", "authorization.k8s.io"],
    &["tokenreviews", "subjectaccessreviews"],
    &["create"],
);

/// The controllers. Garbage collection, namespaces and quotas reach every kind: they read and delete all of
/// them, but create only what is listed.
const CONTROLLERS: &[Rule] = &[
    rule(&["*"], &["*"], &["get", "list", "watch", "delete", "deletecollection", "update", "patch"]),
    rule(
        &[""],
        &[
            "pods",
            "pods/eviction",
            "endpoints",
            "services",
            "serviceaccounts",
            "serviceaccounts/token",
            "configmaps",
            "secrets",
            "persistentvolumes",
            "persistentvolumeclaims",
            "namespaces",
            "replicationcontrollers",
        ],
        &["create"],
    ),
    rule(&["apps"], &["replicasets", "controllerrevisions", "deployments", "statefulsets"], &["create"]),
    rule(&["batch"], &["jobs"], &["create"]),
    rule(&["discovery.k8s.io"], &["endpointslices"], &["create"]),
    rule(&["resource.k8s.io"], &["resourceclaims"], &["create"]),
    rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create"]),
    rule(&["certificates.k8s.io"], &["signers"], &["approve", "sign"]),
    EVENTS,
    LEASES,
    REVIEWS,
];

const SCHEDULER: &[Rule] = &[
    rule(
        &[""],
        &[
            "nodes",
            "namespaces",
            "services",
            "replicationcontrollers",
            "persistentvolumes",
            "persistentvolumeclaims",
        ],
        READ,
    ),
    rule(&[""], &["pods"], &["get", "list", "watch", "delete"]),
    rule(&[""], &["bindings", "pods/binding"], &["create"]),
    rule(&[""], &["pods/status"], &["patch", "update"]),
    rule(&[""], &["persistentvolumes", "persistentvolumeclaims"], &["update", "patch"]),
    rule(&["apps"], &["replicasets", "statefulsets", "deployments"], READ),
    rule(&["policy"], &["poddisruptionbudgets"], READ),
    rule(
        &["storage.k8s.io"],
        &["csinodes", "csidrivers", "csistoragecapacities", "storageclasses", "volumeattachments"],
        READ,
    ),
    rule(
        &["resource.k8s.io"],
        &["deviceclasses", "resourceslices", "resourceclaims", "resourceclaims/status"],
        EDIT,
    ),
    rule(&["scheduling.k8s.io"], &["priorityclasses"], READ),
    EVENTS,
    LEASES,
    REVIEWS,
];

const PROXY: &[Rule] = &[
    rule(&[""], &["services", "endpoints", "nodes", "pods", "namespaces"], READ),
    rule(&["discovery.k8s.io"], &["endpointslices"], READ),
    rule(&["networking.k8s.io"], &["servicecidrs", "networkpolicies", "ingresses", "ingressclasses"], READ),
    EVENTS,
];

const DNS: &[Rule] = &[
    rule(&[""], &["services", "endpoints", "pods", "namespaces", "nodes"], READ),
    rule(&["discovery.k8s.io"], &["endpointslices"], READ),
];

/// The server's own identity towards itself; bootstrap and aggregation.
const SERVER: &[Rule] = &[
    rule(&["*"], &["*"], READ),
    rule(&[""], &["namespaces", "services", "endpoints", "configmaps", "nodes/proxy"], WRITE),
    rule(&["discovery.k8s.io"], &["endpointslices"], WRITE),
    EVENTS,
    LEASES,
];

/// What nodes may do without being looked at further; see `auth::node` for the rest.
pub(super) const NODE: &[Rule] = &[
    REVIEWS,
    rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    rule(&[""], &["services"], READ),
    rule(&[""], &["endpoints"], &["get"]),
    EVENTS,
    rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
    rule(&["certificates.k8s.io"], &["certificatesigningrequests/selfnodeclient"], &["create"]),
    rule(&["certificates.k8s.io"], &["clustertrustbundles"], READ),
    rule(&["storage.k8s.io"], &["csidrivers"], READ),
    rule(&["node.k8s.io"], &["runtimeclasses"], READ),
    KUBELET_CONFIG,
];

/// What a node's own service proxy, routes and DNS need: upstream's `system:node-proxier`, which there is a
/// user of its own, and CoreDNS's role. Here an agent's run with the node's certificate; the server's see by the controllers' informers. None of it
/// is secret.
pub(super) const NODE_SERVICES: &[Rule] = &[
    rule(&[""], &["nodes"], READ),
    rule(&[""], &["services", "endpoints", "namespaces"], &["list", "watch"]),
    rule(&["discovery.k8s.io"], &["endpointslices"], READ),
    rule(&["networking.k8s.io"], &["servicecidrs", "networkpolicies"], READ),
];

/// Whoever holds a bootstrap token may ask for a node's certificate, and wait for it: upstream's
/// `system:node-bootstrapper`, and the rules that kubeadm adds to it.
pub(super) const BOOTSTRAPPER: &[Rule] = &[
    rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
    rule(&["certificates.k8s.io"], &["certificatesigningrequests/nodeclient"], &["create"]),
    KUBELET_CONFIG,
];

/// What nodes are told about the cluster, if anything: kubeadm's `kubelet-config`.
const KUBELET_CONFIG: Rule = only(&["configmaps"], "kube-system", "kubelet-config");

/// How to reach and trust the cluster: a node that joins knows no more than a token, and checks the signature.
const CLUSTER_INFO: &[Rule] = &[only(&["configmaps"], "kube-public", "cluster-info")];

/// Whether a user is one of the cluster's own components.
pub(crate) fn is_component(user: &str) -> bool {
    of_component(user).is_some()
}

pub(super) fn of_component(user: &str) -> Option<&'static [Rule]> {
    match user {
        "system:kube-controller-manager" => Some(CONTROLLERS),
        "system:kube-scheduler" => Some(SCHEDULER),
        "system:kube-proxy" => Some(PROXY),
        "system:dns" => Some(DNS),
        "system:apiserver" => Some(SERVER),
        ANONYMOUS => Some(CLUSTER_INFO),
        _ => None,
    }
}

/// What everybody who is authenticated may do: ask about themselves.
pub(super) const BASIC: &[Rule] = &[
    rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
    rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
];

/// For service accounts: what checks the tokens of others without the API.
pub(super) const ISSUER_PATHS: &[&str] = &[crate::openid::CONFIGURATION_PATH, crate::openid::KEYS_PATH];

/// Paths that are no resources, a `*` at the end standing for any rest.
pub(super) const DISCOVERY_PATHS: &[&str] = &[
    "/",
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/openapi",
    "/openapi/*",
    "/version",
    "/version/",
    "/healthz",
    "/livez",
    "/readyz",
];

/// Paths that need no authentication.
pub(super) const PUBLIC_PATHS: &[&str] =
    &["/version", "/version/", "/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz", "/readyz/*"];

impl Rule {
    pub(super) fn covers(&self, asked: &Attributes<'_>) -> bool {
        let any = |list: &[&str], wanted: &str| list.iter().any(|one| *one == "*" || *one == wanted);
        self.namespace.is_none_or(|only| only == asked.namespace)
            && self.name.is_none_or(|only| only == asked.name)
            && any(self.groups, asked.group)
            && any(self.verbs, asked.verb)
            && self.resources.iter().any(|pattern| match pattern.split_once('/') {
                None if *pattern == "*" => true,
                None => asked.subresource.is_empty() && *pattern == asked.resource,
                Some((of, sub)) => (of == "*" || of == asked.resource) && sub == asked.subresource,
            })
    }
}
