//! The `skiff` program: a Kubernetes-compatible cluster in one binary. `lib.rs` has the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    skiff::main()
}
