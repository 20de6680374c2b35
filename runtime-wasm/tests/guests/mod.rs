//! Guests: small ones from text, and the samples.

use std::path::Path;
use std::process::Command;

fn wasi(imports: &str, memory: &str, start: &str) -> Vec<u8> {
    let text =
        format!(r#"(module {imports} (memory (export "memory") {memory}) (func (export "_start") {start}))"#);
    wat::parse_str(text).unwrap()
}

const EXIT: &str = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;

pub fn exit(code: u8) -> Vec<u8> {
    wasi(EXIT, "1", &format!("(call $exit (i32.const {code}))"))
}

pub fn endless_loop() -> Vec<u8> {
    wasi("", "1", "(loop $again (br $again))")
}

pub fn grow_forever() -> Vec<u8> {
    wasi("", "1", "(loop $again (drop (memory.grow (i32.const 16))) (br $again))")
}

pub fn unreachable() -> Vec<u8> {
    wasi("", "1", "unreachable")
}

pub fn unknown_import() -> Vec<u8> {
    wasi(r#"(import "env" "launch_missiles" (func))"#, "1", "")
}

/// Makes the file `made` in directory 3, the first preopened one, and exits with the errno of that.
pub fn make_file() -> Vec<u8> {
    let text = format!(
        r#"(module {EXIT}
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "made")
        (func (export "_start")
            (call $exit (call $open
                (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4)
                (i32.const 1) ;; create
                (i64.const 64) (i64.const 0) ;; the right to write
                (i32.const 0) (i32.const 32)))))"#
    );
    wat::parse_str(text).unwrap()
}

/// Opens directory 3 again and again, keeps all, and exits with the errno that ends it; with `holds`, it never ends.
pub fn open_forever(holds: bool) -> Vec<u8> {
    let end = if holds { "(loop $hold (br $hold))" } else { "(call $exit (local.get $errno))" };
    let text = format!(
        r#"(module {EXIT}
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) ".")
        (data (i32.const 24) "full\n")
        (data (i32.const 40) "\18\00\00\00\05\00\00\00")
        (func (export "_start") (local $errno i32)
            (loop $again
                (local.set $errno (call $open
                    (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 1)
                    (i32.const 2) ;; a directory
                    (i64.const 0) (i64.const 0)
                    (i32.const 0) (i32.const 32)))
                (br_if $again (i32.eqz (local.get $errno))))
            (drop (call $write (i32.const 1) (i32.const 40) (i32.const 1) (i32.const 32)))
            {end}))"#
    );
    wat::parse_str(text).unwrap()
}

/// The component of `open.rs`, beside this file.
pub fn open_component() -> Vec<u8> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("open.wasm");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--target", "wasm32-wasip2", "--edition", "2024", "-O", "tests/guests/open.rs", "-o"])
        .arg(&built)
        .status();
    assert!(status.unwrap().success(), "build tests/guests/open.rs");
    std::fs::read(built).unwrap()
}

/// Builds a sample as its README says and reads it.
pub fn sample(name: &str, target: &str, file: &str) -> Vec<u8> {
    let samples = Path::new("../samples/wasm").join(name);
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wasm-samples");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked", "--target", target])
        .current_dir(samples)
        .env("CARGO_TARGET_DIR", &built)
        .env_remove("RUSTFLAGS")
        .status();
    assert!(status.unwrap().success(), "build the sample {name}");
    std::fs::read(built.join(target).join("release").join(file)).unwrap()
}
