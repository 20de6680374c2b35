//! System calls that a Wasm host and its guests' threads have no use for are refused: what a guest that broke out of
//! its sandbox would reach for first.
//!
//! A filter is a thread's, and is inherited by what the thread starts. The host installs [`Filter::Host`] before it has
//! a second thread; each guest's thread adds [`Filter::Guest`] once it is where it is to stay.

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS, c_long, sock_filter, sock_fprog,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Other programs, other processes, the kernel itself.
    Host,
    /// Also what only setting a container up needs: namespaces, mounts, and becoming the guest's user.
    Guest,
}

const OF_THE_HOST: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_personality,
];

const OF_A_GUEST: &[c_long] = &[
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_mknodat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// On x86-64 the same calls have second numbers from here on, for a 32-bit ABI.
const FIRST_X32_CALL: u32 = 0x4000_0000;
/// Of `struct seccomp_data`.
const OFFSET_OF_CALL: u32 = 0;
const OFFSET_OF_ARCHITECTURE: u32 = 4;

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf: 0, k }
}

/// Skips `jt` instructions if the comparison holds.
fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { jt, jf, ..statement(BPF_JMP | comparison | BPF_K, k) }
}

fn program(filter: Filter) -> Vec<sock_filter> {
    let refuse = statement(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | u32::from(libc::EPERM.unsigned_abs() as u16));
    let mut program = vec![
        statement(BPF_LD | BPF_W | BPF_ABS, OFFSET_OF_ARCHITECTURE),
        jump(BPF_JEQ, ARCHITECTURE, 1, 0),
        statement(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        statement(BPF_LD | BPF_W | BPF_ABS, OFFSET_OF_CALL),
        jump(BPF_JGE, FIRST_X32_CALL, 0, 1),
        refuse,
    ];
    let calls = match filter {
        Filter::Host => OF_THE_HOST,
        Filter::Guest => OF_A_GUEST,
    };
    for call in calls.iter().filter_map(|call| u32::try_from(*call).ok()) {
        program.push(jump(BPF_JEQ, call, 0, 1));
        program.push(refuse);
    }
    program.push(statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    program
}

/// Installs a filter on the calling thread, for good. The thread must have given up new privileges before.
pub(crate) fn install(filter: Filter) -> io::Result<()> {
    let mut program = program(filter);
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `program` points to `length` instructions that live until the call returns; the kernel copies them.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&program), 0, 0)
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In threads of their own: a filter is never taken off again.
    fn under(filter: Filter, call: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(filter).unwrap();
            call()
        });
        thread.join().unwrap()
    }

    #[test]
    fn programs_cannot_be_run_and_the_rest_goes_on() {
        let refused = under(Filter::Host, || std::process::Command::new("/bin/true").status().map(drop));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        under(Filter::Host, || std::fs::read("/proc/self/status").map(drop)).unwrap();
    }

    #[test]
    fn a_guests_thread_stays_where_and_who_it_is() {
        let unshare = || Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS)?);
        assert_eq!(under(Filter::Guest, unshare).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
        let remain = move || Ok(rustix::thread::set_thread_res_uid(user, user, user)?);
        assert_eq!(under(Filter::Guest, remain).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let remain = move || Ok(rustix::thread::set_thread_res_gid(group, group, group)?);
        assert_eq!(under(Filter::Guest, remain).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").map(drop);
        under(Filter::Guest, listen).unwrap();
    }
}
