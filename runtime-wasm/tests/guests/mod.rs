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

/// Grows by a MiB until it is refused, and exits with how many it has; with `traps`, it takes that badly.
pub fn grow_until_refused(traps: bool) -> Vec<u8> {
    let end = if traps { "unreachable" } else { "(call $exit (i32.div_u (memory.size) (i32.const 16)))" };
    let start =
        format!("(loop $again (br_if $again (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) {end}");
    wasi(EXIT, "1", &start)
}

/// As [`grow_until_refused`], but between any two growths it asks for a table of more elements than there are numbers.
pub fn grow_past_a_table_that_cannot() -> Vec<u8> {
    let text = format!(
        r#"(module {EXIT} (table $t i64 1 funcref) (memory (export "memory") 1)
        (func (export "_start")
            (loop $again
                (drop (table.grow $t (ref.null func) (i64.const -1)))
                (br_if $again (i32.ne (i32.const -1) (memory.grow (i32.const 16)))))
            (call $exit (i32.div_u (memory.size) (i32.const 16)))))"#
    );
    wat::parse_str(text).unwrap()
}

/// Declares 64 MiB, touches so many bytes of them and exits with 0; or with `spins`, it never ends.
pub fn touch(n_bytes: u32, spins: bool) -> Vec<u8> {
    let end = if spins { "(loop $again (br $again))" } else { "" };
    wasi("", "1024", &format!("(memory.fill (i32.const 0) (i32.const 1) (i32.const {n_bytes})) {end}"))
}

/// A function that calls one that traps; both have names.
pub fn trap_with_names() -> Vec<u8> {
    let text = r#"(module $guest (memory (export "memory") 1)
        (func $inner unreachable)
        (func $outer (export "_start") (call $inner)))"#;
    wat::parse_str(text).unwrap()
}

/// With more elements in a table than hosts have in their pools, and several memories.
pub fn large_table_and_several_memories() -> Vec<u8> {
    let text = format!(
        r#"(module {EXIT} (table 40000 funcref) (memory (export "memory") 1) (memory $b 1) (memory $c 2)
        (func (export "_start")
            (i32.store $c (i32.const 70000) (i32.const 7))
            (i32.store $b (i32.const 8) (i32.load $c (i32.const 70000)))
            (call $exit (i32.load $b (i32.const 8)))))"#
    );
    wat::parse_str(text).unwrap()
}

/// A module of so many bytes, nearly all of which are data; it exits with the last of them.
pub fn heavy(n_bytes: usize) -> Vec<u8> {
    const AT: usize = 65536;
    let last = AT + n_bytes - 1;
    let mut module = wasi(
        EXIT,
        &(n_bytes / 65536 + 2).to_string(),
        &format!("(call $exit (i32.load8_u (i32.const {last})))"),
    );
    let number = |mut n: usize| {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    // One segment, active at `i32.const AT`.
    let mut section = vec![1, 0, 0x41, 0x80, 0x80, 0x04, 0x0b];
    section.extend(number(n_bytes));
    section.extend((0..n_bytes).map(|n| (n % 251) as u8 + 1));
    module.push(11);
    module.extend(number(section.len()));
    module.extend(section);
    module
}

/// A command of more core instances than hosts pool for one component.
pub fn many_instances() -> Vec<u8> {
    let instances = "(core instance (instantiate $more))".repeat(30);
    let text = format!(
        r#"(component
        (core module $more (memory 1) (table 4 funcref) (func (export "f")))
        {instances}
        (core module $main (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $main))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $it (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $it)))"#
    );
    wat::parse_str(text).unwrap()
}

/// Has an object on the garbage-collected heap, throws and catches, says so and sleeps for an hour.
pub fn collected() -> Vec<u8> {
    let text = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (type $box (struct (field i32)))
        (tag $thrown (param i32))
        (memory (export "memory") 1)
        (data (i32.const 24) "caught\n")
        (data (i32.const 40) "\18\00\00\00\07\00\00\00")
        ;; A subscription to the monotonic clock.
        (data (i32.const 112) "\01\00\00\00")
        (data (i32.const 120) "\00\a0\b8\30\46\03\00\00")
        (func (export "_start") (local $kept (ref null $box))
            (local.set $kept (struct.new $box (i32.const 7)))
            (block $caught (result i32)
                (try_table (catch $thrown $caught) (throw $thrown (struct.get $box 0 (local.get $kept))))
                unreachable)
            (if (i32.ne (i32.const 7)) (then unreachable))
            (drop (call $write (i32.const 1) (i32.const 40) (i32.const 1) (i32.const 32)))
            (drop (call $poll (i32.const 96) (i32.const 200) (i32.const 1) (i32.const 32)))))"#;
    wat::parse_str(text).unwrap()
}

/// Opens `/data/file` (in directory 3) for reading and exits with the errno of that.
pub fn open_file() -> Vec<u8> {
    let text = format!(
        r#"(module {EXIT}
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "file")
        (func (export "_start")
            (call $exit (call $open
                (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4)
                (i32.const 0)
                (i64.const 2) (i64.const 0) ;; the right to read
                (i32.const 0) (i32.const 32)))))"#
    );
    wat::parse_str(text).unwrap()
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

/// The server of `serving`, beside this file.
pub fn serving() -> Vec<u8> {
    built(Path::new("tests/guests/serving"), "wasm32-wasip2", "serving.wasm")
}

/// The same server, of WASI 0.3.
pub fn serving3() -> Vec<u8> {
    built(Path::new("tests/guests/serving3"), "wasm32-wasip2", "serving3.wasm")
}

/// The command of `command3`, beside this file.
pub fn command3() -> Vec<u8> {
    built(Path::new("tests/guests/command3"), "wasm32-wasip2", "command3.wasm")
}

/// Builds a sample as its README says and reads it.
pub fn sample(name: &str, target: &str, file: &str) -> Vec<u8> {
    built(&Path::new("../samples/wasm").join(name), target, file)
}

fn built(source: &Path, target: &str, file: &str) -> Vec<u8> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wasm-samples");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked", "--target", target])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", &built)
        .env_remove("RUSTFLAGS")
        .status();
    assert!(status.unwrap().success(), "build {}", source.display());
    std::fs::read(built.join(target).join("release").join(file)).unwrap()
}
