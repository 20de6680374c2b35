//! Hostile and ordinary layers. Needs root: owners and devices are kept.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tar::EntryType;

use super::*;

/// An entry written without any of the checks that the `tar` crate makes.
fn raw(archive: &mut Vec<u8>, kind: EntryType, path: &str, link: &str, content: &[u8]) {
    let mut header = Header::new(kind, path, link, content.len() as u64);
    header.0.set_cksum();
    archive.extend_from_slice(header.0.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

struct Header(tar::Header);

impl Header {
    fn new(kind: EntryType, path: &str, link: &str, size: u64) -> Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        header.set_size(size);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        Header(header)
    }
}

fn pax(archive: &mut Vec<u8>, records: &[(&str, &[u8])]) {
    let mut content = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let length = (1..=9).map(|digits| body + digits).find(|n| n.to_string().len() == n - body).unwrap();
        content.extend_from_slice(format!("{length} {key}=").as_bytes());
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    raw(archive, EntryType::XHeader, "pax", "", &content);
}

struct Unpacked {
    directory: tempfile::TempDir,
    result: Result<LayerSize, PullCause>,
}

fn unpacked_with(archive: &[u8], caps: &Caps) -> Unpacked {
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    fs::write(&blob, archive).unwrap();
    let into = directory.path().join("layer");
    fs::create_dir(&into).unwrap();
    let result = unpack(&blob, &Digest::of(archive), &into, caps);
    Unpacked { directory, result }
}

fn unpacked(archive: &[u8]) -> Unpacked {
    unpacked_with(archive, &Caps::default())
}

impl Unpacked {
    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.directory.path().join("layer").join(path)).unwrap()
    }

    fn refused(&self) -> String {
        assert_eq!(fs::read_dir(self.directory.path()).unwrap().count(), 2, "nothing beside blob and layer");
        self.result.as_ref().unwrap_err().to_string()
    }
}

#[test]
fn no_name_or_link_leaves_the_layer() {
    for (kind, path, link) in [
        (EntryType::Regular, "../evil", ""),
        (EntryType::Regular, "a/../../evil", ""),
        (EntryType::Link, "evil", "../blob"),
        (EntryType::Link, "evil", "/etc/../../blob"),
        (EntryType::Directory, "..", ""),
        (EntryType::Regular, ".wh..", ""),
        (EntryType::Regular, ".wh...", ""),
        (EntryType::Regular, ".wh.", ""),
    ] {
        let mut archive = Vec::new();
        raw(&mut archive, kind, path, link, b"");
        unpacked(&archive).refused();
    }
}

#[test]
fn a_symbolic_link_is_never_walked_through() {
    for target in ["..", "/", "/proc/self/root", "a"] {
        for (kind, path, link) in [
            (EntryType::Regular, "link/evil", ""),
            (EntryType::Directory, "link/evil", ""),
            (EntryType::Regular, "link/.wh.blob", ""),
            (EntryType::Regular, "link/.wh..wh..opq", ""),
            (EntryType::Link, "hard", "link/blob"),
        ] {
            let mut archive = Vec::new();
            raw(&mut archive, EntryType::Directory, "a", "", b"");
            raw(&mut archive, EntryType::Symlink, "link", target, b"");
            raw(&mut archive, kind, path, link, b"");
            let refused = unpacked(&archive).refused();
            assert!(refused.contains("link"), "{refused}");
        }
    }
}

#[test]
fn a_file_replaces_a_link_instead_of_writing_through_it() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Symlink, "link", "../blob", b"");
    raw(&mut archive, EntryType::Regular, "link", "", b"new");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    assert!(unpacked.stat("link").is_file());
    assert_eq!(fs::read(unpacked.directory.path().join("blob")).unwrap(), archive);
}

#[test]
fn absolute_names_are_inside_the_layer() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "/etc/./passwd", "", b"x");
    assert!(unpacked(&archive).stat("etc/passwd").is_file());
}

#[test]
fn owner_mode_times_devices_and_links_are_kept() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Directory, "d", "", b"");
    raw(&mut archive, EntryType::Regular, "d/f", "", b"hello");
    raw(&mut archive, EntryType::Link, "d/h", "d/f", b"");
    raw(&mut archive, EntryType::Symlink, "d/s", "/nowhere", b"");
    raw(&mut archive, EntryType::Char, "d/null", "", b"");
    let unpacked = unpacked(&archive);
    assert_eq!(unpacked.result.as_ref().unwrap().n_entries, 5);
    let file = unpacked.stat("d/f");
    assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o7777), (7, 8, 0o755));
    assert_eq!((file.mtime(), file.ino()), (1000, unpacked.stat("d/h").ino()));
    assert_eq!(unpacked.stat("d").mtime(), 1000);
    assert!(unpacked.stat("d/s").is_symlink());
    let null = unpacked.stat("d/null");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "d/.wh.gone", "", b"");
    raw(&mut archive, EntryType::Regular, "o/.wh..wh..opq", "", b"");
    raw(&mut archive, EntryType::Regular, ".wh..wh.plnk", "", b"");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    let gone = unpacked.stat("d/gone");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 1];
    let opaque = unpacked.directory.path().join("layer/o");
    assert_eq!(rustix::fs::getxattr(&opaque, "trusted.overlay.opaque", &mut value).unwrap(), 1);
    assert_eq!(&value, b"y");
}

#[test]
fn only_harmless_attributes_are_kept() {
    let mut archive = Vec::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    pax(
        &mut archive,
        &[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("mtime", b"5.25"),
            ("path", b"a/long/name"),
        ],
    );
    raw(&mut archive, EntryType::Regular, "short", "", b"");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    let file = unpacked.directory.path().join("layer/a/long/name");
    let mut value = [0; 32];
    assert_eq!(rustix::fs::getxattr(&file, "security.capability", &mut value).unwrap(), 20);
    assert!(rustix::fs::getxattr(&file, "trusted.overlay.redirect", &mut value).is_err());
    assert_eq!(
        (unpacked.stat("a/long/name").mtime(), unpacked.stat("a/long/name").mtime_nsec()),
        (5, 250_000_000)
    );
}

#[test]
fn bombs_are_stopped() {
    let mut archive = Vec::new();
    for i in 0..20 {
        raw(&mut archive, EntryType::Regular, &format!("f{i}"), "", &[0; 1000]);
    }
    let few = Caps { layer_entries: 10, ..Caps::default() };
    assert!(unpacked_with(&archive, &few).refused().contains("too many entries"));
    let small = Caps { layer_bytes: 5000, ..Caps::default() };
    assert!(unpacked_with(&archive, &small).refused().contains("too large"));

    let mut claims = Vec::new();
    let mut header = Header::new(EntryType::XHeader, "x", "", 1 << 40);
    header.0.set_cksum();
    claims.extend_from_slice(header.0.as_bytes());
    assert!(unpacked(&claims).refused().contains("too large"));
}

#[test]
fn damage_is_noticed() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "f", "", b"hello");
    let mut flipped = archive.clone();
    flipped[0] ^= 1;
    assert!(unpacked(&flipped).refused().contains("checksum"));
    assert!(unpacked(&archive[..514]).result.is_err());
    assert!(unpacked(&archive[..100]).result.is_err());

    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("blob"), &archive).unwrap();
    let into = directory.path().join("layer");
    fs::create_dir(&into).unwrap();
    let wrong = unpack(&directory.path().join("blob"), &Digest::of(b"other"), &into, &Caps::default());
    assert!(matches!(wrong, Err(PullCause::WrongDigest { .. })));
}

#[test]
fn every_compression_is_recognised_by_its_bytes() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "f", "", b"hello");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &archive).unwrap();
    for blob in [gzip.finish().unwrap(), zstd::encode_all(archive.as_slice(), 1).unwrap()] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("blob"), blob).unwrap();
        let into = directory.path().join("layer");
        fs::create_dir(&into).unwrap();
        unpack(&directory.path().join("blob"), &Digest::of(&archive), &into, &Caps::default()).unwrap();
        assert_eq!(fs::read(into.join("f")).unwrap(), b"hello");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048)) {
        let _any_answer = unpacked(&bytes).result;
    }
}
