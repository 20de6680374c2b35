//! The `skiff` program: a Kubernetes-compatible cluster in one binary. `lib.rs` has the map.

use std::process::ExitCode;

/// Counts what Wasm guests make their host hold.
#[global_allocator]
static ALLOCATOR: skiff_runtime_wasm::CountingAllocator = skiff_runtime_wasm::CountingAllocator;

fn main() -> ExitCode {
    skiff::main()
}
