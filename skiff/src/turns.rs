//! How soon a thread is let in when it wakes.
//!
//! The kernel (EEVDF, from Linux 6.12 on) lets a thread that asks for short turns in before one that is in the middle of a
//! longer turn. It gets no more of the processors for that. What answers requests sleeps most of the time and asks for them;
//! containers do not. The threads of a server or an agent inherit them, and those undo it that work for long, or for others than the
//! administrators and the cluster's own components. Earlier kernels take note and change nothing.

use std::io;

/// The shortest that the kernel knows.
const SHORT_NS: u64 = 100_000;
/// What the kernel gives by default.
const USUAL: u64 = 0;

/// `struct sched_attr` as it was first.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// For the calling thread, and all threads and processes that it makes later.
pub(crate) fn be_short() {
    if let Err(error) = set(SHORT_NS) {
        tracing::debug!(%error, "cannot ask the kernel for short turns");
    }
}

/// Undoes what was inherited: for what runs that is not Skiff's own, and for threads that those with short turns are let in before.
pub(crate) fn be_usual() {
    // What cannot be undone could not be done.
    _ = set(USUAL);
}

fn set(slice_ns: u64) -> io::Result<()> {
    let mut attr = current()?;
    let policy = libc::c_int::try_from(attr.policy).unwrap_or(-1);
    if policy != libc::SCHED_OTHER && policy != libc::SCHED_BATCH {
        // Whoever started this process has decided otherwise.
        return Ok(());
    }
    attr.runtime = slice_ns;
    // SAFETY: the kernel reads as many bytes of the structure as its first field says.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn current() -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as libc::c_uint;
    // SAFETY: the kernel writes no more bytes than it is told there are.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) } {
        0 => Ok(attr),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_turns_are_inherited_until_they_are_undone() {
        // A thread of its own: others of this process are not touched.
        let ran = std::thread::spawn(|| {
            let (usual, nice) = (current().unwrap().runtime, current().unwrap().nice);
            be_short();
            let inherited = std::thread::spawn(|| current().unwrap()).join().unwrap();
            // A kernel that knows nothing of them answers what it always does.
            let is_known = inherited.runtime != usual;
            assert!(!is_known || inherited.runtime == SHORT_NS, "{}", inherited.runtime);
            be_usual();
            assert_eq!((current().unwrap().runtime, current().unwrap().nice), (usual, nice));
            is_known
        });
        let is_known = ran.join().unwrap();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let version: Vec<u32> = release.split(['.', '-']).take(2).map(|part| part.parse().unwrap()).collect();
        assert_eq!(is_known, version >= vec![6, 12], "{release}");
    }
}
