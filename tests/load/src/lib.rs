//! Bounded, repeatable load on any Kubernetes API server that a kubeconfig names: the same requests for whoever is measured.
//!
//! ```text
//!  measure::*  one measurement each: what is asked, and when its clock runs
//!  client      HTTP/2 connections, as many as a measurement wants; JSON
//!  credentials of nodes and service accounts, for who is not the administrator
//!  meter       CPU and memory of the servers, by the cgroups they run in
//! ```
//!
//! A measurement answers a flat set of numbers whose names end in their unit (`create_p50_ms`, `cpu_s`). A request that fails
//! fails the measurement: a server that refuses work is not a fast one.

pub mod client;
pub mod credentials;
pub mod figures;
pub mod kubeconfig;
pub mod measure;
pub mod meter;
pub mod objects;
pub mod pods;
pub mod webhook;
