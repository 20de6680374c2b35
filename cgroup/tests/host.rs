//! The hierarchies of the host itself, in a group of the test's own. Needs root.

#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::process::{Child, Command, Stdio};

use skiff_cgroup::{Cgroups, Freeze, Group, Limits};

/// A group named after this process, killed and removed at the end.
struct Own(Group);

impl Own {
    fn new(name: &str, limits: &Limits) -> Own {
        let cgroups = Cgroups::detect().unwrap();
        let path = format!("skiff-test-{}/{name}", std::process::id());
        Own(cgroups.create(&path, limits).unwrap())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.remove().unwrap();
        let parent = self.0.path().rsplit_once('/').unwrap().0.to_owned();
        // The last test to end removes the parent; until then it is busy.
        let _busy = Cgroups::detect().unwrap().group(&parent).unwrap();
        for directory in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _busy = std::fs::remove_dir(directory.path().join(&parent));
        }
        let _busy = std::fs::remove_dir(std::path::Path::new("/sys/fs/cgroup").join(&parent));
    }
}

fn cat() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_process_is_counted_and_killed_with_its_group() {
    let limits = Limits {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        memory_bytes: Some(64 << 20),
        pids: Some(16),
        ..Limits::default()
    };
    let own = Own::new("kill", &limits);
    let mut child = cat();
    own.0.add_process(child.id()).unwrap();
    assert_eq!(own.0.pids().unwrap(), [child.id()]);
    assert_eq!(own.0.usage().unwrap().n_pids, 1);

    own.0.freeze(Freeze::Frozen).unwrap();
    own.0.freeze(Freeze::Thawed).unwrap();
    // A killed child of this process leaves the group only when it has been reaped; `wait` would close its
    // input, and a `cat` at the end of its input leaves by itself.
    let input = child.stdin.take();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    own.0.kill().unwrap();
    assert!(!reaper.join().unwrap().success());
    drop(input);
    assert!(own.0.pids().unwrap().is_empty());
}

#[test]
fn a_thread_moves_without_its_process() {
    let own = Own::new("thread", &Limits::default());
    if Cgroups::detect().unwrap().version() == skiff_cgroup::Version::V2 {
        own.0.add_process(std::process::id()).unwrap();
        return;
    }
    let group = own.0.clone();
    std::thread::spawn(move || {
        group.add_this_thread().unwrap();
        let mine = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        assert!(mine.contains(&format!("cpu:/{}", group.path())), "{mine}");
        assert!(!mine.contains(&format!("memory:/{}", group.path())), "{mine}");
    })
    .join()
    .unwrap();
}

/// A file system of the test's own, unmounted at the end.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[], self.0.path());
    }
}

fn run(program: &str, args: &[&str], on: &std::path::Path) {
    assert!(Command::new(program).args(args).arg(on).status().unwrap().success());
}

#[test]
fn a_tree_that_is_mounted_read_only_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    run("mount", &["-t", "tmpfs", "skiff-test"], directory.path());
    let mounted = Mounted(directory);
    let root = mounted.0.path();
    std::fs::write(root.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let cgroups = Cgroups::at(root).unwrap();
    cgroups.prepare().unwrap();
    run("mount", &["-o", "remount,ro"], root);
    for refused in [cgroups.require_writable(), cgroups.prepare()] {
        let refused = refused.unwrap_err();
        let source = std::error::Error::source(&refused).unwrap().to_string();
        assert!(source.contains("Read-only file system"), "{refused}: {source}");
    }
}

#[test]
fn removing_what_is_gone_succeeds() {
    let group = Cgroups::detect().unwrap().group("skiff-test-none/none").unwrap();
    assert!(!group.exists());
    group.kill().unwrap();
    group.remove().unwrap();
    assert!(group.usage().unwrap_err().is_not_found());
}
