//! The API server: the one component that touches the store, and the API that all others are clients of.
//!
//! ```text
//! TLS ─ authenticate ─ limits ─ authorize ─┬─ registry (verbs) ─ admission ─ store
//!                                          ├─ subresources ─ proxy to the node
//!                                          ├─ other API servers that stand behind this one
//!                                          └─ discovery, OpenAPI, health, metrics
//!                      store ─ watch ─ cache ─ readers and watchers
//! ```
//!
//! Entry points: [`ApiServer::start`] with a [`Config`], then [`ApiServer::serve`] for the network and
//! [`ApiServer::service_for`] in process. Long-lived tasks: the store's writer thread and its maintenance,
//! the cache's dispatcher, one task a connection.

pub mod store;

mod clock;
mod digest;
mod failure;
mod place;
mod retry;

mod cache;
mod convert;

mod negotiate;
mod request;
mod respond;

mod auth;
mod heavy;
mod lapsed;
mod limits;

mod aggregation;
mod answer;
mod call;
mod lister;
mod live;
mod objects;

mod admission;
mod registry;
mod resources;
mod services;
mod subresource;

mod review;

mod proxy;
mod usage;

mod discovery;
mod health;
mod metrics;
mod openid;

mod assembly;
mod bootstrap;
mod config;
mod pipeline;
mod server;
mod servers;
mod threads;
mod tls;
mod websocket;

pub use admission::plugins::{AdmissionPlugin, UnknownPlugin};
pub use auth::UserInfo;
pub use auth::configuration::{
    AuthorizationError, AuthorizationFlags, AuthorizationModes, AuthorizationOptions,
};
pub use auth::rbac::PolicyError;
pub use auth::token::TokenKeyError;
pub use config::{Config, EVENT_TTL, Error, ServiceAccountConfig};
pub use proxy::kubelet::KubeletConfig;
pub use request::duration;
pub use server::{ApiServer, ApiService};
pub use services::cidr::{ServiceCidr, ServiceCidrError};
pub use skiff_api::{Kind, Kinds};
pub use tls::{FrontProxyConfig, TlsConfig, TlsError};
