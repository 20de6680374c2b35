//! The `skiff` program: the command line, and the wiring of the components.
//!
//! - [`cli`]: what a person types. [`role`]: what Skiff starts itself as (shim, wasm host, forwarder, …).
//! - [`server`]: everything a node needs in one process. [`pki`]: the cluster's keys. [`layout`]: where files lie.
//! - [`cluster`]: throw-away clusters in network namespaces, and [`forward`], which publishes them on loopback.
//!
//! Only this crate knows all the others.

use std::process::ExitCode;

mod bridges;
mod check;
mod cli;
mod cluster;
mod forward;
mod image;
mod layout;
mod pki;
mod process;
mod progress;
mod role;
mod server;
mod services;

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
