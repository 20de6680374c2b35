//! A container's own file system, as its thread sees it: its volumes, its names, and nothing of the node.
//!
//! ```text
//!  /                       read-only tmpfs
//!  ├── v/0, v/1, …         directories that are mounted
//!  ├── f/0/<name>, …       files that are mounted, grouped by the directory they appear in
//!  └── etc/                hosts, resolv.conf, nsswitch.conf: what looking up a name reads
//! ```
//!
//! A mount namespace may be a single thread's, as long as the thread does not share its root with others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::Mode;

use crate::spec::{Access, ContainerSpec, Preopen};

#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub(crate) struct RootError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> RootError {
    move |source| RootError { operation, path: path.to_owned(), source: source.into() }
}

/// A directory that the guest is given, by its path in its own root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) guest_path: String,
    pub(crate) access: Access,
}

/// A mount to be made, from a path of the node to one below the new root.
#[derive(Debug, PartialEq, Eq)]
struct Bind<'a> {
    from: &'a Path,
    to: PathBuf,
    is_file: bool,
    access: Access,
}

/// What looking up a name reads. Of the node's own only how, not what.
const NAME_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];
const NAME_SERVICES: &str = "/etc/nsswitch.conf";

/// What a Linux container's process has, too, unless it changes it.
const UMASK: u32 = 0o022;

/// The directories that the guest is to be given.
pub(crate) fn opened(spec: &ContainerSpec) -> Vec<Opened> {
    let directories = spec.preopens.iter().enumerate().map(|(n, preopen)| Opened {
        path: format!("/v/{n}").into(),
        guest_path: preopen.guest_path.clone(),
        access: preopen.access,
    });
    let of_files = parents(spec).into_iter().enumerate().map(|(n, (parent, files))| Opened {
        path: format!("/f/{n}").into(),
        guest_path: parent.to_owned(),
        access: match files.iter().all(|f| f.access == Access::ReadOnly) {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        },
    });
    directories.chain(of_files).collect()
}

/// The same directories for a thread that has not entered a root. Single files have no place there.
pub(crate) fn on_node(spec: &ContainerSpec) -> Vec<Opened> {
    let directory = |preopen: &Preopen| Opened {
        path: preopen.host_path.clone(),
        guest_path: preopen.guest_path.clone(),
        access: preopen.access,
    };
    spec.preopens.iter().map(directory).collect()
}

/// The single files by the directory they appear in. What lies in a mounted directory is seen there or nowhere: WASI
/// has no mounts within mounts.
fn parents(spec: &ContainerSpec) -> Vec<(&str, Vec<&Preopen>)> {
    let mut parents: Vec<(&str, Vec<&Preopen>)> = Vec::new();
    for file in &spec.files {
        let (parent, _) = file.guest_path.rsplit_once('/').unwrap_or_default();
        let parent = if parent.is_empty() { "/" } else { parent };
        if spec.preopens.iter().any(|p| p.guest_path.trim_end_matches('/') == parent) {
            continue;
        }
        match parents.iter_mut().find(|(known, _)| *known == parent) {
            Some((_, files)) => files.push(file),
            None => parents.push((parent, vec![file])),
        }
    }
    parents
}

fn binds(spec: &ContainerSpec) -> Vec<Bind<'_>> {
    let mut binds = Vec::new();
    for (n, preopen) in spec.preopens.iter().enumerate() {
        let to = format!("v/{n}").into();
        binds.push(Bind { from: &preopen.host_path, to, is_file: false, access: preopen.access });
    }
    for (n, (_, files)) in parents(spec).into_iter().enumerate() {
        for file in files {
            let name = file.guest_path.rsplit('/').next().unwrap_or_default();
            let to = format!("f/{n}/{name}").into();
            binds.push(Bind { from: &file.host_path, to, is_file: true, access: file.access });
        }
    }
    for file in spec.files.iter().filter(|f| NAME_FILES.contains(&f.guest_path.as_str())) {
        let to = file.guest_path.trim_start_matches('/').into();
        binds.push(Bind { from: &file.host_path, to, is_file: true, access: Access::ReadOnly });
    }
    if Path::new(NAME_SERVICES).exists() {
        let to = NAME_SERVICES.trim_start_matches('/').into();
        binds.push(Bind { from: Path::new(NAME_SERVICES), to, is_file: true, access: Access::ReadOnly });
    }
    binds
}

/// Gives the calling thread, and those it starts from now on, a root of their own. `scratch` is a directory to build it
/// on; only this thread sees it change, and no volume may lie below it.
pub(crate) fn enter(spec: &ContainerSpec, scratch: &Path) -> Result<(), RootError> {
    let none = None::<&str>;
    let root = Path::new("/");
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(failed("unshare", root))?;
    mount(none, root, none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("unshare", root))?;
    // The thread's own by now, as its root is. The guest may be any user, and must find its way in here.
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    let kept_out = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), scratch, Some("tmpfs"), kept_out, Some("mode=0755,size=1m"))
        .map_err(failed("mount", scratch))?;
    for bind in binds(spec) {
        make(scratch, &bind)?;
    }
    let old = scratch.join("old");
    fs::create_dir(&old).map_err(failed("create", &old))?;
    nix::unistd::pivot_root(scratch, &old).map_err(failed("change the root to", scratch))?;
    nix::unistd::chdir(root).map_err(failed("change to", root))?;
    umount2("/old", MntFlags::MNT_DETACH).map_err(failed("unmount", Path::new("/old")))?;
    fs::remove_dir("/old").map_err(failed("remove", Path::new("/old")))?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept_out;
    mount(none, root, none, read_only, none).map_err(failed("write-protect", root))
}

fn make(scratch: &Path, bind: &Bind<'_>) -> Result<(), RootError> {
    let to = scratch.join(&bind.to);
    let directory = if bind.is_file { to.parent().unwrap_or(scratch) } else { &to };
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    if bind.is_file {
        fs::File::create(&to).map_err(failed("create", &to))?;
    }
    let none = None::<&str>;
    mount(Some(bind.from), &to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(failed("mount", bind.from))?;
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if bind.access == Access::ReadOnly {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(none, &to, none, flags, none).map_err(failed("restrict the mount of", bind.from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Resources;

    fn at(host: &str, guest: &str, access: Access) -> Preopen {
        Preopen { host_path: host.into(), guest_path: guest.into(), access }
    }

    fn spec(preopens: Vec<Preopen>, files: Vec<Preopen>) -> ContainerSpec {
        ContainerSpec {
            id: "c".into(),
            sandbox_id: "s".into(),
            module: "00".into(),
            args: Vec::new(),
            envs: Vec::new(),
            preopens,
            files,
            netns: None,
            pod_cgroup: "pod".into(),
            pod_memory_bytes: None,
            resources: Resources::default(),
            log_path: None,
            http_port: 80,
            request_timeout_ms: None,
            identity: Default::default(),
        }
    }

    #[test]
    fn files_are_given_in_directories_of_their_own() {
        use Access::{ReadOnly, ReadWrite};
        let spec = spec(
            vec![at("/n/data", "/data", ReadWrite)],
            vec![
                at("/n/hosts", "/etc/hosts", ReadOnly),
                at("/n/conf", "/app/conf.yaml", ReadOnly),
                at("/n/log", "/dev/termination-log", ReadWrite),
                at("/n/hidden", "/data/hidden", ReadOnly),
            ],
        );
        let opened: Vec<_> = opened(&spec).into_iter().map(|o| (o.path, o.guest_path, o.access)).collect();
        let expected = [
            ("/v/0", "/data", ReadWrite),
            ("/f/0", "/etc", ReadOnly),
            ("/f/1", "/app", ReadOnly),
            ("/f/2", "/dev", ReadWrite),
        ];
        assert_eq!(opened, expected.map(|(path, guest, access)| (path.into(), guest.to_owned(), access)));
        let made: Vec<_> = binds(&spec).into_iter().map(|b| b.to.display().to_string()).collect();
        assert_eq!(&made[..5], ["v/0", "f/0/hosts", "f/1/conf.yaml", "f/2/termination-log", "etc/hosts"]);
    }
}
