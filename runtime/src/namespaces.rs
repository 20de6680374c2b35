//! The IPC and UTS namespaces of a sandbox, held by bind mounts like its network namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;

/// Makes those namespaces that are not the host's, on a thread of its own, which ends afterwards. Blocks for two mounts.
pub(crate) fn create(ipc: Option<&Path>, uts: Option<&Path>, hostname: &str) -> io::Result<()> {
    let (ipc, uts, hostname) = (ipc.map(Path::to_owned), uts.map(Path::to_owned), hostname.to_owned());
    if ipc.is_none() && uts.is_none() {
        return Ok(());
    }
    on_own_thread(move || {
        if ipc.is_some() {
            unshare(CloneFlags::CLONE_NEWIPC)?;
        }
        if uts.is_some() {
            unshare(CloneFlags::CLONE_NEWUTS)?;
            sethostname(&hostname)?;
        }
        for (path, name) in [(&ipc, "ipc"), (&uts, "uts")] {
            let Some(path) = path else { continue };
            File::create(path)?;
            let source = format!("/proc/thread-self/ns/{name}");
            mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(())
    })
}

/// Sets kernel parameters as seen from inside a sandbox. Only those that are the namespaces' own come this far.
pub(crate) fn set_sysctls(namespaces: &[PathBuf], sysctls: Vec<(String, String)>) -> io::Result<()> {
    let namespaces = namespaces.iter().map(File::open).collect::<io::Result<Vec<_>>>()?;
    on_own_thread(move || {
        for namespace in &namespaces {
            setns(namespace.as_fd(), CloneFlags::empty())?;
        }
        for (name, value) in sysctls {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("sysctl {name:?}: {e}")))?;
        }
        Ok(())
    })
}

/// Whether a pod may set a kernel parameter: only what belongs to its own namespaces.
pub(crate) fn is_namespaced(sysctl: &str, host_network: bool, host_ipc: bool) -> bool {
    let plain = sysctl.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !sysctl.split('.').any(str::is_empty);
    let network = sysctl.starts_with("net.") && !host_network;
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| sysctl.starts_with(p))
        && !host_ipc;
    plain && (network || ipc)
}

/// Whether a path holds a namespace: after a restart of the machine there is at most an empty file.
pub(crate) fn is_held(path: &Path) -> bool {
    // NSFS_MAGIC, in whatever integer type this platform's C library has for it.
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == 0x6e73_6673)
}

/// Whether something is mounted at a directory.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|entry| MetadataExt::dev(&entry));
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// Unmounts and removes a held namespace. What is gone already is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    unmount(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts a path, if it is a mount.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A pod's own `/dev/shm`.
pub(crate) fn mount_shm(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), path, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))?;
    Ok(())
}

fn on_own_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    std::thread::spawn(work)
        .join()
        .map_err(|_| io::Error::other("the thread that entered the namespaces panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_may_have_its_own_ipc_and_the_hosts_name() {
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let ipc = directory.path().join("ipc");
        create(Some(&ipc), None, "").unwrap();
        assert!(is_held(&ipc));
        assert_ne!(inode(&ipc), inode(Path::new("/proc/self/ns/ipc")));
        remove(&ipc).unwrap();
        let uts = directory.path().join("uts");
        create(None, Some(&uts), "pod").unwrap();
        assert!(!ipc.exists());
        assert_ne!(inode(&uts), inode(Path::new("/proc/self/ns/uts")));
        remove(&uts).unwrap();
        fs::write(&uts, "").unwrap();
        assert!(!is_held(&uts) && !is_held(&ipc), "a file that is no namespace, and none at all");
    }

    #[test]
    fn a_pods_shared_memory_is_seen_to_be_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let shm = directory.path().join("shm");
        assert!(!is_mounted(&shm));
        mount_shm(&shm).unwrap();
        assert!(is_mounted(&shm));
        unmount(&shm).unwrap();
        assert!(!is_mounted(&shm));
    }

    #[test]
    fn a_pod_sets_only_what_is_its_own() {
        assert!(is_namespaced("net.ipv4.ip_unprivileged_port_start", false, false));
        assert!(is_namespaced("kernel.shm_rmid_forced", false, false));
        for bad in ["kernel.panic", "vm.swappiness", "net.ipv4/../../kernel.panic", "net..x", ""] {
            assert!(!is_namespaced(bad, false, false), "{bad}");
        }
        assert!(!is_namespaced("net.ipv4.ip_forward", true, false), "a pod on the host's network");
    }
}
