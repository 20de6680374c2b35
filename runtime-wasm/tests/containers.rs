//! Wasm containers end to end: a real host process, real network namespaces and control groups.
//!
//! This program is its own Wasm host and compiler, and therefore brings its own `main`: called with
//! `wasm-host` or `wasm-compile` it becomes that, otherwise it runs the tests whose names contain the first
//! argument. Needs root.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod guests;
mod limits;
mod node;
mod serving;
mod tool;
mod wasi3;

use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use node::{Netns, Node, Options};
use skiff_cri::{Code, ContainerRuntime, ExecProcess, RuntimeState};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(30);

/// As the `skiff` program has it.
#[global_allocator]
static ALLOCATOR: skiff_runtime_wasm::CountingAllocator = skiff_runtime_wasm::CountingAllocator;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|arg| arg.to_str()) {
        Some("wasm-host") => skiff_runtime_wasm::host::main(args),
        Some("wasm-compile") => skiff_runtime_wasm::compile::main(args),
        Some("tool-run") => tool::main(args),
        _ => run_tests(),
    }
}

macro_rules! tests {
    ($($name:path),* $(,)?) => { [$((stringify!($name), || run($name()))),*] };
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.unwrap() });
}

fn run_tests() -> ExitCode {
    let tests: [(&str, fn()); 47] = tests![
        a_commands_exit_code_output_arguments_and_environment_are_kept,
        the_group_of_a_container_goes_with_its_end,
        a_runaway_guest_is_stopped_within_its_grace,
        a_trap_is_an_error_that_names_the_trap,
        a_file_that_is_not_wasm_is_refused,
        native_code_is_refused,
        an_import_that_is_not_offered_is_named,
        containers_survive_the_runtime_and_are_found_again,
        a_host_weighs_what_its_containers_ask_for_as_they_come_and_go,
        a_container_of_an_earlier_boot_has_ended_and_nobody_knows_how,
        a_host_that_ends_for_want_of_work_leaves_nothing_behind,
        damaged_native_code_is_compiled_again,
        a_host_that_dies_takes_its_containers_with_it_and_says_so,
        a_guest_that_opens_without_end_is_told_so_and_its_neighbours_start_and_end,
        a_component_is_told_when_it_has_its_share_of_files_and_sockets,
        a_stopped_host_is_replaced_and_its_containers_have_ended,
        a_guest_sees_its_volumes_and_nothing_else,
        a_component_answers_in_its_pods_network_namespace,
        idle_servers_share_one_host_and_cost_little,
        containers_of_one_component_run_one_mapped_file,
        compiling_is_told_and_done_once,
        tool::a_file_runs_as_a_pod_would_run_it,
        tool::an_inspection_says_what_a_start_would_say,
        exec_is_refused_and_unknown_containers_are_not_found,
        serving::an_answer_that_is_cut_short_looks_so_and_the_log_says_why,
        serving::a_guest_that_asks_another_sees_that_its_answer_was_cut_short,
        serving::an_answer_over_http2_that_is_cut_short_is_reset,
        serving::a_request_takes_as_long_as_its_pod_lets_it,
        serving::a_request_says_whom_it_asks_as_its_version_wants_it,
        serving::a_body_that_is_malformed_is_no_whole_one_and_one_that_is_half_closed_is,
        serving::the_time_between_two_parts_of_an_answer_is_as_the_guest_wants_it,
        serving::clients_that_say_nothing_or_next_to_nothing_give_way,
        limits::a_guest_that_asks_for_more_memory_than_there_is_is_told_so,
        limits::a_server_that_declares_much_lives_through_any_load,
        limits::what_a_guest_makes_its_host_hold_counts_to_its_container,
        limits::bodies_that_nobody_takes_count_and_those_that_are_taken_do_not,
        limits::hanging_requests_of_some_do_not_take_what_others_need,
        limits::modules_as_they_exist_run_whatever_their_size,
        limits::as_many_guests_with_collected_heaps_run_as_there_are,
        limits::a_guest_is_the_user_that_its_pod_says,
        limits::a_program_of_a_linux_image_runs_if_it_is_wasm_also_another_than_the_images_own,
        limits::a_server_of_any_user_listens_on_any_port,
        wasi3::a_command_has_all_interfaces_of_its_world,
        wasi3::a_command_ends_as_it_says_and_not_before_its_tasks,
        wasi3::a_command_is_told_when_it_has_its_share_of_files,
        wasi3::bodies_and_trailers_go_through_a_handler_as_they_come,
        wasi3::a_handler_that_is_refused_memory_fails_alone,
    ];
    if std::env::args().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut failed = Vec::new();
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&filter)) {
        let began = Instant::now();
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:?})", if ok { "ok" } else { "FAILED" }, began.elapsed());
        if !ok {
            failed.push(name);
        }
    }
    println!("failed: {failed:?}");
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn a_commands_exit_code_output_arguments_and_environment_are_kept() {
    let node = Node::new().await;
    // A core module with WASI 0.1, and the same program as a component with WASI 0.2.
    for (id, target, exit_code) in [("module", "wasm32-wasip1", 3), ("component", "wasm32-wasip2", 1)] {
        let options =
            Options { args: &["one", "--exit", "3"], env: &[("GREETING", "hi")], ..Options::default() };
        let module = guests::sample("command", target, "wasm-command.wasm");
        node.create(id, &module, options).await.unwrap();
        assert_eq!(node.runtime.status(id).await.unwrap().state, RuntimeState::Created);
        node.runtime.start(id).await.unwrap();
        let ended = node.wait_exit(id).await;
        // WASI 0.2's `exit` says success or failure and no more.
        assert_eq!((ended.exit_code, ended.reason.as_str()), (exit_code, "Error"), "{id}");
        assert!(ended.created_at_ns <= ended.started_at_ns && ended.started_at_ns <= ended.finished_at_ns);
        assert_eq!(node.log(id), ["stdout F args: one --exit 3", "stdout F GREETING: hi"]);
    }

    node.run("zero", &guests::exit(0), Options::default()).await;
    let ended = node.wait_exit("zero").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    node.end().await;
}

async fn the_group_of_a_container_goes_with_its_end() {
    let node = Node::new().await;
    node.run("c", &guests::endless_loop(), Options::default()).await;
    assert!(node.has_group("c"));
    node.runtime.stop("c", Duration::ZERO).await.unwrap();
    assert!(!node.has_group("c"));
    assert_eq!(node.runtime.usage("c").await.unwrap().cpu_usage_ns, 0);
    node.end().await;
}

async fn a_runaway_guest_is_stopped_within_its_grace() {
    let node = Node::new().await;
    for (id, grace, exit_code) in [("term", LONG, 143), ("kill", Duration::ZERO, 137)] {
        node.run(id, &guests::endless_loop(), Options::default()).await;
        let usage = node.runtime.usage(id).await.unwrap();
        assert!(usage.memory_usage_bytes >= 64 << 10, "{usage:?}");
        let began = Instant::now();
        node.runtime.stop(id, grace).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let ended = node.runtime.status(id).await.unwrap();
        assert_eq!((ended.state, ended.exit_code), (RuntimeState::Exited, exit_code));
        node.runtime.stop(id, grace).await.unwrap();
        node.runtime.remove(id).await.unwrap();
        node.runtime.remove(id).await.unwrap();
        assert_eq!(node.runtime.status(id).await.unwrap_err().code, Code::NotFound);
    }
    node.end().await;
}

async fn a_host_weighs_what_its_containers_ask_for_as_they_come_and_go() {
    let node = Node::new().await;
    if skiff_cgroup::Cgroups::detect().unwrap().version() != skiff_cgroup::Version::V1 {
        return node.end().await;
    }
    let weighs = async |shares: &[&str]| {
        let deadline = Instant::now() + LONG;
        while node.host_shares() != shares {
            assert!(Instant::now() < deadline, "{:?} and not {shares:?}", node.host_shares());
            tokio::task::yield_now().await;
        }
    };
    // The group above all hosts, and the one host's.
    node.run("a", &guests::endless_loop(), Options::default()).await;
    weighs(&["512", "512"]).await;
    node.run("b", &guests::endless_loop(), Options::default()).await;
    weighs(&["1024", "1024"]).await;
    let resources = skiff_cri::v1::LinuxContainerResources { cpu_shares: 100, ..Default::default() };
    node.runtime.update_resources("b", resources).await.unwrap();
    weighs(&["612", "612"]).await;
    node.runtime.stop("a", Duration::ZERO).await.unwrap();
    weighs(&["100", "100"]).await;
    node.runtime.stop("b", Duration::ZERO).await.unwrap();
    weighs(&["2", "2"]).await;
    node.end().await;
}

async fn a_trap_is_an_error_that_names_the_trap() {
    let node = Node::new().await;
    node.run("c", &guests::trap_with_names(), Options::default()).await;
    let ended = node.wait_exit("c").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (1, "Error"));
    assert_eq!(ended.message, "wasm trap: wasm `unreachable` instruction executed");
    // And the log has where it was.
    let trace = ["stderr F     at guest!inner", "stderr F     at guest!outer"].map(str::to_owned);
    assert_eq!(node.log("c"), [&[format!("stderr F {}", ended.message)][..], &trace].concat());
    node.end().await;
}

async fn a_file_that_is_not_wasm_is_refused() {
    let node = Node::new().await;
    for module in [&b"#!/bin/sh"[..], b"\0asm\x01\0\0\0\xff\xff\xff", b""] {
        let err = node.create("c", module, Options::default()).await.unwrap_err();
        assert!(err.message.starts_with("invalid Wasm module: "), "{err}");
        assert_eq!(err.code, Code::InvalidArgument);
    }
    assert_eq!(node.runtime.list().await.unwrap(), []);
    node.end().await;
}

async fn compiling_is_told_and_done_once() {
    let node = Node::new().await;
    let mut notices = node.runtime.notices();
    let module = guests::exit(0);
    let (first, second) = tokio::join!(
        node.create("a", &module, Options::default()),
        node.create("b", &module, Options::default()),
    );
    first.and(second).unwrap();
    node.create("c", &module, Options::default()).await.unwrap();
    let mut told = Vec::new();
    while let Ok(notice) = notices.try_recv() {
        told.push((notice.reason, notice.container_id, notice.message));
    }
    let of = |reason: &str| told.iter().filter(|(known, _, _)| *known == reason).collect::<Vec<_>>();
    let compiled = of("Compiled");
    assert!(compiled.len() == 1 && compiled[0].2.contains("s of CPU time"), "{told:?}");
    assert!((1..=2).contains(&of("Compiling").len()), "{told:?}");
    assert!(told.iter().all(|(_, container, _)| container != "c"), "{told:?}");
    node.end().await;
}

async fn native_code_is_refused() {
    let node = Node::new().await;
    let err = node.create("c", b"\x7fELF\x02\x01\x01", Options::default()).await.unwrap_err();
    assert_eq!(err.message, "the image holds native code (ELF or .cwasm); only Wasm is run");
    node.end().await;
}

async fn an_import_that_is_not_offered_is_named() {
    let node = Node::new().await;
    let err = node.create("c", &guests::unknown_import(), Options::default()).await.unwrap_err();
    assert_eq!(err.message, "the module imports \"env\" \"launch_missiles\", which is not offered");
    node.end().await;
}

async fn containers_survive_the_runtime_and_are_found_again() {
    let mut node = Node::new().await;
    node.run("loop", &guests::endless_loop(), Options::default()).await;
    node.run("done", &guests::exit(7), Options::default()).await;
    node.wait_exit("done").await;
    let hosts = node.hosts();
    assert_eq!(hosts.len(), 1);

    node.reopen().await;
    let mut listed = node.runtime.list().await.unwrap();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    let states: Vec<_> =
        listed.iter().map(|found| (found.id.as_str(), found.state, found.exit_code)).collect();
    assert_eq!(states, [("done", RuntimeState::Exited, 7), ("loop", RuntimeState::Running, 0)]);
    assert_eq!(node.hosts(), hosts);

    // The new runtime hears of what happens in the host that it did not start.
    let mut events = node.runtime.events();
    node.runtime.stop("loop", SHORT).await.unwrap();
    assert_eq!(events.recv().await.unwrap().container_id, "loop");
    node.end().await;
}

async fn a_host_that_dies_takes_its_containers_with_it_and_says_so() {
    let node = Node::new().await;
    node.create("c", &guests::endless_loop(), Options::default()).await.unwrap();
    let mut events = node.runtime.events();
    node.runtime.start("c").await.unwrap();
    // Of its start, which must not pass for that of its end.
    assert_eq!(events.recv().await.unwrap().container_id, "c");
    let [host] = node.hosts().try_into().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(events.recv().await.unwrap().container_id, "c");
    let ended = node.runtime.status("c").await.unwrap();
    assert_eq!((ended.state, ended.exit_code, ended.reason.as_str()), (RuntimeState::Exited, 137, "Error"));
    assert!(
        ended.message.contains("Wasm host process") && ended.message.ends_with("died"),
        "{}",
        ended.message
    );
    node.runtime.stop("c", SHORT).await.unwrap();
    node.runtime.remove("c").await.unwrap();
    // The next container gets a new host.
    node.run("d", &guests::exit(0), Options::default()).await;
    node.wait_exit("d").await;
    node.end().await;
}

async fn a_container_of_an_earlier_boot_has_ended_and_nobody_knows_how() {
    let mut node = Node::new().await;
    node.run("c", &guests::endless_loop(), Options::default()).await;
    let path = node.state().join("containers/c.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let boot = record["process"]["boot"].as_u64().unwrap();
    // The process is there all the same: after a boot another one may have its PID and its start time.
    record["process"]["boot"] = (boot ^ 1).into();
    std::fs::write(&path, record.to_string()).unwrap();
    std::fs::write(node.state().join("containers/torn.json"), "{\"contai").unwrap();
    node.reopen().await;
    assert!(!node.state().join("containers/torn.json").exists());
    let ended = node.runtime.status("c").await.unwrap();
    assert_eq!((ended.state, ended.exit_code), (RuntimeState::Exited, 137));
    assert_eq!(ended.reason, "ContainerStatusUnknown");
    node.runtime.shutdown_hosts().await.unwrap();
    node.end().await;
}

async fn a_host_that_ends_for_want_of_work_leaves_nothing_behind() {
    let node = Node::new().await;
    node.run("c", &guests::exit(0), Options::default()).await;
    node.wait_exit("c").await;
    assert!(!node.run_files().is_empty() && node.n_host_groups() == 1);
    node.runtime.remove("c").await.unwrap();
    let deadline = Instant::now() + LONG;
    while !node.run_files().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", node.run_files());
        tokio::task::yield_now().await;
    }
    assert_eq!(node.n_host_groups(), 0);
    // And nothing of it is in the way of the next one.
    node.run("d", &guests::exit(0), Options::default()).await;
    node.wait_exit("d").await;
    node.end().await;
}

async fn damaged_native_code_is_compiled_again() {
    let mut node = Node::new().await;
    let found = |node: &Node| {
        let engine = std::fs::read_dir(node.state().join("aot")).unwrap().next().unwrap().unwrap().path();
        let files = std::fs::read_dir(engine).unwrap().map(|entry| entry.unwrap().path());
        files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "cwasm")).unwrap()
    };
    node.run("a", &guests::exit(7), Options::default()).await;
    assert_eq!(node.wait_exit("a").await.exit_code, 7);
    node.runtime.remove("a").await.unwrap();
    let whole = std::fs::read(found(&node)).unwrap();
    // A block that was never written, a file that was cut, and one whose checksum was lost.
    let damages: [fn(&std::path::Path, &[u8]); 3] = [
        |path, whole| {
            let mut code = whole.to_vec();
            let middle = code.len() / 2;
            code[middle..].fill(0);
            std::fs::write(path, code).unwrap();
        },
        |path, whole| std::fs::write(path, &whole[..whole.len() / 3]).unwrap(),
        |path, _| std::fs::remove_file(path.with_extension("sha256")).unwrap(),
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        damage(&found(&node), &whole);
        node.reopen().await;
        let id = format!("c{n}");
        node.run(&id, &guests::exit(7), Options::default()).await;
        assert_eq!(node.wait_exit(&id).await.exit_code, 7);
        node.runtime.remove(&id).await.unwrap();
        assert!(std::fs::read(found(&node)).unwrap() == whole, "the code is as it was");
        assert!(found(&node).with_extension("sha256").exists());
    }
    node.end().await;
}

async fn a_guest_that_opens_without_end_is_told_so_and_its_neighbours_start_and_end() {
    let node = Node::new().await;
    let volume = tempfile::tempdir().unwrap();
    let mounts = [(volume.path().to_str().unwrap(), "/data", true)];
    let options = || Options { mounts: &mounts, ..Options::default() };
    node.run("ends", &guests::open_forever(false), options()).await;
    let ended = node.wait_exit("ends").await;
    assert_eq!(ended.exit_code, 33, "WASI's mfile: {ended:?}");
    // Several that keep all they have, in the same host.
    for id in ["a", "b", "c"] {
        node.run(id, &guests::open_forever(true), options()).await;
    }
    let full = async {
        while ["a", "b", "c"].iter().any(|id| node.log(id) != ["stdout F full"]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, full).await.unwrap();
    let writable = [(volume.path().to_str().unwrap(), "/data", false)];
    node.run("neighbour", &guests::make_file(), Options { mounts: &writable, ..Options::default() }).await;
    assert_eq!(node.wait_exit("neighbour").await.exit_code, 0);
    node.runtime.remove("neighbour").await.unwrap();
    node.end().await;
}

async fn a_component_is_told_when_it_has_its_share_of_files_and_sockets() {
    let node = Node::new().await;
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "").unwrap();
    let mounts = [(volume.path().to_str().unwrap(), "/data", true)];
    let netns = Netns::new();
    let component = guests::open_component();
    for what in ["files", "sockets"] {
        let options =
            Options { args: &[what], mounts: &mounts, netns: Some(netns.path.clone()), ..Options::default() };
        node.run(what, &component, options).await;
        let ended = node.wait_exit(what).await;
        assert_eq!(ended.exit_code, 0, "{what}: {ended:?} {:?}", node.log(what));
        let log = node.log(what);
        let mut words = log[0].trim_start_matches("stdout F ").split(' ');
        let n_opened: usize = words.next().unwrap().parse().unwrap();
        assert!((500..=2048).contains(&n_opened), "{log:?}");
        assert_eq!(log[1], "stdout F true", "{log:?}");
    }
    node.end().await;
}

async fn a_stopped_host_is_replaced_and_its_containers_have_ended() {
    let mut node = Node::new().await;
    node.run("c", &guests::endless_loop(), Options::default()).await;
    let host = nix::unistd::Pid::from_raw(node.hosts()[0]);
    nix::sys::signal::kill(host, nix::sys::signal::Signal::SIGSTOP).unwrap();
    node.reopen().await;
    let ended = node.wait_exit("c").await;
    assert_eq!(ended.exit_code, 137);
    node.runtime.remove("c").await.unwrap();
    node.run("next", &guests::exit(0), Options::default()).await;
    assert_eq!(node.wait_exit("next").await.exit_code, 0);
    node.end().await;
}

async fn a_guest_sees_its_volumes_and_nothing_else() {
    let node = Node::new().await;
    let volume = tempfile::tempdir().unwrap();
    let path = volume.path().to_str().unwrap().to_owned();
    // The guest makes the file `made` in its first preopened directory and exits with what that returned.
    for (id, mounts, exit_code) in [
        ("write", vec![(path.as_str(), "/data", false)], 0),
        // WASI's `badf`: there is no such directory.
        ("none", vec![], 8),
        // WASI's `rofs`, `perm` or `notcapable`, whichever the implementation deems right.
        ("readonly", vec![(path.as_str(), "/data", true)], -1),
    ] {
        _ = std::fs::remove_file(volume.path().join("made"));
        node.run(id, &guests::make_file(), Options { mounts: &mounts, ..Options::default() }).await;
        let ended = node.wait_exit(id).await;
        let made = volume.path().join("made").exists();
        assert_eq!(made, exit_code == 0, "{id}: {ended:?}");
        match exit_code {
            -1 => assert_ne!(ended.exit_code, 0, "{id}"),
            _ => assert_eq!(ended.exit_code, exit_code, "{id}"),
        }
    }
    node.end().await;
}

async fn a_component_answers_in_its_pods_network_namespace() {
    let node = Node::new().await;
    let netns = node::Netns::new();
    let module = guests::sample("http", "wasm32-wasip2", "wasm_http.wasm");
    let options = Options { netns: Some(netns.path.clone()), env: &[("PORT", "80")], ..Options::default() };
    node.create("c", &module, options.clone()).await.unwrap();
    let began = Instant::now();
    node.runtime.start("c").await.unwrap();
    let answer = netns.get(80);
    println!("start to first answer: {:?}", began.elapsed());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("hello from wasm"), "{answer}");
    assert!(TcpStream::connect(("127.0.0.1", 80)).is_err(), "it listens on the node, too");
    assert_eq!(node.log("c"), ["stdout F Method::Get /x"]);
    let usage = node.runtime.usage("c").await.unwrap();
    assert!(usage.cpu_usage_ns > 0, "{usage:?}");
    assert!(usage.memory_usage_bytes < 1 << 20, "an idle server holds no instance: {usage:?}");

    // A second container on the same port cannot start, and its error says why.
    node.create("d", &module, options.clone()).await.unwrap();
    let err = node.runtime.start("d").await.unwrap_err();
    assert!(err.message.contains("listen on port 80 in the pod"), "{err}");
    let ended = node.runtime.status("d").await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"));

    // A server without open connections drains at once.
    node.runtime.stop("c", LONG).await.unwrap();
    let ended = node.runtime.status("c").await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));

    // Once more with all caches warm: from create to the first answer.
    let began = Instant::now();
    node.create("e", &module, options).await.unwrap();
    node.runtime.start("e").await.unwrap();
    netns.get(80);
    println!("create to first answer, warm: {:?}", began.elapsed());
    node.end().await;
}

async fn idle_servers_share_one_host_and_cost_little() {
    const N_SERVERS: usize = 20;
    let node = Node::new().await;
    let netns = node::Netns::new();
    let module = guests::sample("http", "wasm32-wasip2", "wasm_http.wasm");
    let mut costs = Vec::new();
    for n in 0..=N_SERVERS {
        let (id, port) = (format!("c{n}"), (8000 + n).to_string());
        let env = [("PORT", port.as_str())];
        node.run(&id, &module, Options { netns: Some(netns.path.clone()), env: &env, ..Options::default() })
            .await;
        let [host] = node.hosts().try_into().unwrap();
        costs.push(node::private_kib(host));
    }
    let each = (costs[N_SERVERS] - costs[0]) / N_SERVERS;
    println!("a host with one server: {} KiB private, each further one: {each} KiB", costs[0]);
    assert!(costs[0] < 16 << 10 && each < 256, "{costs:?}");
    node.end().await;
}

async fn containers_of_one_component_run_one_mapped_file() {
    let node = Node::new().await;
    let netns = node::Netns::new();
    let module = guests::sample("http", "wasm32-wasip2", "wasm_http.wasm");
    let mut seen = Vec::new();
    for port in 8000..8003_u16 {
        let (id, text) = (format!("c{port}"), port.to_string());
        let env = [("PORT", text.as_str())];
        node.run(&id, &module, Options { netns: Some(netns.path.clone()), env: &env, ..Options::default() })
            .await;
        // Code that was never run could be anywhere.
        assert!(netns.get(port).starts_with("HTTP/1.1 200 OK\r\n"));
        let [host] = node.hosts().try_into().unwrap();
        seen.push(node::executable(host));
    }
    let is_native = |code: &&node::Mapped| code.file.ends_with(".cwasm");
    let [native] = seen[0].iter().filter(is_native).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(
        native.private_dirty_kib, 0,
        "its pages are the file's, and shared with other hosts: {native:?}"
    );
    // Memory of no file would be a copy that each container or host has of its own.
    assert!(seen[0].iter().all(|code| !code.file.is_empty()), "{:?}", seen[0]);
    let files = |code: &Vec<node::Mapped>| code.iter().map(|code| code.file.clone()).collect::<Vec<_>>();
    assert!(seen.iter().all(|code| files(code) == files(&seen[0])), "{seen:?}");
    node.end().await;
}

async fn exec_is_refused_and_unknown_containers_are_not_found() {
    let node = Node::new().await;
    node.run("c", &guests::endless_loop(), Options::default()).await;
    let exec = |id: &'static str| {
        let command = vec!["sh".to_owned()];
        let exec = ExecProcess { command, tty: false, stdin: false, stdout: true, stderr: true };
        let runtime = node.runtime.clone();
        async move { runtime.exec(id, exec).await.err().unwrap().code }
    };
    assert_eq!(exec("c").await, Code::Unimplemented);
    assert_eq!(exec("x").await, Code::NotFound);
    assert_eq!(node.runtime.start("x").await.unwrap_err().code, Code::NotFound);
    assert_eq!(node.runtime.start("c").await.unwrap_err().code, Code::FailedPrecondition);
    node.runtime.stop("x", SHORT).await.unwrap();
    node.runtime.remove("x").await.unwrap();
    node.end().await;
}
