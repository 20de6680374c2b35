//! What Skiff starts itself as. Hidden from the command line's help: an interface between versions of one file.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use crate::turns;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// The supervisor of one Linux container.
    Shim,
    /// The host process of many Wasm containers.
    WasmHost,
    /// Compiles one Wasm module to native code, in a process of its own.
    WasmCompile,
}

impl Role {
    pub(crate) fn named(name: &OsStr) -> Option<Role> {
        match name.to_str()? {
            "shim" => Some(Role::Shim),
            "wasm-host" => Some(Role::WasmHost),
            "wasm-compile" => Some(Role::WasmCompile),
            _ => None,
        }
    }

    pub(crate) fn run(self, args: impl Iterator<Item = OsString>) -> ExitCode {
        // A Wasm host answers requests itself; the others make, or are, what works for long.
        if !matches!(self, Role::WasmHost) {
            turns::be_usual();
        }
        match self {
            Role::Shim => skiff_runtime_oci::shim::main(args),
            Role::WasmHost => skiff_runtime_wasm::host::main(args),
            Role::WasmCompile => skiff_runtime_wasm::compile::main(args),
        }
    }

    /// The command that starts this program in the role.
    pub(crate) fn command(self) -> std::io::Result<Vec<OsString>> {
        let name = match self {
            Role::Shim => "shim",
            Role::WasmHost => "wasm-host",
            Role::WasmCompile => "wasm-compile",
        };
        Ok(vec![std::env::current_exe()?.into_os_string(), name.into()])
    }
}
