//! The API as a client sees it: a real server over a real store, called in process.

#[path = "api/fixture.rs"]
mod fixture;

#[path = "api/objects.rs"]
mod objects;

#[path = "api/apply.rs"]
mod apply;

#[path = "api/custom.rs"]
mod custom;

#[path = "api/webhooks.rs"]
mod webhooks;

#[path = "api/aggregation.rs"]
mod aggregation;

#[path = "api/policies.rs"]
mod policies;

#[path = "api/lists.rs"]
mod lists;

#[path = "api/metrics.rs"]
mod metrics;

#[path = "api/access.rs"]
mod access;

#[path = "api/rbac.rs"]
mod rbac;

#[path = "api/authorizers.rs"]
mod authorizers;

#[path = "api/pod_parts.rs"]
mod pod_parts;

#[path = "api/pod_security.rs"]
mod pod_security;

#[path = "api/discovery.rs"]
mod discovery;

#[path = "api/pods.rs"]
mod pods;

#[path = "api/node.rs"]
mod node;

#[path = "api/network.rs"]
mod network;

#[path = "api/renewed.rs"]
mod renewed;

#[path = "api/proxy.rs"]
mod proxy;

#[path = "api/addresses.rs"]
mod addresses;

#[path = "api/limits.rs"]
mod limits;

#[path = "api/versions.rs"]
mod versions;

#[path = "api/protobuf.rs"]
mod protobuf;

#[path = "api/joining.rs"]
mod joining;

#[path = "api/certificates.rs"]
mod certificates;

#[path = "api/pod_certificates.rs"]
mod pod_certificates;

#[path = "api/websocket.rs"]
mod websocket;

#[path = "api/naming.rs"]
mod naming;

#[path = "api/dropped.rs"]
mod dropped;

#[path = "api/damage.rs"]
mod damage;

#[path = "api/usage.rs"]
mod usage;

#[path = "api/flow.rs"]
mod flow;

#[path = "api/shared.rs"]
mod shared;
