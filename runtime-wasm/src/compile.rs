//! `skiff wasm-compile --input FILE --output FILE`: from Wasm to native code, in a process that may take
//! only so much memory and CPU time, on as many threads as there are processors. The module comes from a stranger, and so does
//! what it makes the compiler do. On standard output it says how many milliseconds of CPU time that took.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, setrlimit};
use skiff_cri::keep::{self, Keep};

use crate::{aot, engine};

/// The module is at fault, not the machine.
pub(crate) const EXIT_INVALID: u8 = 2;
/// Address space of the whole process.
pub(crate) const MAX_MEMORY_BYTES: u64 = 4 << 30;
/// Of all its threads together.
pub(crate) const MAX_CPU_SECONDS: u64 = 600;
/// It is told at the limit, and ended if it goes on for so much longer.
const CPU_GRACE_SECONDS: u64 = 5;
/// Byte 4 to 7 of a component, where a core module has version 1.
const COMPONENT_LAYER: [u8; 4] = [0x0d, 0, 1, 0];

#[derive(Debug, thiserror::Error)]
enum CompileError {
    #[error("usage: wasm-compile --input FILE --output FILE")]
    Usage,
    #[error("limit this process: {0}")]
    Limit(rustix::io::Errno),
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("make a compiler: {0}")]
    Engine(String),
    #[error("{0}")]
    Invalid(String),
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
}

/// Runs with the arguments after the subcommand's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => {
            let took = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            println!("{}", took.tv_sec * 1000 + took.tv_nsec / 1_000_000);
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("{err}");
            match err {
                CompileError::Invalid(_) => ExitCode::from(EXIT_INVALID),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(mut args: impl Iterator<Item = OsString>) -> Result<(), CompileError> {
    let (mut input, mut output) = (None, None);
    while let Some(flag) = args.next() {
        let value = args.next().map(PathBuf::from);
        match flag.to_str() {
            Some("--input") => input = value,
            Some("--output") => output = value,
            _ => return Err(CompileError::Usage),
        }
    }
    let (Some(input), Some(output)) = (input, output) else { return Err(CompileError::Usage) };
    limit().map_err(CompileError::Limit)?;

    let wasm = fs::read(&input).map_err(|source| CompileError::Read { path: input.clone(), source })?;
    let engine = engine::compiler().map_err(|err| CompileError::Engine(format!("{err:#}")))?;
    let code = if wasm.get(4..8) == Some(&COMPONENT_LAYER) {
        engine.precompile_component(&wasm)
    } else {
        engine.precompile_module(&wasm)
    };
    let code = code.map_err(|err| CompileError::Invalid(one_line(&err)))?;
    let write = |path: PathBuf, bytes: &[u8]| {
        let written = keep::write(&path, bytes, Keep::Durable);
        written.map_err(|source| CompileError::Write { path, source })
    };
    // The code is good only with its checksum, which is therefore last.
    write(output.clone(), &code)?;
    write(aot::checksum(&output), aot::digest_of(&code).as_bytes())
}

fn limit() -> Result<(), rustix::io::Errno> {
    let caps = [
        (Resource::As, MAX_MEMORY_BYTES, 0),
        (Resource::Cpu, MAX_CPU_SECONDS, CPU_GRACE_SECONDS),
        (Resource::Core, 0, 0),
    ];
    for (resource, most, grace) in caps {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most + grace) })?;
    }
    rustix::thread::set_no_new_privs(true)
}

/// An error and its causes on one line, as events want it.
pub(crate) fn one_line(err: &wasmtime::Error) -> String {
    format!("{err:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}
