//! What a container may have, who it is, and what of that its neighbours notice.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use skiff_cri::v1::{Capability, Int64Value, LinuxContainerSecurityContext};
use skiff_cri::{ContainerRuntime, RuntimeState};

use crate::node::{Netns, Node, Options, resident};
use crate::serving::{logged, serving, serving_by};
use crate::{LONG, guests};

const PORT: u16 = 8080;
const MIB: i64 = 1 << 20;

pub async fn a_guest_that_asks_for_more_memory_than_there_is_is_told_so() {
    let node = Node::new().await;
    let limited = || Options { memory: 4 * MIB, ..Options::default() };
    node.run("told", &guests::grow_until_refused(false), limited()).await;
    let ended = node.wait_exit("told").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"), "{ended:?}");
    node.run("sly", &guests::grow_past_a_table_that_cannot(), limited()).await;
    let ended = node.wait_exit("sly").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"), "{ended:?}");
    node.run("trapped", &guests::grow_until_refused(true), limited()).await;
    let ended = node.wait_exit("trapped").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    // Memory that is declared costs nothing, and memory that is touched does.
    node.run("declared", &guests::touch(1 << 20, false), limited()).await;
    let ended = node.wait_exit("declared").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"), "{ended:?}");
    node.run("touched", &guests::touch(32 << 20, true), limited()).await;
    let ended = node.wait_exit("touched").await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    // Without a limit there is none.
    node.run("unlimited", &guests::touch(64 << 20, false), Options::default()).await;
    assert_eq!(node.wait_exit("unlimited").await.exit_code, 0);
    node.end().await;
}

/// What so many clients at once are answered to one request each.
fn at_once(netns: &Netns, n: usize, path: &str) -> Vec<u16> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..n).map(|_| scope.spawn(|| netns.fetch(PORT, path).0)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    })
}

pub async fn a_server_that_declares_much_lives_through_any_load() {
    // Each instance declares 32 MiB.
    let (node, netns) = serving(Options { memory: 64 * MIB, ..Options::default() }).await;
    let answers = at_once(&netns, 100, "/hello");
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    let answers = at_once(&netns, 100, "/hold/0/300");
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    // Eight of these are more than it may have: they take turns.
    assert_eq!(netns.fetch(PORT, "/hold/8/0").0, 200);
    let answers = at_once(&netns, 40, "/hold/8/100");
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    // When there is no end to it, those that wait too long are told so.
    let mut answers = at_once(&netns, 16, "/hold/8/15000");
    answers.sort_unstable();
    assert!(answers.contains(&200) && answers.contains(&503), "{answers:?}");
    assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
    // One that wants more than all there is fails alone.
    assert_ne!(netns.fetch(PORT, "/hold/80/0").0, 200);
    assert_eq!(netns.fetch(PORT, "/grow/80"), (200, "-1\n".to_owned(), true));
    assert_eq!(netns.fetch(PORT, "/hello").0, 200);
    assert_eq!(node.runtime.status("c").await.unwrap().state, RuntimeState::Running);
    let usage = node.runtime.usage("c").await.unwrap();
    assert!(usage.memory_usage_bytes < 1 << 20, "{usage:?}");
    node.end().await;
}

/// What a host may have beyond what its container may: what it needs itself, and what one call of a guest hands to it, and so
/// does the allocator's.
const HOST_BYTES: usize = 24 << 20;

pub async fn what_a_guest_makes_its_host_hold_counts_to_its_container() {
    let limit: usize = 64 << 20;
    for component in [guests::serving(), guests::serving3()] {
        let options = Options { memory: limit as i64, ..Options::default() };
        let (node, netns) = serving_by(&component, options).await;
        assert_eq!(netns.fetch(PORT, "/hello").0, 200);
        let host = node.hosts()[0];
        let (before, _) = resident(host);
        for n_kib in [100, 8] {
            assert_eq!(netns.fetch(PORT, &format!("/fields/{n_kib}")).0, 503);
        }
        logged(&node, "the container's memory limit is reached").await;
        let (_, most) = resident(host);
        assert!(most < before + limit + HOST_BYTES, "{before} at first, {most} at most");
        let deadline = std::time::Instant::now() + LONG;
        while resident(host).0 > before + HOST_BYTES {
            assert!(std::time::Instant::now() < deadline, "{before} at first, {} now", resident(host).0);
            tokio::task::yield_now().await;
        }
        // Nobody else had to suffer for it, and what was given back can be had again.
        assert_eq!(netns.fetch(PORT, "/hold/8/0").0, 200);
        assert_eq!(node.runtime.status("c").await.unwrap().state, RuntimeState::Running);
        node.end().await;
    }
}

pub async fn bodies_that_nobody_takes_count_and_those_that_are_taken_do_not() {
    let (node, netns) = serving(Options { memory: 64 * MIB, ..Options::default() }).await;
    assert_eq!(netns.fetch(PORT, "/bodies/16"), (200, "16\n".to_owned(), true));
    assert_eq!(netns.fetch(PORT, "/bodies/1000").0, 503);
    node.end().await;
    // Twice what it may have goes through one instance.
    for component in [guests::serving(), guests::serving3()] {
        let (node, netns) = serving_by(&component, Options { memory: 32 * MIB, ..Options::default() }).await;
        let (status, text, is_whole) = netns.fetch(PORT, "/pour/64");
        assert_eq!((status, text.len(), is_whole), (200, 64 << 20, true));
        node.end().await;
    }
}

pub async fn hanging_requests_of_some_do_not_take_what_others_need() {
    let node = Node::new().await;
    let component = guests::serving();
    let pods: Vec<_> = (0..5).map(|_| Netns::new()).collect();
    for (n, netns) in pods.iter().enumerate() {
        let options = Options { netns: Some(netns.path.clone()), ..Options::default() };
        node.run(&format!("c{n}"), &component, options).await;
    }
    // Together they have more instances than their host has in its pool.
    let mut hanging = Vec::new();
    for netns in &pods[..4] {
        hanging.extend(netns.inside(|| {
            let hang = |_| {
                let mut stream = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
                stream.write_all(b"GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
                stream
            };
            (0..128).map(hang).collect::<Vec<_>>()
        }));
    }
    assert_eq!(pods[4].fetch(PORT, "/hello"), (200, "hello\n".to_owned(), true));
    // And those that hang have been let in, all of them: further ones of theirs are not.
    assert_eq!(pods[0].fetch(PORT, "/hello").0, 503);
    assert_eq!(pods[4].fetch(PORT, "/hello").0, 200);
    drop(hanging);
    node.end().await;
}

pub async fn modules_as_they_exist_run_whatever_their_size() {
    let node = Node::new().await;
    let n_bytes = 49_000_000;
    let heavy = guests::heavy(n_bytes);
    let last = i32::try_from((n_bytes - 1) % 251 + 1).unwrap();
    for (id, module, exit_code) in [
        ("table", guests::large_table_and_several_memories(), 7),
        ("instances", guests::many_instances(), 0),
        ("heavy", heavy, last),
    ] {
        node.run(id, &module, Options::default()).await;
        let ended = node.wait_exit(id).await;
        assert_eq!(ended.exit_code, exit_code, "{id}: {ended:?}");
    }
    node.end().await;
}

pub async fn as_many_guests_with_collected_heaps_run_as_there_are() {
    const N: usize = 40;
    let node = Node::new().await;
    let module = guests::collected();
    for n in 0..N {
        node.run(&format!("c{n}"), &module, Options::default()).await;
    }
    let deadline = std::time::Instant::now() + LONG;
    let caught = |n: usize| node.log(&format!("c{n}")) == ["stdout F caught"];
    while !(0..N).all(caught) {
        assert!(std::time::Instant::now() < deadline, "{:?}", node.log(&format!("c{}", N - 1)));
        tokio::task::yield_now().await;
    }
    node.end().await;
}

fn user(uid: i64, gid: i64, groups: &[i64]) -> Option<LinuxContainerSecurityContext> {
    Some(LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: uid }),
        run_as_group: Some(Int64Value { value: gid }),
        supplemental_groups: groups.to_vec(),
        ..Default::default()
    })
}

pub async fn a_guest_is_the_user_that_its_pod_says() {
    let node = Node::new().await;
    let volume = tempfile::tempdir().unwrap();
    let root = volume.path();
    let (file, made) = (root.join("file"), root.join("made"));
    std::fs::write(&file, "").unwrap();
    let mounts = [(root.to_str().unwrap(), "/data", false)];
    let mode = |path: &std::path::Path, uid: u32, gid: u32, mode: u32| {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let n = std::cell::Cell::new(0);
    let run = async |module: Vec<u8>, security: Option<LinuxContainerSecurityContext>| {
        n.set(n.get() + 1);
        let id = format!("c{}", n.get());
        node.run(&id, &module, Options { mounts: &mounts, security, ..Options::default() }).await;
        node.wait_exit(&id).await.exit_code
    };
    let denied = |errno: i32| [2, 63].contains(&errno);

    // Files are made in the name of the guest, with the umask of any container.
    mode(root, 0, 0, 0o777);
    assert_eq!(run(guests::make_file(), user(1000, 3000, &[])).await, 0);
    let found = std::fs::metadata(&made).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1000, 3000, 0o644));
    std::fs::remove_file(&made).unwrap();
    assert_eq!(run(guests::make_file(), None).await, 0);
    let found = std::fs::metadata(&made).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 0, 0o644));
    std::fs::remove_file(&made).unwrap();

    // It may what its user, its group and its further groups may, and no more.
    mode(root, 0, 0, 0o755);
    assert!(denied(run(guests::make_file(), user(1000, 3000, &[])).await));
    mode(&file, 0, 0, 0o600);
    assert!(denied(run(guests::open_file(), user(1000, 3000, &[4000])).await));
    mode(&file, 1000, 0, 0o400);
    assert_eq!(run(guests::open_file(), user(1000, 3000, &[])).await, 0);
    mode(&file, 0, 3000, 0o040);
    assert_eq!(run(guests::open_file(), user(1000, 3000, &[])).await, 0);
    mode(&file, 0, 4000, 0o040);
    assert!(denied(run(guests::open_file(), user(1000, 3000, &[])).await));
    assert_eq!(run(guests::open_file(), user(1000, 3000, &[4000])).await, 0);

    // Root may what root may in a Linux container: not more than its capabilities say.
    mode(&file, 1000, 1000, 0o600);
    assert_eq!(run(guests::open_file(), None).await, 0);
    let capabilities = Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() };
    let dropped = LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() };
    assert!(denied(run(guests::open_file(), Some(dropped)).await));
    node.end().await;
}

pub async fn a_server_of_any_user_listens_on_any_port() {
    let netns = Netns::new();
    let node = Node::new().await;
    let options = Options {
        security: user(1000, 1000, &[]),
        env: &[("PORT", "80")],
        netns: Some(netns.path.clone()),
        ..Options::default()
    };
    node.run("c", &guests::serving(), options).await;
    assert_eq!(netns.fetch(80, "/hello").0, 200);
    node.end().await;
}

pub async fn a_program_of_a_linux_image_runs_if_it_is_wasm_also_another_than_the_images_own() {
    let node = Node::new().await;
    let files = ["app", "w/other.wasm"];
    let module = guests::exit(7);
    for (id, command) in [("own", &[][..]), ("other", &["w/other.wasm"]), ("whole", &["/w/other.wasm"])] {
        node.run(id, &module, Options { files: &files, command, ..Options::default() }).await;
        assert_eq!(node.wait_exit(id).await.exit_code, 7, "{id}");
    }
    let options = Options { files: &files, command: &["missing"], ..Options::default() };
    let err = node.create("missing", &module, options).await.unwrap_err();
    assert!(err.message.contains("missing"), "{err}");
    node.end().await;
}
