//! A container's directory: the overlay that is its root, and the OCI runtime's `config.json`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use skiff_cri::v1::{ContainerConfig, Mount, MountPropagation};

use crate::Error;
use crate::spec::{Accounts, HostDevice};

/// What `mount` takes in one page, less some room.
const MAX_OPTIONS_BYTES: usize = 4000;
/// `/etc/passwd`, `/etc/group`, a seccomp profile.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Where images are mounted that a container reads.
const IMAGES: &str = "images";
/// How deep a directory of devices is searched.
const MAX_DEVICE_DEPTH: usize = 4;

/// The files of one container.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) directory: PathBuf,
}

impl Bundle {
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("bundle/rootfs")
    }

    fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("bundle/config.json")
    }

    /// Makes the directories and mounts the root filesystem of `layers`, the lowest first.
    pub(crate) fn create(&self, layers: &[PathBuf]) -> Result<(), Error> {
        for directory in [self.rootfs(), self.upper(), self.directory.join("work")] {
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        // The container's `/` shows the upper directory's mode.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.upper(), open).map_err(Error::io("set mode of", &self.upper()))?;
        self.mount(layers)
    }

    /// Mounts the root filesystem unless it is: after a reboot it is not.
    pub(crate) fn mount(&self, layers: &[PathBuf]) -> Result<(), Error> {
        let rootfs = self.rootfs();
        if is_overlay(&rootfs) {
            return Ok(());
        }
        let mount = || -> io::Result<()> {
            let (options, _held) = overlay_options(layers, &[self.upper(), self.directory.join("work")])?;
            let overlay = Some("overlay");
            Ok(nix::mount::mount(overlay, &rootfs, overlay, MsFlags::empty(), Some(options.as_str()))?)
        };
        mount().map_err(Error::io("mount the layers at", &rootfs))
    }

    /// Mounts an image of `layers` for the container to read, the lowest first. Answers where it, or the part of it at
    /// `sub_path`, lies.
    pub(crate) fn mount_image(
        &self,
        at: usize,
        layers: &[PathBuf],
        sub_path: &str,
    ) -> Result<PathBuf, Error> {
        let directory = self.directory.join(IMAGES).join(at.to_string());
        // An overlay without a directory to write to has two others at least.
        let empty = self.directory.join("empty");
        for directory in [&directory, &empty] {
            fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        }
        let mut all = layers.to_vec();
        all.push(empty);
        let mount = || -> io::Result<()> {
            let (options, _held) = overlay_options(&all, &[])?;
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            Ok(nix::mount::mount(
                Some("overlay"),
                &directory,
                Some("overlay"),
                flags,
                Some(options.as_str()),
            )?)
        };
        mount().map_err(Error::io("mount the image's layers at", &directory))?;
        let sub_path = sub_path.trim_matches('/');
        if sub_path.is_empty() {
            return Ok(directory);
        }
        // No link of the image leads outside of it, and nobody can change what is mounted.
        let resolve = || -> io::Result<PathBuf> {
            let root = File::open(&directory)?;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let found = rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), resolve)?;
            fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        };
        resolve().map_err(Error::io("find the part of an image", &directory.join(sub_path)))
    }

    pub(crate) fn write_spec(&self, spec: &Spec) -> Result<(), Error> {
        let path = self.config();
        let bytes = serde_json::to_vec(spec).map_err(|err| Error::io("write", &path)(err.into()))?;
        fs::write(&path, bytes).map_err(Error::io("write", &path))
    }

    /// The process of the written spec.
    pub(crate) fn process(&self) -> Result<oci_spec::runtime::Process, Error> {
        #[derive(serde::Deserialize)]
        struct Config {
            process: oci_spec::runtime::Process,
        }
        let path = self.config();
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|err| Error::io("read", &path)(err.into()))?;
        Ok(config.process)
    }

    /// The image's users and groups. A link of the image leads nowhere outside it.
    pub(crate) fn accounts(&self) -> Result<Accounts, Error> {
        let rootfs = self.rootfs();
        let read = |path: &str| -> io::Result<String> {
            let root = File::open(&rootfs)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
                Ok(file) => File::from(file),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
                Err(err) => return Err(err.into()),
            };
            if !file.metadata()?.is_file() {
                return Ok(String::new());
            }
            let mut bytes = Vec::new();
            file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = |path: &str| read(path).map_err(Error::io("read", &rootfs.join(path)));
        Ok(Accounts::parse(&text("etc/passwd")?, &text("etc/group")?))
    }

    /// Unmounts and removes everything; what is gone already is fine.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.unmount()?;
        skiff_tree::remove(&self.directory).map_err(|err| Error::io("remove", &self.directory)(err.into()))
    }

    /// Removes what the container wrote, its image's volumes included. Its records stay.
    pub(crate) fn remove_layer(&self) -> Result<(), Error> {
        self.unmount()?;
        for directory in [self.upper(), self.directory.join("work"), self.directory.join("volumes")] {
            skiff_tree::remove(&directory).map_err(|err| Error::io("remove", &directory)(err.into()))?;
        }
        Ok(())
    }

    fn unmount(&self) -> Result<(), Error> {
        let images = self.directory.join(IMAGES);
        let images = match fs::read_dir(&images) {
            Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(err) => Err(err),
        }
        .map_err(Error::io("list", &images))?;
        for mounted in images.iter().chain([&self.rootfs()]) {
            while is_overlay(mounted) {
                nix::mount::umount2(mounted, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                    .map_err(|err| Error::io("unmount", mounted)(err.into()))?;
            }
        }
        Ok(())
    }

    /// Bytes that the container has written to its root filesystem.
    pub(crate) fn writable_bytes(&self) -> u64 {
        // Unreadable is what a container that is being removed has.
        skiff_tree::measure(&self.upper()).map(|usage| usage.bytes).unwrap_or_default()
    }
}

/// Options of an overlay: its layers, the lowest first, and the directories of what is written, if anything may be. They are
/// named by path, or, if those are too long or hold a separator, by open descriptors.
fn overlay_options(layers: &[PathBuf], own: &[PathBuf]) -> io::Result<(String, Vec<OwnedFd>)> {
    let joined = |lower: &[String], own: &[String]| {
        let own = ["upperdir", "workdir"].iter().zip(own).map(|(name, path)| format!(",{name}={path}"));
        format!("lowerdir={}{}", lower.join(":"), own.collect::<String>())
    };
    let text = |paths: &mut dyn Iterator<Item = &PathBuf>| -> Vec<String> {
        paths.map(|path| path.to_string_lossy().into_owned()).collect()
    };
    let (lower, upper) = (text(&mut layers.iter().rev()), text(&mut own.iter()));
    let plain = lower.iter().chain(&upper).all(|path| !path.contains([':', ',', '\\', '\u{fffd}']));
    let options = joined(&lower, &upper);
    if plain && options.len() < MAX_OPTIONS_BYTES {
        return Ok((options, Vec::new()));
    }
    let mut held = Vec::new();
    let mut by_descriptor = |path: &PathBuf| -> io::Result<String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
        let name = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        held.push(descriptor);
        Ok(name)
    };
    let lower = layers.iter().rev().map(&mut by_descriptor).collect::<io::Result<Vec<_>>>()?;
    let own = own.iter().map(&mut by_descriptor).collect::<io::Result<Vec<_>>>()?;
    Ok((joined(&lower, &own), held))
}

fn is_overlay(path: &Path) -> bool {
    // OVERLAYFS_SUPER_MAGIC, in whatever integer type this platform's C library has for it.
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == 0x794c_7630)
}

/// A `Localhost` seccomp profile, in OCI's form.
pub(crate) fn read_seccomp(path: &Path) -> Result<LinuxSeccomp, String> {
    let failed = |err: &dyn std::fmt::Display| format!("cannot load seccomp profile {path:?}: {err}");
    let file = File::open(path).map_err(|err| failed(&err))?;
    serde_json::from_reader(file.take(MAX_FILE_BYTES)).map_err(|err| failed(&err))
}

/// Sources of mounts must be there: one that is missing is made, as containerd does. Any other trouble is told here:
/// runc's own message would not say whose source it is.
pub(crate) fn check_mounts(config: &ContainerConfig) -> Result<(), String> {
    for mount in config.mounts.iter().filter(|mount| mount.image.is_none()) {
        let made = match fs::metadata(&mount.host_path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(&mount.host_path)
            }
            found => found.map(drop),
        };
        made.map_err(|err| {
            format!("failed to stat {:?} to be mounted at {:?}: {err}", mount.host_path, mount.container_path)
        })?;
        if mount.propagation() != MountPropagation::PropagationPrivate {
            let mounts = fs::read_to_string("/proc/self/mountinfo");
            let mounts = mounts.map_err(|err| format!("cannot read the host's mounts: {err}"))?;
            let path = fs::canonicalize(&mount.host_path);
            let path = path.map_err(|err| format!("cannot resolve {:?}: {err}", mount.host_path))?;
            check_propagation(&path, mount.propagation(), &mounts)?;
        }
    }
    Ok(())
}

/// Mounts travel only over a mount that is shared, or to one that receives them. Asking for it elsewhere would have no effect.
fn check_propagation(path: &Path, wanted: MountPropagation, mountinfo: &str) -> Result<(), String> {
    let decode = |text: &str| text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    let point = |line: &str| Some(PathBuf::from(decode(line.split(' ').nth(4)?)));
    let lines = mountinfo.lines().filter_map(|line| Some((point(line)?, line)));
    // Of several at one place the last is the one that is seen.
    let own = lines
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| point.components().count());
    let (point, line) = own.ok_or_else(|| format!("path {path:?} is on no mount"))?;
    let has =
        |tag: &str| line.split(' ').skip(6).take_while(|field| *field != "-").any(|f| f.starts_with(tag));
    let lacks = match wanted {
        MountPropagation::PropagationBidirectional if !has("shared:") => "shared",
        MountPropagation::PropagationHostToContainer if !has("shared:") && !has("master:") => {
            "shared or slave"
        }
        _ => return Ok(()),
    };
    Err(format!("path {path:?} is mounted on {point:?} but it is not a {lacks} mount"))
}

impl Bundle {
    /// A writable directory for each `VOLUME` of the image, with what the image has there, as mounts for the container.
    /// Where the pod mounts something itself there is none. The root filesystem must be mounted.
    pub(crate) fn image_volumes<'a>(
        &self,
        volumes: impl Iterator<Item = &'a str>,
        mounts: &[Mount],
    ) -> Result<Vec<Mount>, Error> {
        let absolute = |path: &str| Path::new("/").join(path);
        let mut made = Vec::new();
        for (number, path) in volumes.enumerate() {
            let path = absolute(path);
            if path.components().any(|part| part == Component::ParentDir) || path == Path::new("/") {
                let detail = format!("the image's volume {path:?} is no directory below /");
                return Err(Error::Spec { id: self.id(), detail });
            }
            if mounts.iter().chain(&made).any(|mount| absolute(&mount.container_path) == path) {
                continue;
            }
            let directory = self.directory.join("volumes").join(number.to_string());
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
                .map_err(Error::io("set mode of", &directory))?;
            self.seed(&path, &directory).map_err(Error::io("fill the image's volume", &path))?;
            made.push(Mount {
                container_path: path.to_string_lossy().into_owned(),
                host_path: directory.to_string_lossy().into_owned(),
                ..Mount::default()
            });
        }
        Ok(made)
    }

    /// Copies what the image has at `path`, if that is a directory. A link of the image leads nowhere outside it.
    fn seed(&self, path: &Path, to: &Path) -> io::Result<()> {
        let root = File::open(self.rootfs())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            Ok(from) => Ok(skiff_tree::copy(from.as_fd(), to)?),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    fn id(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The devices that the container asks for; all of the host's for a privileged one.
pub(crate) fn devices(config: &ContainerConfig) -> Result<Vec<HostDevice>, String> {
    let mut devices = Vec::new();
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if security.is_some_and(|security| security.privileged) {
        collect(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut devices);
        return Ok(devices);
    }
    for device in &config.devices {
        let host = Path::new(&device.host_path);
        let metadata = fs::metadata(host).map_err(|err| format!("device {:?}: {err}", device.host_path))?;
        let path = if device.container_path.is_empty() { host } else { Path::new(&device.container_path) };
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if metadata.is_dir() {
            collect(host, path, permissions, 0, &mut devices);
        } else {
            let found = host_device(path, &metadata, permissions);
            devices.push(found.ok_or_else(|| format!("{:?} is not a device", device.host_path))?);
        }
    }
    Ok(devices)
}

fn collect(from: &Path, to: &Path, permissions: &str, depth: usize, devices: &mut Vec<HostDevice>) {
    // Every container has these of its own.
    const OWN: [&str; 7] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc"];
    if depth > MAX_DEVICE_DEPTH {
        return;
    }
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(metadata) = entry.metadata() else { continue };
        if depth == 0 && OWN.iter().any(|own| *own == name) {
            continue;
        }
        if metadata.is_dir() {
            collect(&entry.path(), &to.join(&name), permissions, depth + 1, devices);
        } else {
            devices.extend(host_device(&to.join(&name), &metadata, permissions));
        }
    }
}

fn host_device(path: &Path, metadata: &fs::Metadata, permissions: &str) -> Option<HostDevice> {
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    Some(HostDevice {
        path: path.to_owned(),
        is_block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "20 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
        30 20 8:2 / /var rw,noatime - ext4 /dev/b rw\n\
        31 30 8:3 / /var/a\\040b rw master:4 - ext4 /dev/c rw\n";

    #[test]
    fn mounts_that_could_not_travel_are_refused_and_say_where() {
        use MountPropagation::{PropagationBidirectional as Both, PropagationHostToContainer as In};
        let check = |path: &str, wanted| check_propagation(Path::new(path), wanted, MOUNTS);
        assert_eq!(check("/srv/x", Both), Ok(()));
        assert_eq!(check("/srv/x", In), Ok(()));
        assert_eq!(check("/var/a b/c", In), Ok(()));
        assert_eq!(
            check("/var/lib", Both).unwrap_err(),
            "path \"/var/lib\" is mounted on \"/var\" but it is not a shared mount"
        );
        assert_eq!(
            check("/var/lib", In).unwrap_err(),
            "path \"/var/lib\" is mounted on \"/var\" but it is not a shared or slave mount"
        );
        assert!(check("/var/a b/c", Both).is_err());
    }
}
