//! The `skiff` program: the command line, and the wiring of the components.
//!
//! - [`cli`]: what a person types. [`role`]: what Skiff starts itself as (shim, Wasm host, Wasm compiler).
//! - [`server`]: the control plane and a node in one process. [`node`]: one node, wherever its server is. [`layout`]: where
//!   files lie.
//! - [`address`]: where the node is, which may change; [`complaint`]: how often what waits says so.
//! - [`agent`]: a node whose server is elsewhere; [`join`]: how it becomes a member; [`token`]: what lets it.
//! - [`pki`]: the cluster's keys. [`identity`]: a node's certificates, renewed while in use. [`upkeep`]: those that a server
//!   makes for itself. [`certs`]: all of them, for people.
//! - [`image`] and [`wasm`]: images, and Wasm files without a cluster.
//! - [`cluster`]: throw-away clusters in network namespaces, and [`forward`], which publishes them on loopback.
//!
//! Only this crate knows all the others.

use std::process::ExitCode;

mod address;
mod agent;
mod bridges;
mod certs;
mod check;
mod cli;
mod cluster;
mod complaint;
mod dns_address;
mod forward;
mod identity;
mod image;
mod join;
mod layout;
mod memory;
mod node;
mod open_files;
mod pki;
mod process;
mod progress;
mod role;
mod server;
mod services;
mod token;
mod turns;
mod upkeep;
mod wasm;

/// Runs the program.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next();
    // Small helpers must not pay for the command line, the logger or the async runtime.
    if let Some(role) = args.next().and_then(|name| role::Role::named(&name)) {
        return role.run(args);
    }
    let _ = program;
    cli::run()
}
