//! The unified hierarchy, over a tree of plain files.

#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::fs;
use std::path::Path;

use skiff_cgroup::{Cgroups, Freeze, Limits, Usage, Version};

const PATH: &str = "skiff/kubepods/podx";

/// The files that the kernel would put into each group.
fn fake(root: &Path, group: &str) {
    let directory = root.join(group);
    fs::create_dir_all(&directory).unwrap();
    for (file, text) in [
        ("cgroup.controllers", "cpuset cpu io memory pids rdma\n"),
        ("cgroup.subtree_control", ""),
        ("cgroup.procs", ""),
        ("cgroup.threads", ""),
        ("cgroup.type", "domain\n"),
        ("cgroup.freeze", "0\n"),
        ("cpu.weight", "100\n"),
        ("cpu.max", "max 100000\n"),
        ("memory.max", "max\n"),
        ("pids.max", "max\n"),
    ] {
        fs::write(directory.join(file), text).unwrap();
    }
}

fn tree() -> (tempfile::TempDir, Cgroups) {
    let root = tempfile::tempdir().unwrap();
    for group in ["", "skiff", "skiff/kubepods", PATH] {
        fake(root.path(), group);
    }
    let cgroups = Cgroups::at(root.path()).unwrap();
    assert_eq!(cgroups.version(), Version::V2);
    (root, cgroups)
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(PATH).join(file)).unwrap()
}

#[test]
fn limits_are_written_as_v2_spells_them() {
    let (root, cgroups) = tree();
    let limits = Limits {
        cpu_shares: Some(1024),
        cpu_quota_us: Some(50_000),
        cpu_period_us: None,
        memory_bytes: Some(1 << 20),
        swap_bytes: Some(0),
        pids: Some(-1),
    };
    cgroups.create(PATH, &limits).unwrap();
    // Without swap in the kernel there is no such file.
    fs::write(root.path().join(PATH).join("memory.swap.max"), "max\n").unwrap();
    cgroups.create(PATH, &limits).unwrap();
    assert_eq!(read(root.path(), "memory.swap.max"), "0ax\n");
    assert!(read(root.path(), "cpu.weight").starts_with("100"));
    assert_eq!(read(root.path(), "cpu.max"), "50000 100000");
    assert!(read(root.path(), "memory.max").starts_with("1048576"));
    assert!(read(root.path(), "pids.max").starts_with("max"));
}

#[test]
fn controllers_are_handed_down_from_the_root_to_the_parent() {
    let (root, cgroups) = tree();
    cgroups.create(PATH, &Limits::default()).unwrap();
    for group in ["", "skiff", "skiff/kubepods"] {
        let handed = fs::read_to_string(root.path().join(group).join("cgroup.subtree_control")).unwrap();
        assert_eq!(handed, "+cpuset +cpu +io +memory +pids", "{group:?}");
    }
    assert_eq!(read(root.path(), "cgroup.subtree_control"), "");
}

#[test]
fn a_kernel_without_the_memory_controller_is_refused_with_the_words_for_its_command_line() {
    let root = tempfile::tempdir().unwrap();
    fake(root.path(), "");
    fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
    let refused = Cgroups::at(root.path()).unwrap_err().to_string();
    assert!(refused.contains(": memory;") && refused.contains("cgroup_enable=memory"), "{refused}");
}

#[test]
fn the_processes_of_a_namespaces_root_move_to_a_child_and_those_of_the_kernels_root_stay() {
    let (root, cgroups) = tree();
    fs::write(root.path().join("cgroup.procs"), "0\n3\n").unwrap();
    fake(root.path(), "init");
    fs::remove_file(root.path().join("cgroup.type")).unwrap();
    cgroups.prepare().unwrap();
    let moved = || fs::read_to_string(root.path().join("init/cgroup.procs")).unwrap();
    assert_eq!(moved(), "");
    fs::write(root.path().join("cgroup.type"), "domain\n").unwrap();
    // Plain files: what is moved stays too, and that is said instead of waiting for it.
    let refused = cgroups.prepare().unwrap_err().to_string();
    assert_eq!(moved(), "3");
    assert!(refused.contains("[3]"), "{refused}");
}

#[test]
fn a_threaded_group_gets_only_controllers_that_threads_can_have() {
    let (root, cgroups) = tree();
    fake(root.path(), "skiff/kubepods/podx/c1");
    let group = cgroups.group(PATH).unwrap().create_threaded("c1").unwrap();
    group.add_this_thread().unwrap();
    assert_eq!(read(root.path(), "cgroup.subtree_control"), "+cpuset +cpu +pids");
    assert!(read(root.path(), "c1/cgroup.type").starts_with("threaded"));
    assert_eq!(read(root.path(), "c1/cgroup.threads"), "0");
}

#[test]
fn usage_is_read_and_the_inactive_file_cache_is_not_working_set() {
    let (root, cgroups) = tree();
    for (file, text) in [
        ("cpu.stat", "usage_usec 7\nuser_usec 5\n"),
        ("memory.current", "1000\n"),
        ("memory.peak", "2000\n"),
        ("memory.stat", "anon 300\nfile 600\ninactive_file 400\npgfault 9\npgmajfault 2\n"),
        ("memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 0\n"),
        ("pids.current", "5\n"),
    ] {
        fs::write(root.path().join(PATH).join(file), text).unwrap();
    }
    let usage = cgroups.group(PATH).unwrap().usage().unwrap();
    let expected = Usage {
        cpu_ns: 7000,
        memory_bytes: 1000,
        working_set_bytes: 600,
        memory_peak_bytes: 2000,
        rss_bytes: 300,
        page_faults: 9,
        major_page_faults: 2,
        n_pids: 5,
        n_oom_kills: 3,
    };
    assert_eq!(usage, expected);
}

#[test]
fn freezing_and_pids_go_through_the_group_files() {
    let (root, cgroups) = tree();
    let group = cgroups.group(PATH).unwrap();
    group.freeze(Freeze::Frozen).unwrap();
    assert!(read(root.path(), "cgroup.freeze").starts_with('1'));
    fs::write(root.path().join(PATH).join("cgroup.procs"), "3\n2\n3\n").unwrap();
    assert_eq!(group.pids().unwrap(), [2, 3]);
}

#[test]
fn groups_nested_past_what_a_path_can_name_are_listed_and_removed_from_the_innermost_out() {
    let (root, cgroups) = tree();
    let top = root.path().join(PATH);
    // Plain directories stand for groups here: what is removed has no files of its own.
    let mut at = skiff_tree::open_root(&top).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "c", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "c", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let procs = rustix::fs::openat(&at, "cgroup.procs", flags, rustix::fs::Mode::RUSR).unwrap();
    rustix::io::write(&procs, b"77\n").unwrap();
    let group = cgroups.group(PATH).unwrap();
    assert_eq!(group.pids().unwrap(), [77]);
    rustix::fs::unlinkat(&at, "cgroup.procs", rustix::fs::AtFlags::empty()).unwrap();
    for file in fs::read_dir(&top).unwrap().flatten().filter(|e| e.path().is_file()) {
        fs::remove_file(file.path()).unwrap();
    }
    group.remove().unwrap();
    assert!(!top.exists());
    group.remove().unwrap();
    assert!(group.pids().unwrap().is_empty());
}

#[test]
fn a_directory_without_hierarchies_is_refused() {
    let root = tempfile::tempdir().unwrap();
    assert!(Cgroups::at(root.path()).is_err());
    assert!(Cgroups::at(&root.path().join("none")).is_err());
}
