//! What is mounted where in a container.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use skiff_cgroup::Version;
use skiff_cri::v1::{LinuxContainerSecurityContext, MountPropagation, NamespaceMode};

use super::Input;

/// The mounts, the outer before the inner, and the root's propagation if any mount needs one.
pub(super) fn mounts(
    input: &Input<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<(Vec<Mount>, Option<&'static str>), String> {
    let mut own = Vec::new();
    let mut propagation = None;
    for mount in &input.config.mounts {
        let destination = destination(&mount.container_path)?;
        let source = Path::new(&mount.host_path);
        if !source.is_absolute() {
            return Err(format!(
                "source {:?} of mount {:?} is not absolute",
                mount.host_path, mount.container_path
            ));
        }
        let mode = match mount.propagation() {
            MountPropagation::PropagationPrivate => "rprivate",
            MountPropagation::PropagationHostToContainer => {
                propagation = propagation.or(Some("rslave"));
                "rslave"
            }
            MountPropagation::PropagationBidirectional => {
                propagation = Some("rshared");
                "rshared"
            }
        };
        let access = match (mount.recursive_read_only, mount.readonly) {
            (true, _) => "rro",
            (false, true) => "ro",
            (false, false) => "rw",
        };
        let mut options = vec!["rbind", mode, access];
        // Upstream's documentation promises that nothing of an image that is a volume is run.
        if mount.image.is_some() {
            options.extend(["nosuid", "nodev", "noexec"]);
        }
        own.push(made(destination, "bind", source, &options));
    }
    let mut mounts = defaults(input, security);
    // What the pod mounts stands in place of what every container has.
    mounts.retain(|mount| !own.iter().any(|own| own.destination() == mount.destination()));
    own.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(own);
    Ok((mounts, propagation))
}

fn defaults(input: &Input<'_>, security: &LinuxContainerSecurityContext) -> Vec<Mount> {
    let at = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        made(PathBuf::from(destination), kind, Path::new(source), options)
    };
    let access = if security.privileged { "rw" } else { "ro" };
    let host_ipc =
        security.namespace_options.as_ref().is_some_and(|options| options.ipc() == NamespaceMode::Node);
    let shm = if host_ipc { PathBuf::from("/dev/shm") } else { input.sandbox.directory.join("shm") };
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let mut mounts = vec![
        at("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        at("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        at("/dev/pts", "devpts", "devpts", &pts),
    ];
    if input.host.has_mqueue {
        mounts.push(at("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    }
    mounts.push(at("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]));
    mounts.push(if security.privileged && input.host.cgroup_version == Version::V2 {
        // In the host's own cgroup namespace a new mount of cgroup2 would set the options of the one that there is, the host's:
        // without these its `nsdelegate` and `memory_recursiveprot` were gone. A bind has them.
        at(
            "/sys/fs/cgroup",
            "bind",
            "/sys/fs/cgroup",
            &["bind", "nosuid", "noexec", "nodev", "relatime", access],
        )
    } else {
        at("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access])
    });
    mounts.push(made(PathBuf::from("/dev/shm"), "bind", &shm, &["rbind", "nosuid", "noexec", "nodev", "rw"]));
    mounts
}

/// A path inside the container. runc resolves it below the root, link by link.
fn destination(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    if path.components().any(|component| component == std::path::Component::ParentDir) {
        return Err(format!("mount path {path:?} holds .."));
    }
    Ok(Path::new("/").join(path))
}

fn made(destination: PathBuf, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination);
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}
