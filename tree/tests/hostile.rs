//! Trees as a hostile container makes them. Needs root, for mounts and owners.
#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use skiff_tree::{Descend, Entry, Visitor};

const DEPTH: usize = 60_000;

fn open(path: &Path) -> OwnedFd {
    skiff_tree::open_root(path).unwrap()
}

/// `depth` directories in each other, with a file beside each thousandth, far past what a path can name.
fn nest(top: &Path, depth: usize) {
    let mut at = open(top);
    for level in 0..depth {
        mkdirat(&at, c"d", Mode::RWXU).unwrap();
        if level % 1000 == 0 {
            openat(&at, c"f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        }
        at = openat(&at, c"d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}

fn n_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A tmpfs of this test's own: a disk would take minutes for a hundred thousand directories. Goes with the test.
struct Scratch(tempfile::TempDir);

fn scratch() -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    Scratch(dir)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs `work` in a process of its own kind of poverty: a thread with a small stack.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(256 * 1024).spawn(work).unwrap().join().unwrap();
}

#[derive(Default)]
struct Count {
    n_entered: usize,
    n_left: usize,
    n_files: usize,
    most_descriptors: usize,
}

impl Visitor for Count {
    fn enter(&mut self, _entry: Entry<'_>) -> std::io::Result<Descend> {
        self.n_entered += 1;
        if self.n_entered.is_multiple_of(997) {
            self.most_descriptors = self.most_descriptors.max(n_descriptors());
        }
        Ok(Descend::Into)
    }

    fn leave(&mut self, _parent: std::os::fd::BorrowedFd<'_>, _name: &std::ffi::CStr) -> std::io::Result<()> {
        self.n_left += 1;
        Ok(())
    }

    fn file(&mut self, _entry: Entry<'_>) -> std::io::Result<()> {
        self.n_files += 1;
        Ok(())
    }
}

#[test]
fn sixty_thousand_nested_directories_are_walked_measured_copied_and_removed() {
    let scratch = scratch();
    let (from, to) = (scratch.0.path().join("from"), scratch.0.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    nest(&from, DEPTH);
    on_a_small_stack(move || {
        let mut count = Count::default();
        let before = n_descriptors();
        skiff_tree::walk(open(&from), &mut count).unwrap();
        assert_eq!((count.n_entered, count.n_left, count.n_files), (DEPTH, DEPTH, DEPTH / 1000));
        // Other tests of this process have theirs open.
        assert!(count.most_descriptors < before + 200, "{} descriptors", count.most_descriptors);
        let usage = skiff_tree::measure(&from).unwrap();
        assert_eq!(usage.n_inodes, (DEPTH + DEPTH / 1000 + 1) as u64);
        assert!(!usage.is_partial);
        skiff_tree::copy(open(&from).as_fd(), &to).unwrap();
        assert_eq!(skiff_tree::measure(&to).unwrap().n_inodes, usage.n_inodes);
        for tree in [&from, &to] {
            skiff_tree::remove(tree).unwrap();
            assert!(tree.symlink_metadata().is_err());
        }
    });
}

#[test]
fn a_wide_tree_of_deep_branches_is_walked_and_removed_whole() {
    let scratch = scratch();
    let top = scratch.0.path().join("top");
    fs::create_dir(&top).unwrap();
    // Names that the removal would itself take.
    fs::create_dir(top.join(".removing-0")).unwrap();
    File::create(top.join(".removing-1")).unwrap();
    for branch in 0..1500 {
        let branch = top.join(format!("branch-{branch}"));
        fs::create_dir(&branch).unwrap();
        nest(&branch, 40);
    }
    let mut count = Count::default();
    skiff_tree::walk(open(&top), &mut count).unwrap();
    assert_eq!((count.n_entered, count.n_left, count.n_files), (1500 * 41 + 1, 1500 * 41 + 1, 1501));
    skiff_tree::remove(&top).unwrap();
    assert!(!top.exists());
    skiff_tree::remove(&top).unwrap();
}

#[test]
fn links_are_removed_and_counted_but_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
    fs::create_dir_all(top.join("d")).unwrap();
    fs::create_dir_all(outside.join("kept")).unwrap();
    for name in ["link", "d/link"] {
        symlink(&outside, top.join(name)).unwrap();
    }
    symlink("/proc/self/root", top.join("magic")).unwrap();
    assert_eq!(skiff_tree::measure(&top).unwrap().n_inodes, 5);
    skiff_tree::remove(&top).unwrap();
    assert!(outside.join("kept").is_dir());
    // A link is removed itself, not what it names.
    symlink(&outside, &top).unwrap();
    assert!(skiff_tree::measure(&top).is_err());
    skiff_tree::remove(&top).unwrap();
    assert!(outside.join("kept").is_dir() && top.symlink_metadata().is_err());
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn what_is_mounted_in_a_tree_is_neither_removed_nor_entered_though_it_is_the_same_device() {
    let dir = tempfile::tempdir().unwrap();
    let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
    let point = top.join("a/point");
    fs::create_dir_all(&point).unwrap();
    fs::create_dir_all(outside.join("kept")).unwrap();
    File::create(top.join("file")).unwrap();
    rustix::mount::mount_bind(&outside, &point).unwrap();
    let mounted = Mounted(point);
    let mut count = Count::default();
    skiff_tree::walk(open(&top), &mut count).unwrap();
    assert_eq!(count.n_entered, 2, "a and the mount point, not what is mounted");
    let error = skiff_tree::remove(&top).unwrap_err().to_string();
    assert!(error.contains("point"), "{error}");
    assert!(outside.join("kept").is_dir(), "what is mounted stays");
    assert!(!top.join("file").exists(), "all else is removed");
    drop(mounted);
    skiff_tree::remove(&top).unwrap();
    assert!(outside.join("kept").is_dir());
}

#[test]
fn a_deep_mount_is_not_removed_when_its_directory_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
    let point = (0..50).fold(top.clone(), |path, _| path.join("d"));
    fs::create_dir_all(&point).unwrap();
    fs::create_dir_all(outside.join("kept")).unwrap();
    rustix::mount::mount_bind(&outside, &point).unwrap();
    assert!(skiff_tree::remove(&top).is_err());
    assert!(outside.join("kept").is_dir());
    // It has another path now: the table knows it.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mine = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|p| p.starts_with(top.to_str().unwrap()));
    drop(Mounted(mine.unwrap().into()));
    skiff_tree::remove(&top).unwrap();
    assert!(outside.join("kept").is_dir());
}

#[test]
fn a_file_with_many_names_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("0"), vec![1; 300_000]).unwrap();
    let once = skiff_tree::measure(dir.path()).unwrap();
    for name in 1..7 {
        fs::hard_link(dir.path().join("0"), dir.path().join(name.to_string())).unwrap();
    }
    let many = skiff_tree::measure(dir.path()).unwrap();
    assert_eq!((many.n_inodes, many.bytes), (once.n_inodes, once.bytes));
}

/// Moves the directory that the walk is in to elsewhere in the tree.
struct Mover {
    top: PathBuf,
    n_entered: usize,
    was_lost: bool,
}

impl Visitor for Mover {
    fn enter(&mut self, _entry: Entry<'_>) -> std::io::Result<Descend> {
        self.n_entered += 1;
        if self.n_entered == 45 {
            // The upper end of the way back is cut off and hung elsewhere.
            fs::rename(self.top.join("d/d"), self.top.join("moved"))?;
        }
        Ok(Descend::Into)
    }

    fn lost(&mut self, _why: skiff_tree::Lost) -> std::io::Result<()> {
        self.was_lost = true;
        Ok(())
    }
}

#[test]
fn a_walk_whose_way_back_was_moved_says_so_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    nest(dir.path(), 50);
    let mut mover = Mover { top: dir.path().to_owned(), n_entered: 0, was_lost: false };
    skiff_tree::walk(open(dir.path()), &mut mover).unwrap();
    assert!(mover.was_lost);
    let mut strict = Strict(dir.path().to_owned(), 0);
    fs::rename(dir.path().join("moved"), dir.path().join("d/d")).unwrap();
    let error = skiff_tree::walk(open(dir.path()), &mut strict).unwrap_err().to_string();
    assert!(error.contains("moved meanwhile"), "{error}");
}

/// As [`Mover`], but what is left out is an error.
struct Strict(PathBuf, usize);

impl Visitor for Strict {
    fn enter(&mut self, _entry: Entry<'_>) -> std::io::Result<Descend> {
        self.1 += 1;
        if self.1 == 45 {
            fs::rename(self.0.join("d/d"), self.0.join("moved"))?;
        }
        Ok(Descend::Into)
    }
}

#[test]
fn a_copy_keeps_owners_modes_times_links_and_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("d/e")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("d/f"), "text").unwrap();
    symlink("../nowhere", from.join("d/link")).unwrap();
    let file = from.join("d/f");
    std::os::unix::fs::chown(&file, Some(7), Some(8)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(from.join("d"), Some(9), Some(10)).unwrap();
    fs::set_permissions(from.join("d"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o2750)).unwrap();
    rustix::fs::mknodat(
        open(&from.join("d")),
        c"pipe",
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    let attribute = CString::new("security.capability").unwrap();
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&file, &attribute, &value, rustix::fs::XattrFlags::empty()).unwrap();
    skiff_tree::copy(open(&from).as_fd(), &to).unwrap();
    for name in ["", "d", "d/e", "d/f", "d/link", "d/pipe"] {
        let (a, b) = (from.join(name).symlink_metadata().unwrap(), to.join(name).symlink_metadata().unwrap());
        assert_eq!(
            (a.mode(), a.uid(), a.gid(), a.mtime()),
            (b.mode(), b.uid(), b.gid(), b.mtime()),
            "{name:?}"
        );
    }
    assert_eq!(fs::read_to_string(to.join("d/f")).unwrap(), "text");
    assert_eq!(fs::read_link(to.join("d/link")).unwrap(), Path::new("../nowhere"));
    let mut copied = [0; 20];
    rustix::fs::getxattr(to.join("d/f"), &attribute, &mut copied[..]).unwrap();
    assert_eq!(copied, value);
}
