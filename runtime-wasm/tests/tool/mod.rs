//! `skiff wasm`: files without a node.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Instant;

use skiff_runtime_wasm::tool::{Directory, Run, Workshop};

use crate::{LONG, guests};

fn workshop(directory: &Path) -> Workshop {
    let this = std::env::current_exe().unwrap();
    Workshop::open(directory, vec![this.into_os_string(), "wasm-compile".into()]).unwrap()
}

/// `tool-run WORKSHOP FILE PORT DIRECTORY ARGS…`
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args.map(|arg| arg.into_string().unwrap()).collect();
    let run = Run {
        module: args[1].clone().into(),
        args: [&["program".to_owned()], &args[4..]].concat(),
        envs: vec![("GREETING".to_owned(), "hi".to_owned())],
        directories: vec![Directory {
            on_node: args[3].clone().into(),
            in_guest: "/data".to_owned(),
            is_read_only: false,
        }],
        port: args[2].parse().unwrap(),
        memory_bytes: None,
    };
    match workshop(Path::new(&args[0])).run(run) {
        Ok(exit_code) => ExitCode::from(exit_code as u8),
        Err(err) => {
            eprintln!("{err}");
            ExitCode::from(100)
        }
    }
}

fn command(directory: &Path, wasm: &[u8], port: u16, args: &[&str]) -> Command {
    let file = directory.join("app.wasm");
    std::fs::write(&file, wasm).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg("tool-run")
        .arg(directory.join("shop"))
        .arg(file)
        .arg(port.to_string())
        .arg(directory)
        .args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub async fn a_file_runs_as_a_pod_would_run_it() {
    let directory = tempfile::tempdir().unwrap();
    let run = |wasm: &[u8], args: &[&str]| command(directory.path(), wasm, 1, args).output().unwrap();
    let Output { status, stdout, stderr } = run(&guests::exit(3), &[]);
    assert_eq!((status.code(), text(&stdout), text(&stderr)), (Some(3), String::new(), String::new()));
    let Output { status, stdout, stderr } = run(&guests::command3(), &["everything", "one"]);
    assert_eq!(status.code(), Some(0), "{}", text(&stderr));
    assert!(text(&stdout).starts_with("hi one\nfile "), "{}", text(&stdout));
    assert_eq!(text(&stderr), "to stderr\n");
    let Output { status, stderr, .. } = run(&guests::trap_with_names(), &[]);
    assert_eq!(status.code(), Some(1));
    assert!(text(&stderr).contains("at guest!inner"), "{}", text(&stderr));
    let Output { status, stderr, .. } = run(&guests::unknown_import(), &[]);
    assert_eq!(status.code(), Some(100));
    assert_eq!(text(&stderr), "the module imports \"env\" \"launch_missiles\", which is not offered\n");

    for component in [guests::serving(), guests::serving3()] {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut server: Child =
            command(directory.path(), &component, port, &[]).stdout(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => assert!(began.elapsed() < LONG && server.try_wait().unwrap().is_none()),
            }
        };
        let upload = "POST /upload HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 4\r\n\r\npart";
        stream.write_all(upload.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("whole 4"), "{answer}");
        // Its output is there at once, and not when it ends.
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "upload whole 4\n");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(server.wait().unwrap().code(), Some(0));
    }
}

pub async fn an_inspection_says_what_a_start_would_say() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.wasm");
    let inspect = async |wasm: &[u8]| {
        std::fs::write(&file, wasm).unwrap();
        workshop(&directory.path().join("shop")).inspect(&file).await.unwrap()
    };
    let found = inspect(&guests::unknown_import()).await;
    assert_eq!(found.kind, "core module (WASI 0.1), a command");
    assert_eq!(
        found.refusal.as_deref(),
        Some("the module imports \"env\" \"launch_missiles\", which is not offered")
    );
    assert!(found.imports.len() == 1 && !found.imports[0].is_offered, "{found:?}");
    assert_eq!(found.code_bytes, None);
    assert!(inspect(&guests::unknown_import()).await.code_bytes.is_some());

    for (component, kind) in [
        (guests::serving(), "component of wasi:http/proxy (WASI 0.2), a server"),
        (guests::serving3(), "component of wasi:http/service (WASI 0.3), a server"),
        (guests::command3(), "component of wasi:cli/command (WASI 0.3), a command"),
    ] {
        let found = inspect(&component).await;
        assert_eq!((found.kind.as_str(), found.refusal.as_deref()), (kind, None));
        assert!(
            !found.imports.is_empty() && found.imports.iter().all(|import| import.is_offered),
            "{found:?}"
        );
    }
    let unknown = wat::parse_str(
        r#"(component
        (import "wasi:keyvalue/store@0.2.0" (instance (export "f" (func))))
        (core module $main (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $main))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $it (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $it)))"#,
    );
    let found = inspect(&unknown.unwrap()).await;
    assert!(found.imports.len() == 1 && !found.imports[0].is_offered, "{found:?}");
    assert!(found.refusal.unwrap().contains("wasi:keyvalue/store"));
}
