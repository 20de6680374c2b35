//! The first process of a pod whose containers share one PID namespace: it holds the namespace, and takes over and reaps what
//! its containers leave behind.
//!
//! # What it is
//! A program of some 200 bytes, written here byte by byte: it ignores SIGCHLD, so that the kernel reaps for it, and sleeps. A pod
//! pays a page or two for it. Whatever a container may do to a process that it sees, this one gains it nothing:
//!
//! - its file system is an empty one with nothing but the program, read-only, and of the program it is a file of its own, not
//!   Skiff's executable, which who can trace processes could write to;
//! - it is in the pod's namespaces of network, IPC and host name, where those are the pod's own;
//! - it is nobody (65535), without capabilities, and cannot get any.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, pivot_root};

const NOBODY: u32 = 65_535;
const PROGRAM: &str = "pause";
/// A killed process is gone after this; it has nothing to finish.
const END: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);

/// A process as it was found again: a number alone may be another's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// In the kernel's ticks since the machine's start.
    started: u64,
}

impl Process {
    fn of(pid: u32) -> io::Result<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything; the 22nd field is the 20th after it.
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
        let started = fields.and_then(|fields| fields.split(' ').nth(19)?.parse().ok());
        let started =
            started.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))?;
        Ok(Process { pid, started })
    }

    /// The process that a file names, if it lives.
    pub(crate) fn read(path: &Path) -> Option<Process> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let known = Process { pid: pid.parse().ok()?, started: started.parse().ok()? };
        known.lives().then_some(known)
    }

    fn write(self, path: &Path) -> io::Result<()> {
        fs::write(path, format!("{} {}\n", self.pid, self.started))
    }

    fn lives(self) -> bool {
        let is_zombie = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['Z', 'X']))
        };
        Process::of(self.pid).is_ok_and(|now| now == self) && !is_zombie()
    }
}

/// Starts the process in a PID namespace of its own, and in `namespaces` besides, and notes it in the file `record`. `root` is a directory to
/// mount its file system on, which nobody else sees. Blocks for a few mounts and a process.
pub(crate) fn start(root: &Path, namespaces: &[&Path], record: &Path) -> io::Result<Process> {
    fs::create_dir_all(root)?;
    let program =
        program().ok_or_else(|| io::Error::other("no pause process is known for this processor"))?;
    let namespaces = namespaces.iter().map(File::open).collect::<io::Result<Vec<_>>>()?;
    let root = root.to_owned();
    let pid = std::thread::spawn(move || spawn(&root, &namespaces, &program))
        .join()
        .map_err(|_| io::Error::other("the thread that entered the namespaces panicked"))??;
    let process = Process::of(pid)?;
    process.write(record)?;
    Ok(process)
}

/// On a thread of its own, which is in the namespaces of the process until it ends.
fn spawn(root: &Path, namespaces: &[File], program: &[u8]) -> io::Result<u32> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for namespace in namespaces {
        setns(namespace.as_fd(), CloneFlags::empty())?;
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("pause"), root, Some("tmpfs"), plain, Some("mode=555,size=64k"))?;
    let file = root.join(PROGRAM);
    let mut options = fs::OpenOptions::new();
    io::Write::write_all(&mut options.write(true).create_new(true).mode(0o555).open(&file)?, program)?;
    mount(none, root, none, plain | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)?;
    // The thread has a working directory of its own since it left the mount namespace.
    nix::unistd::chdir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let stdio = || null.try_clone().map(Stdio::from);
    let mut command = Command::new(format!("/{PROGRAM}"));
    command.env_clear().uid(NOBODY).gid(NOBODY).process_group(0);
    let child = command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).spawn()?;
    Ok(child.id())
}

/// Ends the process that `record` names, and with it all that is left in its namespace. What has ended already is no error.
pub(crate) fn end(record: &Path) -> io::Result<()> {
    if let Some(process) = Process::read(record) {
        let pid = Pid::from_raw(i32::try_from(process.pid).map_err(io::Error::other)?);
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        let deadline = std::time::Instant::now() + END;
        while process.lives() && std::time::Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        // It is another's child if whoever started it has ended since.
        let _other = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where the program is loaded: anywhere low that the kernel lets it be.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;
/// `struct sigaction` as the kernel reads it: `SIG_IGN`, and neither flags nor a mask.
const IGNORE: [u64; 4] = [1, 0, 0, 0];

/// An ELF executable for this processor; `None` if none is known.
fn program() -> Option<Vec<u8>> {
    let (machine, code) = code()?;
    let end = HEADERS + u64::try_from(code.len()).ok()? + 32;
    let mut elf = Vec::new();
    elf.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut half = |value: u16| elf.extend(value.to_le_bytes());
    // An executable, for this machine.
    half(2);
    half(machine);
    elf.extend(1_u32.to_le_bytes());
    // Where it begins, where its one program header lies, and no section headers.
    for value in [BASE + HEADERS, 64, 0] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for value in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(value.to_le_bytes());
    }
    // One segment to load, to be read and run.
    elf.extend(1_u32.to_le_bytes());
    elf.extend(5_u32.to_le_bytes());
    for value in [0, BASE, BASE, end, end, 0x1_0000] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(code);
    for value in IGNORE {
        elf.extend(value.to_le_bytes());
    }
    Some(elf)
}

/// The number of the machine in ELF, and the code, which the data of [`IGNORE`] follows.
#[cfg(target_arch = "x86_64")]
fn code() -> Option<(u16, Vec<u8>)> {
    const LENGTH: u64 = 34;
    let data = u32::try_from(BASE + HEADERS + LENGTH).ok()?;
    let mut code = Vec::new();
    // rt_sigaction(SIGCHLD, &ignore, NULL, 8)
    code.extend([0xb8, 13, 0, 0, 0]);
    code.extend([0xbf, 17, 0, 0, 0]);
    code.push(0xbe);
    code.extend(data.to_le_bytes());
    code.extend([0x31, 0xd2]);
    code.extend([0x41, 0xba, 8, 0, 0, 0]);
    code.extend([0x0f, 0x05]);
    // pause(), for ever.
    code.extend([0xb8, 34, 0, 0, 0]);
    code.extend([0x0f, 0x05]);
    code.extend([0xeb, 0xf7]);
    debug_assert_eq!(code.len() as u64, LENGTH);
    Some((62, code))
}

#[cfg(target_arch = "aarch64")]
fn code() -> Option<(u16, Vec<u8>)> {
    const LENGTH: usize = 13 * 4;
    let movz = |register: u32, value: u32| 0xd280_0000 | (value << 5) | register;
    // Where the data lies, seen from the third instruction.
    let distance = u32::try_from(LENGTH - 2 * 4).ok()?;
    let adr = 0x1000_0000 | ((distance & 3) << 29) | ((distance >> 2) << 5) | 1;
    let svc = 0xd400_0001;
    let code = [
        // rt_sigaction(SIGCHLD, &ignore, NULL, 8)
        movz(8, 134),
        movz(0, 17),
        adr,
        movz(2, 0),
        movz(3, 8),
        svc,
        // ppoll(NULL, 0, NULL, NULL), for ever.
        movz(8, 73),
        movz(0, 0),
        movz(1, 0),
        movz(2, 0),
        movz(3, 0),
        svc,
        0x17ff_fffa,
    ];
    Some((183, code.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn code() -> Option<(u16, Vec<u8>)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pid: u32, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    #[test]
    fn it_is_the_first_of_its_namespace_and_has_nothing_that_is_worth_taking() {
        let directory = tempfile::tempdir().unwrap();
        let (root, record) = (directory.path().join("root"), directory.path().join("record"));
        let process = start(&root, &[], &record).unwrap();
        let pid = process.pid;
        assert_eq!(Process::read(&record), Some(process));
        assert_eq!(status(pid, "NSpid").split_whitespace().last(), Some("1"));
        assert_eq!(status(pid, "Uid").split_whitespace().next(), Some("65535"));
        assert_eq!(status(pid, "CapPrm"), "0000000000000000");
        assert_eq!(status(pid, "Groups"), "");
        assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), Path::new("/pause"));
        let seen: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/root")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(seen, ["pause"]);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing of it is seen outside");
        // SIGCHLD is ignored: bit 16.
        let ignored = u64::from_str_radix(&status(pid, "SigIgn"), 16).unwrap();
        assert_ne!(ignored & (1 << 16), 0);
        end(&record).unwrap();
        assert!(!process.lives() && !record.exists());
        end(&record).unwrap();
    }

    #[test]
    fn what_is_left_in_its_namespace_is_reaped_and_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let process = start(&directory.path().join("root"), &[], &record).unwrap();
        // A child that outlives its parent is the first process's.
        let target = format!("--target={}", process.pid);
        let script = "sleep 1000 & echo started";
        let mut command = Command::new("nsenter");
        command.args([&*target, "--pid", "sh", "-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.stdout(Stdio::piped()).spawn().unwrap();
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", process.pid)).unwrap();
        let others = || {
            let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
            all.filter(|path| fs::read_link(path.join("ns/pid")).is_ok_and(|other| other == namespace))
                .count()
        };
        let until = |n: usize| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while others() != n {
                assert!(std::time::Instant::now() < deadline, "{} processes, and not {n}", others());
                std::thread::yield_now();
            }
        };
        // The sleeper holds the pipe, so that its end is not waited for.
        drop(shell.stdout.take());
        until(2);
        end(&record).unwrap();
        until(0);
        shell.wait().unwrap();
    }

    #[test]
    fn another_process_of_the_same_number_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let own = Process::of(std::process::id()).unwrap();
        Process { started: own.started + 1, ..own }.write(&record).unwrap();
        assert_eq!(Process::read(&record), None);
        end(&record).unwrap();
    }
}
