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

mod cache;

mod negotiate;
mod request;
mod respond;

mod auth;
mod heavy;
mod lapsed;
mod limits;

mod api;
mod handle;

mod aggregation;
mod live;

mod admission;
mod certificates;
mod registry;
mod services;
mod subresource;

mod review;

mod proxy;

mod discovery;
mod health;
mod metrics;
mod openid;

mod bootstrap;
mod server;
mod servers;
mod threads;
mod tls;
mod websocket;

pub use admission::{AdmissionPlugin, UnknownPlugin};
pub use auth::UserInfo;
pub use auth::rbac::PolicyError;
pub use auth::token::TokenKeyError;
pub use proxy::KubeletConfig;
pub use request::duration;
pub use server::{ApiServer, ApiService, Config, EVENT_TTL, Error, ServiceAccountConfig};
pub use services::{ServiceCidr, ServiceCidrError};
pub use tls::{FrontProxyConfig, TlsConfig, TlsError};
