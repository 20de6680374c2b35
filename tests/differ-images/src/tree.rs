//! A root file system as a container would see it, entry by entry, and in what two of them differ.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::build::digest;

/// Entries that one image may come to.
const MAX_ENTRIES: usize = 20_000;
const MAX_XATTR_BYTES: usize = 64 << 10;

/// Of what a directory lists and does not have.
const UNREACHABLE: &str = "";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub device: u64,
    /// Of a file.
    pub size: u64,
    pub content: String,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of its names, where it has several.
    pub same_as: Option<Vec<u8>>,
}

/// By path from the root, which is empty.
pub type Tree = BTreeMap<Vec<u8>, Node>;

pub fn walk(root: &Path) -> Result<Tree> {
    let (mut tree, mut ahead) = (Tree::new(), vec![Vec::new()]);
    let mut first_names: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    while let Some(path) = ahead.pop() {
        ensure!(tree.len() < MAX_ENTRIES, "more than {MAX_ENTRIES} entries in {}", root.display());
        let at = below(root, &path);
        let node = match node(&at) {
            Err(err) if is_missing(&err) => {
                // Listed and not there: a whiteout in a directory that only one layer has.
                tree.insert(path, Node::default());
                continue;
            }
            node => node.with_context(|| format!("looking at {}", at.display()))?,
        };
        if node.kind == "directory" {
            for entry in fs::read_dir(&at).with_context(|| format!("listing {}", at.display()))? {
                let name = entry?.file_name().into_vec();
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                ahead.push([&path[..], separator, &name].concat());
            }
        }
        tree.insert(path, node);
    }
    // In the order of the names, so that both sides call the same one the first.
    for (path, node) in tree.iter_mut().filter(|(_, node)| node.kind != UNREACHABLE) {
        let stat = fs::symlink_metadata(below(root, path))?;
        if node.kind != "directory" && stat.nlink() > 1 {
            let first = first_names.entry((stat.dev(), stat.ino())).or_insert_with(|| path.clone());
            node.same_as = (first != path).then(|| first.clone());
        }
    }
    Ok(tree)
}

fn is_missing(err: &anyhow::Error) -> bool {
    err.downcast_ref::<std::io::Error>().is_some_and(|err| err.kind() == std::io::ErrorKind::NotFound)
}

fn below(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

fn node(at: &Path) -> Result<Node> {
    let stat = fs::symlink_metadata(at)?;
    let file_type = stat.file_type();
    let kind = match () {
        () if file_type.is_dir() => "directory",
        () if file_type.is_file() => "file",
        () if file_type.is_symlink() => "symlink",
        () if file_type.is_char_device() => "char",
        () if file_type.is_block_device() => "block",
        () if file_type.is_fifo() => "fifo",
        () => "other",
    };
    let is_file = kind == "file";
    Ok(Node {
        kind,
        mode: stat.mode() & 0o7777,
        owner: (stat.uid(), stat.gid()),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        device: if matches!(kind, "char" | "block") { stat.rdev() } else { 0 },
        size: if is_file { stat.len() } else { 0 },
        content: if is_file { digest(&fs::read(at)?) } else { String::new() },
        target: if kind == "symlink" { fs::read_link(at)?.into_os_string().into_vec() } else { Vec::new() },
        xattrs: xattrs(at)?,
        same_as: None,
    })
}

fn xattrs(at: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    let mut names = vec![0; MAX_XATTR_BYTES];
    let n = match rustix::fs::llistxattr(path.as_c_str(), &mut names[..]) {
        Ok(n) => n,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(err) => return Err(err).context("listing extended attributes"),
    };
    let mut found = BTreeMap::new();
    for name in names[..n].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_XATTR_BYTES];
        let n = rustix::fs::lgetxattr(path.as_c_str(), std::ffi::OsStr::from_bytes(name), &mut value[..])
            .with_context(|| format!("reading {}", name.escape_ascii()))?;
        value.truncate(n);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// One thing in which two trees differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub path: String,
    pub what: &'static str,
    pub containerd: String,
    pub skiff: String,
}

/// What differs; `now_s` is when the first of them was begun.
pub fn differences(containerd: &Tree, skiff: &Tree, now_s: i64) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut paths: Vec<&Vec<u8>> = containerd.keys().chain(skiff.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let mut add = |what, containerd: String, skiff: String| {
            found.push(Difference { path: path.escape_ascii().to_string(), what, containerd, skiff });
        };
        let (a, b) = match (containerd.get(path), skiff.get(path)) {
            (Some(a), Some(b)) => (a, b),
            // containerd leaves whiteouts of what is not there, which only a listing shows.
            (Some(a), None) if a.kind == UNREACHABLE => continue,
            (a, b) => {
                let kind = |node: Option<&Node>| node.map_or("none", |node| node.kind).to_owned();
                add("there", kind(a), kind(b));
                continue;
            }
        };
        if a.kind != b.kind {
            add("kind", a.kind.to_owned(), b.kind.to_owned());
            continue;
        }
        if a.mode != b.mode {
            add("mode", format!("{:o}", a.mode), format!("{:o}", b.mode));
        }
        if a.owner != b.owner {
            add("owner", format!("{:?}", a.owner), format!("{:?}", b.owner));
        }
        // A directory that nothing says the time of has that of its making.
        let by_the_clock = a.kind == "directory" && a.mtime.0 >= now_s;
        if a.mtime != b.mtime && !by_the_clock {
            add("mtime", format!("{:?}", a.mtime), format!("{:?}", b.mtime));
        }
        if a.device != b.device {
            add("device", a.device.to_string(), b.device.to_string());
        }
        if (a.size, &a.content) != (b.size, &b.content) {
            add("content", format!("{} bytes", a.size), format!("{} bytes", b.size));
        }
        if a.target != b.target {
            add("target", a.target.escape_ascii().to_string(), b.target.escape_ascii().to_string());
        }
        if a.xattrs != b.xattrs {
            add("xattrs", named(&a.xattrs), named(&b.xattrs));
        }
        if a.same_as != b.same_as {
            let name = |of: &Option<Vec<u8>>| {
                of.as_ref().map_or("none".into(), |name| name.escape_ascii().to_string())
            };
            add("hard link", name(&a.same_as), name(&b.same_as));
        }
    }
    found
}

fn named(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let one =
        |(name, value): (&Vec<u8>, &Vec<u8>)| format!("{}={}", name.escape_ascii(), value.escape_ascii());
    xattrs.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Tree {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        fs::hard_link(directory.path().join(files[0].0), directory.path().join("link")).unwrap();
        walk(directory.path()).unwrap()
    }

    #[test]
    fn every_difference_is_seen_and_none_where_there_is_none() {
        let (one, other) = (of(&[("a", "1"), ("b", "2")]), of(&[("a", "1"), ("c", "2")]));
        assert_eq!(one[&b"link"[..]].same_as, Some(b"a".to_vec()));
        assert_eq!(differences(&one, &one.clone(), i64::MAX), []);
        let what = |what: &str| differences(&one, &other, i64::MAX).iter().filter(|d| d.what == what).count();
        assert_eq!(what("there"), 2);
        let mut changed = one.clone();
        if let Some(node) = changed.get_mut(&b"b"[..]) {
            (node.mode, node.owner, node.same_as) = (0o777, (1, 2), Some(b"a".to_vec()));
            node.xattrs.insert(b"user.x".to_vec(), Vec::new());
        }
        let found: Vec<_> = differences(&one, &changed, i64::MAX).iter().map(|found| found.what).collect();
        assert_eq!(found, ["mode", "owner", "xattrs", "hard link"]);
    }
}
