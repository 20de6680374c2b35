//! Which layers are below a mount, of whatever namespace.

use std::collections::HashSet;
use std::fs;
use std::io;

/// The mounts of all namespaces: those of an earlier process of this program may not be ours, those of a container never are.
pub(crate) struct Mounts(String);

impl Mounts {
    pub(crate) fn read() -> io::Result<Mounts> {
        let (mut namespaces, mut mounts) = (HashSet::new(), fs::read_to_string("/proc/self/mountinfo")?);
        for process in fs::read_dir("/proc")? {
            let process = process?.path();
            // Most of what is there is a process, and any of them may have ended meanwhile.
            let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
            if namespaces.insert(namespace)
                && let Ok(more) = fs::read_to_string(process.join("mountinfo"))
            {
                mounts.push_str(&more);
            }
        }
        Ok(Mounts(mounts))
    }

    /// Whether a mount names a layer, or is of it.
    pub(crate) fn name(&self, layer: &str) -> bool {
        let layer = format!("/{layer}");
        self.0.lines().any(|line| line.contains(&layer))
    }

    /// Whether there is an overlay that names its layers by descriptors, as those of many layers do: of these nobody can tell.
    pub(crate) fn are_in_part_unknown(&self) -> bool {
        self.0.lines().any(|line| line.contains(" overlay ") && line.contains("=/proc/self/fd/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_in_use_while_a_mount_names_it_or_might() {
        let overlay = "36 35 0:40 / /run/a/rootfs rw - overlay overlay rw,lowerdir=/s/layers/aa:/s/layers/bb,upperdir=/u,workdir=/w\n";
        let bind = "37 35 254:0 /s/layers/cc /run/volume ro - ext4 /dev/vda rw\n";
        let by_descriptor =
            "38 35 0:41 / /x rw - overlay overlay rw,lowerdir=/proc/self/fd/5:/proc/self/fd/6\n";
        let mounts = Mounts(format!("{overlay}{bind}"));
        for (name, in_use) in [("aa", true), ("bb", true), ("cc", true), ("dd", false)] {
            assert_eq!(mounts.name(name), in_use, "{name}");
        }
        assert!(!mounts.are_in_part_unknown());
        assert!(Mounts(by_descriptor.to_owned()).are_in_part_unknown());
    }
}
