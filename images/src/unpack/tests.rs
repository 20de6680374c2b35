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
    let result = unpack(&blob, &Digest::of(archive), &into, &[], caps);
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
fn a_symbolic_link_leads_to_where_it_does_in_a_container_and_never_out() {
    for (target, inside) in [
        ("..", ""),
        ("/", ""),
        ("../../../..", ""),
        ("/proc/self/root", "proc/self/root/"),
        ("a", "a/"),
        ("./x/../a/.", "a/"),
        ("/a", "a/"),
        ("link2", "a/"),
        ("/no/such/place", "no/such/place/"),
    ] {
        let mut archive = Vec::new();
        raw(&mut archive, EntryType::Directory, "a", "", b"");
        raw(&mut archive, EntryType::Symlink, "link2", "/../a", b"");
        raw(&mut archive, EntryType::Symlink, "link", target, b"");
        raw(&mut archive, EntryType::Regular, "link/file", "", b"x");
        raw(&mut archive, EntryType::Directory, "link/d", "", b"");
        raw(&mut archive, EntryType::Link, "hard", "link/file", b"");
        let unpacked = unpacked(&archive);
        unpacked.result.as_ref().unwrap_or_else(|err| panic!("{target}: {err}"));
        let beside = fs::read_dir(unpacked.directory.path()).unwrap().count();
        assert_eq!(beside, 2, "{target}: nothing beside blob and layer");
        assert!(unpacked.stat("link").is_symlink());
        assert_eq!(unpacked.stat(&format!("{inside}file")).ino(), unpacked.stat("hard").ino(), "{target}");
        assert!(unpacked.stat(&format!("{inside}d")).is_dir(), "{target}");
        assert_eq!(unpacked.stat(&format!("{inside}d")).mtime(), 1000, "{target}");
    }
}

#[test]
fn links_that_lead_nowhere_but_to_each_other_are_refused() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Symlink, "a", "b", b"");
    raw(&mut archive, EntryType::Symlink, "b", "a", b"");
    raw(&mut archive, EntryType::Regular, "a/file", "", b"x");
    assert!(unpacked(&archive).refused().contains("symbolic link"));
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "file", "", b"x");
    raw(&mut archive, EntryType::Symlink, "link", "file", b"");
    raw(&mut archive, EntryType::Regular, "link/inside", "", b"x");
    unpacked(&archive).refused();
}

/// A layer on top of others, the lowest first.
fn unpacked_on(lower: &[Vec<u8>], archive: &[u8]) -> Unpacked {
    let directory = tempfile::tempdir().unwrap();
    let mut below = Vec::new();
    for (at, archive) in lower.iter().chain([&archive.to_vec()]).enumerate() {
        let blob = directory.path().join(format!("blob{at}"));
        fs::write(&blob, archive).unwrap();
        let into =
            directory.path().join(if at == lower.len() { "layer".into() } else { format!("lower{at}") });
        fs::create_dir(&into).unwrap();
        let result = unpack(&blob, &Digest::of(archive), &into, &below, &Caps::default());
        if at == lower.len() {
            return Unpacked { directory, result };
        }
        result.unwrap();
        below.insert(0, into);
    }
    unreachable!("the layer itself is the last");
}

fn directory(archive: &mut Vec<u8>, path: &str, mode: u32, owner: u64) {
    let mut header = Header::new(EntryType::Directory, path, "", 0);
    header.0.set_mode(mode);
    header.0.set_uid(owner);
    header.0.set_gid(owner + 1);
    header.0.set_cksum();
    archive.extend_from_slice(header.0.as_bytes());
}

#[test]
fn a_directory_without_an_entry_is_as_the_layers_below_have_it() {
    let (mut lowest, mut middle, mut upper) = (Vec::new(), Vec::new(), Vec::new());
    directory(&mut lowest, "tmp", 0o1777, 0);
    directory(&mut lowest, "srv", 0o2770, 33);
    directory(&mut lowest, "srv/a", 0o700, 33);
    directory(&mut lowest, "gone", 0o700, 33);
    directory(&mut lowest, "hidden", 0o700, 33);
    directory(&mut lowest, "hidden/in", 0o711, 33);
    raw(&mut lowest, EntryType::Symlink, "lib", "usr/lib", b"");
    raw(&mut lowest, EntryType::Regular, "usr/lib/old", "", b"x");
    directory(&mut middle, "srv", 0o750, 44);
    raw(&mut middle, EntryType::Regular, ".wh.gone", "", b"");
    raw(&mut middle, EntryType::Regular, "hidden/.wh..wh..opq", "", b"");
    raw(&mut upper, EntryType::Regular, "tmp/marker", "", b"m");
    raw(&mut upper, EntryType::Regular, "srv/a/b/new", "", b"n");
    raw(&mut upper, EntryType::Regular, "gone/x", "", b"x");
    raw(&mut upper, EntryType::Regular, "hidden/in/x", "", b"x");
    raw(&mut upper, EntryType::Regular, "lib/so", "", b"x");
    raw(&mut upper, EntryType::Regular, "lib/.wh.old", "", b"");
    let unpacked = unpacked_on(&[lowest, middle], &upper);
    unpacked.result.as_ref().unwrap();
    let of = |path: &str| {
        let stat = unpacked.stat(path);
        (stat.permissions().mode() & 0o7777, stat.uid(), stat.gid())
    };
    assert_eq!(of("tmp"), (0o1777, 0, 1), "of the lowest, through one that does not have it");
    assert_eq!(of("srv"), (0o750, 44, 45), "of the highest that has it");
    assert_eq!(of("srv/a"), (0o700, 33, 34));
    assert_eq!(of("srv/a/b"), (0o755, 0, 0), "that nobody has");
    assert_eq!(of("gone"), (0o755, 0, 0), "removed in between");
    assert_eq!(of("hidden"), (0o700, 33, 34), "of the layer that hides what is in it");
    assert_eq!(of("hidden/in"), (0o755, 0, 0), "hidden in between");
    assert!(unpacked.stat("usr/lib/so").is_file(), "through a link of a lower layer");
    assert!(unpacked.stat("usr/lib/old").file_type().is_char_device(), "hidden through the link");
    assert_eq!(unpacked.stat("tmp").mtime(), 1000);
}

#[test]
fn a_layer_that_only_removes_leaves_the_directory_as_it_is() {
    let (mut lower, mut upper) = (Vec::new(), Vec::new());
    directory(&mut lower, "home", 0o750, 1000);
    raw(&mut upper, EntryType::Regular, "home/.wh.x", "", b"");
    let unpacked = unpacked_on(&[lower], &upper);
    let home = unpacked.stat("home");
    assert_eq!((home.permissions().mode() & 0o7777, home.uid()), (0o750, 1000));
}

#[test]
fn directories_that_the_archive_leaves_out_count_as_entries() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, &format!("{}f", "d/".repeat(40)), "", b"");
    let caps = Caps { layer_entries: 20, ..Caps::default() };
    assert!(unpacked_with(&archive, &caps).refused().contains("too many entries"));
}

#[test]
fn what_a_header_says_of_the_size_of_a_link_or_directory_is_not_believed() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "orig", "", &[b'd'; 4000]);
    for (kind, path, link) in [
        (EntryType::Link, "hard", "orig"),
        (EntryType::Directory, "dir", ""),
        (EntryType::Symlink, "soft", "orig"),
        (EntryType::Fifo, "fifo", ""),
        (EntryType::Char, "null", ""),
    ] {
        let mut header = Header::new(kind, path, link, 4000);
        header.0.set_cksum();
        archive.extend_from_slice(header.0.as_bytes());
    }
    raw(&mut archive, EntryType::Regular, "after", "", b"AFTER");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    assert_eq!(fs::read(unpacked.directory.path().join("layer/after")).unwrap(), b"AFTER");
    assert_eq!((unpacked.stat("hard").len(), unpacked.stat("dir").is_dir()), (4000, true));
}

/// What a file of 10,000 bytes with two stretches of content is in one form.
fn sparse(form: &str) -> Vec<u8> {
    let content = [&b"a"[..], &[b'x'; 511], b"HELLO"].concat();
    let mut archive = Vec::new();
    let size: &[u8] = b"10000";
    match form {
        "0.0" => {
            let records: &[(&str, &[u8])] = &[
                ("GNU.sparse.size", size),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"1024"),
                ("GNU.sparse.numbytes", b"512"),
                ("GNU.sparse.offset", b"9000"),
                ("GNU.sparse.numbytes", b"5"),
            ];
            pax(&mut archive, records);
            raw(&mut archive, EntryType::Regular, "sp", "", &content);
        }
        "0.1" => {
            let records: &[(&str, &[u8])] = &[
                ("GNU.sparse.size", size),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.name", b"sp"),
                ("GNU.sparse.map", b"1024,512,9000,5"),
            ];
            pax(&mut archive, records);
            raw(&mut archive, EntryType::Regular, "GNUSparseFile.0/sp", "", &content);
        }
        "1.0" => {
            let records: &[(&str, &[u8])] = &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"sp"),
                ("GNU.sparse.realsize", size),
            ];
            pax(&mut archive, records);
            let mut with_map = b"2\n1024\n512\n9000\n5\n".to_vec();
            with_map.resize(512, 0);
            with_map.extend_from_slice(&content);
            raw(&mut archive, EntryType::Regular, "GNUSparseFile.0/sp", "", &with_map);
        }
        _ => {
            let mut header = Header::new(EntryType::GNUSparse, "sp", "", content.len() as u64);
            let bytes = header.0.as_mut_bytes();
            for (at, number) in [(386, 1024), (398, 512), (410, 9000), (422, 5), (483, 10_000)] {
                bytes[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
            }
            header.0.set_cksum();
            archive.extend_from_slice(header.0.as_bytes());
            archive.extend_from_slice(&content);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
    }
    raw(&mut archive, EntryType::Regular, "after", "", b"AFTER");
    archive
}

#[test]
fn files_stored_without_their_holes_are_whole_in_every_form() {
    let mut wanted = vec![0; 10_000];
    wanted[1024..1536].fill(b'x');
    wanted[1024] = b'a';
    wanted[9000..9005].copy_from_slice(b"HELLO");
    for form in ["0.0", "0.1", "1.0", "gnu"] {
        let unpacked = unpacked(&sparse(form));
        unpacked.result.as_ref().unwrap_or_else(|err| panic!("{form}: {err}"));
        let layer = unpacked.directory.path().join("layer");
        assert!(fs::read(layer.join("sp")).unwrap() == wanted, "{form}");
        assert_eq!(fs::read(layer.join("after")).unwrap(), b"AFTER", "{form}");
        assert!(!layer.join("GNUSparseFile.0").exists(), "{form}");
    }
}

#[test]
fn a_sparse_map_that_does_not_fit_is_refused() {
    let maps: [&[u8]; 7] = [
        b"0,517,0,0,1",
        b"x",
        b"600,517,500,0",
        b"9999,517",
        b"0,516",
        b"18446744073709551615,517",
        b"0,517,1,1",
    ];
    for map in maps {
        let mut archive = Vec::new();
        pax(&mut archive, &[("GNU.sparse.size", b"10000"), ("GNU.sparse.map", map)]);
        raw(&mut archive, EntryType::Regular, "sp", "", &[b'x'; 517]);
        unpacked(&archive).refused();
    }
    let mut archive = Vec::new();
    pax(
        &mut archive,
        &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")],
    );
    raw(&mut archive, EntryType::Regular, "sp", "", b"x");
    assert!(unpacked(&archive).refused().contains("form"));
    // Holes count as what they would take.
    let mut archive = Vec::new();
    pax(&mut archive, &[("GNU.sparse.size", b"1000000"), ("GNU.sparse.map", b"0,1")]);
    raw(&mut archive, EntryType::Regular, "sp", "", b"x");
    let caps = Caps { layer_bytes: 100_000, ..Caps::default() };
    assert!(unpacked_with(&archive, &caps).refused().contains("too large"));
}

#[test]
fn a_whiteout_of_what_is_not_there_leaves_nothing_behind() {
    let (mut lower, mut upper) = (Vec::new(), Vec::new());
    raw(&mut lower, EntryType::Regular, "d/x", "", b"x");
    raw(&mut upper, EntryType::Regular, "d/.wh..wh..opq", "", b"");
    for name in ["d/.wh.x", "d/.wh.y", "own/.wh.z", ".wh.w"] {
        raw(&mut upper, EntryType::Regular, name, "", b"");
    }
    let unpacked = unpacked_on(&[lower], &upper);
    unpacked.result.as_ref().unwrap();
    let listed =
        |path: &str| fs::read_dir(unpacked.directory.path().join("layer").join(path)).unwrap().count();
    // Overlayfs would list whiteouts of a directory that only one layer has.
    assert_eq!((listed("d"), listed("own"), listed("")), (0, 0, 2));
}

#[test]
fn what_a_hard_link_says_of_its_file_holds_for_the_file() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "file", "", b"x");
    raw(&mut archive, EntryType::Symlink, "soft", "nowhere", b"");
    raw(&mut archive, EntryType::Fifo, "pipe", "", b"");
    for (name, target) in [("link", "file"), ("link-to-soft", "soft"), ("link-to-pipe", "pipe")] {
        let mut header = Header::new(EntryType::Link, name, target, 0);
        header.0.set_mode(0o4711);
        header.0.set_uid(70);
        header.0.set_mtime(2000);
        header.0.set_cksum();
        archive.extend_from_slice(header.0.as_bytes());
    }
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    for (name, mode) in [("file", Some(0o4711)), ("soft", None), ("pipe", Some(0o4711))] {
        let stat = unpacked.stat(name);
        assert_eq!((stat.uid(), stat.gid(), stat.mtime(), stat.nlink()), (70, 8, 2000, 2), "{name}");
        assert!(mode.is_none_or(|mode| stat.permissions().mode() & 0o7777 == mode), "{name}");
    }
}

#[test]
fn the_mode_of_a_directory_without_an_entry_is_not_that_of_where_it_is_made() {
    let mut archive = Vec::new();
    directory(&mut archive, "d", 0o2775, 0);
    raw(&mut archive, EntryType::Regular, "d/e/f", "", b"x");
    assert_eq!(unpacked(&archive).stat("d/e").permissions().mode() & 0o7777, 0o755);
}

#[test]
fn devices_and_pipes_keep_all_bits_of_their_mode() {
    let mut archive = Vec::new();
    for (kind, name) in [(EntryType::Char, "char"), (EntryType::Block, "block"), (EntryType::Fifo, "fifo")] {
        let mut header = Header::new(kind, name, "", 0);
        header.0.set_mode(0o6711);
        header.0.set_cksum();
        archive.extend_from_slice(header.0.as_bytes());
    }
    let unpacked = unpacked(&archive);
    for name in ["char", "block", "fifo"] {
        assert_eq!(unpacked.stat(name).permissions().mode() & 0o7777, 0o6711, "{name}");
    }
}

#[test]
fn a_directory_gives_way_with_what_is_in_it_and_a_file_of_a_lower_layer_to_a_directory() {
    let (mut lower, mut upper) = (Vec::new(), Vec::new());
    raw(&mut lower, EntryType::Regular, "a", "", b"x");
    raw(&mut upper, EntryType::Regular, "a/b/c", "", b"x");
    directory(&mut upper, "d", 0o755, 0);
    raw(&mut upper, EntryType::Regular, "d/e/f", "", b"x");
    raw(&mut upper, EntryType::Symlink, "d/out", "/", b"");
    raw(&mut upper, EntryType::Regular, "d", "", b"file");
    let unpacked = unpacked_on(&[lower], &upper);
    unpacked.result.as_ref().unwrap();
    assert!(unpacked.stat("a/b/c").is_file());
    assert_eq!((unpacked.stat("d").len(), unpacked.stat("d").mtime()), (4, 1000));
}

#[test]
fn the_root_is_open_to_all_whatever_a_layer_says_of_it() {
    let mut archive = Vec::new();
    for name in [".", "./", "/", "", "d/.."] {
        directory(&mut archive, name, 0o700, 33);
    }
    raw(&mut archive, EntryType::Regular, ".", "", b"a file");
    raw(&mut archive, EntryType::Regular, "after", "", b"x");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    let root = unpacked.stat("");
    assert_eq!((root.permissions().mode() & 0o7777, root.uid()), (0o755, 0));
    assert!(unpacked.stat("after").is_file());
}

#[test]
fn a_directory_without_an_entry_has_the_attributes_that_it_has_below() {
    let (mut lower, mut upper) = (Vec::new(), Vec::new());
    pax(&mut lower, &[("SCHILY.xattr.user.name", b"value"), ("SCHILY.xattr.system.posix_acl_access", ACL)]);
    directory(&mut lower, "d", 0o750, 0);
    raw(&mut upper, EntryType::Regular, "d/f", "", b"x");
    let unpacked = unpacked_on(&[lower], &upper);
    unpacked.result.as_ref().unwrap();
    for layer in ["lower0", "layer"] {
        let (path, mut value) = (unpacked.directory.path().join(layer).join("d"), [0; 64]);
        let n = rustix::fs::getxattr(&path, "user.name", &mut value).unwrap();
        assert_eq!(&value[..n], b"value", "{layer}");
        let n = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut value).unwrap();
        assert_eq!(n, ACL.len(), "{layer}");
    }
}

/// `u::rwx,u:7:r--,g::r-x,m::r-x,o::---`
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 5, 0, 0xff, 0xff, 0xff,
    0xff, 0x10, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

#[test]
fn numbers_are_read_as_they_are_written_and_none_that_is_no_owner_is_taken_for_one() {
    use tar_stream::number;
    let cases: [(&[u8], i64); 9] = [
        (b"0000644\0", 0o644),
        (b"  644   ", 0o644),
        (b"\0\0\0\0", 0),
        (b"644\0junk", 0o644),
        (b"777777777777", 0o777_777_777_777),
        (b"\x80\0\0\x01\0", 256),
        (b"\xff\xff\xff\xff", -1),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
    ];
    for (field, wanted) in cases {
        assert_eq!(number(field).unwrap(), wanted, "{}", field.escape_ascii());
    }
    let wrong: [&[u8]; 4] =
        [b"9", b"0x10", b"7777777777777777777777777", b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"];
    for field in wrong {
        assert!(number(field).is_err(), "{}", field.escape_ascii());
    }
    for owner in ["4294967295", "4294967296", "-1", "x"] {
        let mut archive = Vec::new();
        pax(&mut archive, &[("uid", owner.as_bytes())]);
        raw(&mut archive, EntryType::Regular, "f", "", b"");
        unpacked(&archive).refused();
    }
    let mut header = Header::new(EntryType::Regular, "f", "", 0);
    header.0.set_uid(u64::from(u32::MAX));
    header.0.set_cksum();
    assert!(unpacked(header.0.as_bytes()).refused().contains("owner"));
}

#[test]
fn times_that_the_kernel_does_not_count_are_its_first() {
    let times: [(&[u8], (i64, i64)); 6] = [
        (b"-1.5", (0, 0)),
        (b"-1", (0, 0)),
        (b"99999999999", (0, 0)),
        (b"9223372036.854775807", (9_223_372_036, 854_775_807)),
        (b"7.", (7, 0)),
        (b"", (1000, 0)),
    ];
    for (text, wanted) in times {
        let mut archive = Vec::new();
        pax(&mut archive, &[("mtime", text)]);
        raw(&mut archive, EntryType::Regular, "f", "", b"");
        let stat = unpacked(&archive).stat("f");
        assert_eq!((stat.mtime(), stat.mtime_nsec()), wanted, "{}", text.escape_ascii());
    }
    for text in [&b"nonsense"[..], b"1.5x", b"1.+5"] {
        let mut archive = Vec::new();
        pax(&mut archive, &[("mtime", text)]);
        raw(&mut archive, EntryType::Regular, "f", "", b"");
        unpacked(&archive).refused();
    }
}

#[test]
fn records_without_a_value_say_nothing_and_gnu_long_names_come_first() {
    let mut archive = Vec::new();
    pax(&mut archive, &[("path", b""), ("linkpath", b""), ("size", b""), ("uid", b"")]);
    raw(&mut archive, EntryType::Regular, "kept", "", b"hello");
    pax(&mut archive, &[("path", b"by-pax")]);
    raw(&mut archive, EntryType::GNULongName, "long", "", b"by-gnu\0");
    raw(&mut archive, EntryType::Regular, "by-header", "", b"");
    pax(&mut archive, &[("size", b"-1")]);
    raw(&mut archive, EntryType::Symlink, "soft", "kept", b"");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    assert_eq!((unpacked.stat("kept").len(), unpacked.stat("kept").uid()), (5, 7));
    assert!(unpacked.stat("by-gnu").is_file() && unpacked.stat("soft").is_symlink());
}

#[test]
fn a_name_with_a_nul_in_a_record_is_refused_even_if_another_record_follows() {
    for key in ["path", "linkpath"] {
        let mut archive = Vec::new();
        pax(&mut archive, &[(key, b"with\0nul"), (key, b"f")]);
        raw(&mut archive, EntryType::Symlink, "f", "g", b"");
        assert!(unpacked(&archive).refused().contains("malformed"), "{key}");
    }
}

#[test]
fn a_slash_at_its_end_makes_a_directory_of_an_old_entry_only() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "file/", "", b"hello");
    let mut header = Header::new(EntryType::Regular, "directory/", "", 0);
    header.0.as_mut_bytes()[156] = 0;
    header.0.set_cksum();
    archive.extend_from_slice(header.0.as_bytes());
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    assert!(unpacked.stat("file").is_file() && unpacked.stat("directory").is_dir());
}

#[test]
fn an_archive_ends_where_all_readers_end() {
    let mut file = Vec::new();
    raw(&mut file, EntryType::Regular, "f", "", b"hello");
    let end =
        |zeros: usize, more: &[u8]| unpacked(&[&file[..], &vec![0; zeros], more].concat()).result.is_ok();
    assert!(end(0, b"") && end(512, b"") && end(1024, b"") && end(1024, b"anything") && end(1024, &file));
    // Some would go on after one block of zeros, and so would read something else.
    assert!(!end(512, &file) && !end(100, b""));
    let without_padding = unpacked(&file[..512 + 5]);
    without_padding.result.as_ref().unwrap();
    assert_eq!(without_padding.stat("f").len(), 5);
    assert!(unpacked(&file[..512 + 4]).result.is_err());
}

#[test]
fn a_checksum_of_signed_bytes_is_one() {
    let mut header = Header::new(EntryType::Regular, "\u{e9}", "", 0);
    let bytes = header.0.as_mut_bytes();
    bytes[148..156].fill(b' ');
    let sum: i64 = bytes.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(unpacked(header.0.as_bytes()).stat("\u{e9}").is_file());
}

#[test]
fn dots_in_the_middle_of_a_name_are_no_names() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "./a/../b", "", b"x");
    raw(&mut archive, EntryType::Link, "c", "./x/.././b", b"");
    let unpacked = unpacked(&archive);
    unpacked.result.as_ref().unwrap();
    assert_eq!(unpacked.stat("b").ino(), unpacked.stat("c").ino());
    assert!(fs::symlink_metadata(unpacked.directory.path().join("layer/a")).is_err());
}

#[test]
fn zstd_may_begin_with_a_frame_that_is_to_be_skipped() {
    let mut archive = Vec::new();
    raw(&mut archive, EntryType::Regular, "f", "", b"hello");
    let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
    let frames: Vec<u8> = archive.chunks(512).flat_map(|part| zstd::encode_all(part, 1).unwrap()).collect();
    for blob in [[&skipped[..], &frames].concat(), [&skipped[..], &skipped, &frames, &skipped].concat()] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("blob"), blob).unwrap();
        let into = directory.path().join("layer");
        fs::create_dir(&into).unwrap();
        unpack(&directory.path().join("blob"), &Digest::of(&archive), &into, &[], &Caps::default()).unwrap();
        assert_eq!(fs::read(into.join("f")).unwrap(), b"hello");
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
    let (mut lower, mut archive) = (Vec::new(), Vec::new());
    raw(&mut lower, EntryType::Regular, "d/gone", "", b"x");
    raw(&mut archive, EntryType::Regular, "d/.wh.gone", "", b"");
    raw(&mut archive, EntryType::Regular, "o/.wh..wh..opq", "", b"");
    raw(&mut archive, EntryType::Regular, ".wh..wh.plnk", "", b"");
    let unpacked = unpacked_on(&[lower], &archive);
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
    let wrong = unpack(&directory.path().join("blob"), &Digest::of(b"other"), &into, &[], &Caps::default());
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
        unpack(&directory.path().join("blob"), &Digest::of(&archive), &into, &[], &Caps::default()).unwrap();
        assert_eq!(fs::read(into.join("f")).unwrap(), b"hello");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048)) {
        let _any_answer = unpacked(&bytes).result;
    }
}
