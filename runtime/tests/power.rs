//! The power goes while records are written: a file system of its own, on a loop device in a mount namespace of its own, is
//! shut down without anything being written that was not asked for. Needs root and mkfs.ext4.
#![allow(clippy::unwrap_used)] // a test may panic

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use skiff_cri::keep::{self, Keep};

const IMAGE_BYTES: u64 = 16 << 20;
/// `EXT4_IOC_SHUTDOWN`, and that its log is not to be flushed before.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
const WITHOUT_FLUSH: u32 = 2;

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Does `work` in a directory, and shows what a power cut right afterwards leaves to `look`.
fn cut(work: impl FnOnce(&Path) + Send + 'static, look: impl FnOnce(&Path) + Send + 'static) {
    // The mount namespace is the thread's, and of the programs that it starts.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (image, root) = (directory.path().join("image"), directory.path().join("root"));
        File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        fs::create_dir(&root).unwrap();
        let (image, mounted) = (image.to_str().unwrap(), root.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-F", image]);
        run("mount", &["-o", "loop", image, mounted]);
        let records = root.join("records");
        fs::create_dir(&records).unwrap();
        keep::sync_directory(&root).unwrap();
        work(&records);
        let file_system = File::open(&root).unwrap();
        // SAFETY: the call reads one number, which lives longer than it.
        let cut = unsafe { libc::ioctl(file_system.as_raw_fd(), SHUTDOWN, &WITHOUT_FLUSH) };
        assert_eq!(cut, 0, "{}", std::io::Error::last_os_error());
        drop(file_system);
        run("umount", &[mounted]);
        run("mount", &["-o", "loop", image, mounted]);
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&records)));
        run("umount", &[mounted]);
        looked.unwrap();
    });
    thread.join().unwrap();
}

#[test]
fn a_record_that_was_to_last_is_there_after_a_power_cut() {
    let write = |records: &Path| {
        for n in 0..20 {
            keep::write(&records.join(format!("{n}.json")), b"{\"whole\":true}", Keep::Durable).unwrap();
        }
    };
    cut(write, |records| {
        for n in 0..20 {
            assert_eq!(fs::read(records.join(format!("{n}.json"))).unwrap(), b"{\"whole\":true}");
        }
    });
}

#[test]
fn a_record_that_was_written_over_is_the_old_or_the_new_one_after_a_power_cut() {
    let write = |records: &Path| {
        keep::write(&records.join("a.json"), b"old", Keep::Durable).unwrap();
        keep::write(&records.join("a.json"), b"newer", Keep::Whole).unwrap();
    };
    cut(write, |records| {
        let text = fs::read_to_string(records.join("a.json")).unwrap();
        assert!(text == "old" || text == "newer", "{text:?}");
    });
}
