//! Images at random: mostly ordinary, with a few oddities each, out of a small pool of names so that they meet.

use std::collections::BTreeMap;

use crate::case::{
    CONFIG_ODDS, ENDINGS, Entry, Form, Image, Index, Kind, Layer, MANIFEST_ODDS, MEDIA_TYPES, MOODS, Member,
    MemberKind, Odd, PACKINGS, Platform, Sparse, Text, Theme,
};
use crate::random::Random;

/// Names that are where they seem to be.
const PLAIN: [&str; 14] =
    ["a", "b", "c", "d", "d/x", "d/y", "d/e", "d/e/f", "l", "m/n/o", "p/q", "d/e/g", "h", "usr/lib/so"];
/// Names that are not.
const ODD_NAMES: [&str; 40] = [
    "./a",
    "a/",
    "d/",
    "d/e/",
    "./",
    ".",
    "",
    "/",
    "//a",
    "/abs/x",
    "d/../b",
    "./d/./x",
    "d//y",
    "../escape",
    "d/../../escape",
    "..",
    "../..",
    "l/x",
    "l/y/z",
    "l/..",
    "l/../b",
    "a/x",
    "b/x/y",
    "k/x",
    "h/x",
    "with space",
    "new\nline",
    "é",
    "-",
    "*",
    "d/x/",
    "d/.",
    "d/..",
    "usr/lib",
    "lib",
    "lib/so",
    "m/n",
    "m",
    "p",
    "q/r/s/t",
];
const WHITEOUTS: [&str; 22] = [
    ".wh.a",
    ".wh.b",
    ".wh.d",
    ".wh.l",
    ".wh.nothing",
    "d/.wh.x",
    "d/.wh.e",
    "d/e/.wh.f",
    "d/.wh..wh..opq",
    ".wh..wh..opq",
    "d/e/.wh..wh..opq",
    ".wh..wh.plnk",
    ".wh..wh.aufs",
    "d/.wh..wh.orph",
    ".wh.",
    ".wh..",
    ".wh...",
    "l/.wh.x",
    "l/.wh..wh..opq",
    "m/.wh.n",
    "nothing/.wh..wh..opq",
    ".wh.m/x",
];
const SYMLINKS: [&str; 17] = [
    "d",
    "/d",
    "a",
    "../d",
    "..",
    "/",
    "nowhere",
    "d/e",
    "l",
    "./d/../d",
    "../../../d",
    "m/n",
    "k",
    "x",
    "/usr/lib",
    "usr/lib",
    "/m/../d/e",
];
const HARDLINKS: [&str; 18] = [
    "a",
    "b",
    "c",
    "d/x",
    "d/y",
    "/a",
    "./a",
    "l",
    "l/x",
    "nowhere",
    "../a",
    "d",
    "d/../a",
    "",
    "h",
    "d/e/f",
    "/d/x",
    "usr/lib/so",
];
const MODES: [u32; 14] =
    [0o644, 0o755, 0o600, 0o700, 0o4755, 0o2755, 0o1777, 0o6711, 0, 0o777, 0o444, 0o7777, 0o2770, 0o750];
const OWNERS: [i64; 14] = [
    0,
    0,
    0,
    1,
    33,
    1000,
    65_534,
    100_000,
    2_097_152,
    4_294_967_294,
    4_294_967_295,
    4_294_967_296,
    4_294_967_301,
    -1,
];
const TIMES: [i64; 10] = [
    0,
    1,
    1_000_000_000,
    1_700_000_000,
    4_294_967_296,
    -1,
    -86_400,
    8_589_934_591,
    8_589_934_592,
    99_999_999_999,
];
const FLAGS: [u8; 9] = [b'7', b'V', b'D', b'M', b'N', b'A', b'Z', b'X', b'9'];
const ODDS: [Odd; 13] = [
    Odd::ClaimedSize,
    Odd::RealSize,
    Odd::Base256,
    Odd::Spaces,
    Odd::BlankOwner,
    Odd::BlankMode,
    Odd::BlankTime,
    Odd::SignedChecksum,
    Odd::WrongChecksum,
    Odd::NoOctal,
    Odd::OldFlag,
    Odd::TypeInMode,
    Odd::LongNameToo,
];
/// A set of file capabilities, which the kernel checks the form of.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `u::rwx,u:7:r--,g::r-x,m::r-x,o::---`
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 5, 0, 0xff, 0xff, 0xff,
    0xff, 0x10, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

/// The images of a seed.
pub fn images(seed: u64, n: usize) -> Vec<Image> {
    // Each has a seed of its own, so that a change of the generator for one kind leaves the others.
    (0..n as u64)
        .map(|at| image(&mut Random::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(at))))
        .collect()
}

fn image(random: &mut Random) -> Image {
    let theme = match random.below(100) {
        0..60 => Theme::Layers,
        60..72 => Theme::Packing,
        72..78 => Theme::Config,
        78..84 => Theme::Manifest,
        84..91 => Theme::Index,
        _ => Theme::Registry,
    };
    let mut image = Image {
        theme,
        layers: Vec::new(),
        config: crate::case::ConfigOdd::Plain,
        manifest: crate::case::ManifestOdd::Plain,
        index: None,
        mood: crate::case::Mood::Plain,
        by_digest: random.percent(20),
    };
    // How odd the entries are, of a hundred.
    let oddity = if theme == Theme::Layers { *random.of(&[0, 0, 3, 8, 20, 40]) } else { 0 };
    let mut seen = Seen::default();
    for _ in 0..1 + random.below(if theme == Theme::Layers { 4 } else { 2 }) {
        image.layers.push(layer(random, oddity, &mut seen));
    }
    match theme {
        Theme::Layers => {
            if image.layers.len() > 1 && random.percent(5) {
                let again = random.of(&image.layers).clone();
                image.layers.push(again);
            }
            if random.percent(4) {
                image.layers.insert(random.below(image.layers.len() + 1), Layer::default());
            }
        }
        Theme::Packing => {
            for layer in &mut image.layers {
                layer.packing = *random.of(&PACKINGS);
                if random.percent(40) {
                    layer.ending = *random.of(&ENDINGS);
                }
                if random.percent(40) {
                    layer.media_type = *random.of(&MEDIA_TYPES);
                }
            }
        }
        Theme::Config => image.config = *random.of(&CONFIG_ODDS),
        Theme::Manifest => image.manifest = *random.of(&MANIFEST_ODDS),
        Theme::Index => image.index = Some(index(random)),
        Theme::Registry => image.mood = *random.of(&MOODS),
    }
    image
}

/// What the layers have so far, by names that are what they seem.
#[derive(Clone, Default)]
struct Seen(BTreeMap<String, Kind>);

impl Seen {
    fn add(&mut self, entry: &Entry) {
        if let Ok(name) = String::from_utf8(entry.name.0.clone()) {
            self.0.insert(name, entry.kind.clone());
        }
    }

    /// Whether a name lies below something that is no directory, or is above something.
    fn is_in_the_way(&self, name: &str) -> bool {
        let above = |(other, kind): (&String, &Kind)| {
            let below = |name: &str, other: &str| name.starts_with(&format!("{other}/"));
            (below(name, other) && *kind != Kind::Directory) || below(other, name)
        };
        self.0.iter().any(above)
    }

    fn files(&self) -> Vec<&String> {
        self.0.iter().filter(|(_, kind)| matches!(kind, Kind::File { .. })).map(|(name, _)| name).collect()
    }
}

/// A layer on top of what was seen, which its entries are added to.
fn layer(random: &mut Random, oddity: usize, below: &mut Seen) -> Layer {
    let (mut own, mut entries) = (Seen::default(), Vec::new());
    for _ in 0..1 + random.below(9) {
        let mut entry = entry(random, oddity);
        if !random.percent(oddity) {
            let name = String::from_utf8_lossy(&entry.name.0).into_owned();
            let hidden = name.rsplit('/').next().and_then(|last| last.strip_prefix(".wh."));
            let meets = own.0.contains_key(&name) || hidden.is_some_and(|hidden| own.0.contains_key(hidden));
            if meets || own.is_in_the_way(&name) || below.is_in_the_way(&name) {
                continue;
            }
            if matches!(entry.kind, Kind::Hardlink { .. }) {
                let files = own.files();
                let Some(to) = (!files.is_empty()).then(|| random.of(&files)) else { continue };
                entry.kind = Kind::Hardlink { to: Text::from(to.as_str()) };
            }
        }
        own.add(&entry);
        entries.push(entry);
    }
    below.0.extend(own.0);
    Layer { entries, ..Layer::default() }
}

fn entry(random: &mut Random, oddity: usize) -> Entry {
    let odd = |random: &mut Random| random.percent(oddity);
    let name: &str = random.of::<&str>(&PLAIN);
    let mut entry = Entry::new(name, kind(random, oddity));
    if odd(random) {
        entry.name = odd_name(random);
    }
    // A removal is ordinary.
    if random.percent(8 + oddity / 4) {
        let n = if odd(random) { WHITEOUTS.len() } else { 11 };
        let name: &str = random.of::<&str>(&WHITEOUTS[..n]);
        entry = Entry::file(name, 0);
    }
    entry.mode = *random.of(&MODES);
    // The ordinary ones come first.
    let mut number = |ordinary: usize, all: &[i64]| {
        let n = if odd(random) { all.len() } else { ordinary };
        *random.of(&all[..n])
    };
    (entry.uid, entry.gid, entry.mtime) = (number(8, &OWNERS), number(8, &OWNERS), number(4, &TIMES));
    entry.form = *random.of(&[Form::Ustar, Form::Ustar, Form::Gnu, Form::Pax, Form::V7]);
    if matches!(entry.kind, Kind::Sparse(Sparse::OldGnu)) {
        entry.form = Form::Gnu;
    }
    if matches!(entry.kind, Kind::Char { .. } | Kind::Block { .. }) && entry.form == Form::V7 {
        entry.form = Form::Ustar;
    }
    if odd(random) {
        let n = 1 + random.below(2);
        (0..n).for_each(|_| record(random, &mut entry));
    }
    if odd(random) && random.percent(60) {
        entry.odd.push(*random.of(&ODDS));
    }
    entry
}

fn kind(random: &mut Random, oddity: usize) -> Kind {
    let odd = random.percent(oddity);
    match random.below(if odd { 100 } else { 80 }) {
        0..34 => {
            Kind::File { fill: *random.of(b"abcxyz"), size: *random.of(&[0, 1, 5, 511, 512, 513, 3000]) }
        }
        34..58 => Kind::Directory,
        58..68 => Kind::Symlink { to: text(random, &SYMLINKS) },
        68..74 => Kind::Hardlink { to: text(random, &HARDLINKS) },
        74..76 => Kind::Fifo,
        76..78 => Kind::Char { major: 1, minor: 3 },
        78..80 => Kind::Block { major: 7, minor: 0 },
        80..85 => Kind::Hardlink { to: text(random, &HARDLINKS) },
        85..87 => Kind::Symlink { to: long(random) },
        87..94 => Kind::Sparse(*random.of(&[
            Sparse::OldGnu,
            Sparse::Pax00,
            Sparse::Pax01,
            Sparse::Pax10,
            Sparse::Broken,
        ])),
        94..96 => Kind::Flag { flag: *random.of(&FLAGS), size: *random.of(&[0, 5, 600]) },
        96..98 => Kind::Global,
        _ => Kind::Char { major: *random.of(&[0, 5, 300, 4096]), minor: *random.of(&[0, 1, 256, 70_000]) },
    }
}

fn text(random: &mut Random, from: &[&str]) -> Text {
    Text::from(*random.of(from))
}

/// A path around one of the lengths at which formats change, of names that are not too long.
fn long(random: &mut Random) -> Text {
    let length = *random.of(&[99, 100, 101, 155, 256, 3000]);
    let step: usize = *random.of(&[10, 60, 101, 254]);
    let bytes = (0..length).map(|at| if at % step == step - 1 && at + 1 < length { b'/' } else { b'n' });
    Text(bytes.collect())
}

fn odd_name(random: &mut Random) -> Text {
    match random.below(20) {
        0 => Text(b"not-\xff\xfe-utf8".to_vec()),
        1 => Text(vec![b'n'; *random.of(&[100, 101, 255])]),
        2 => Text(vec![b'n'; *random.of(&[256, 300])]),
        3 | 4 => long(random),
        _ => text(random, &ODD_NAMES),
    }
}

fn record(random: &mut Random, entry: &mut Entry) {
    let (key, value): (&str, &[u8]) = match random.below(34) {
        0 => ("mtime", b"1500000000.123456789"),
        1 => ("mtime", b"1500000000.5"),
        2 => ("mtime", b"-1.5"),
        3 => ("mtime", b"1500000000.1234567899"),
        4 => ("mtime", b"nonsense"),
        5 => ("mtime", b""),
        6 => ("atime", b"1500000001.25"),
        7 => ("uid", b"4294967294"),
        8 => ("gid", b"70000"),
        9 => ("uid", b"4294967296"),
        10 => ("uid", b"-1"),
        11 => ("uid", b"x"),
        12 => ("path", b"d/by-pax"),
        13 => ("path", b""),
        14 => ("path", b"../by-pax"),
        15 => ("path", b"not-\xff-utf8"),
        16 => ("path", b"with\0nul"),
        17 => ("linkpath", b"a"),
        18 => ("size", b"5"),
        19 => ("size", b"-1"),
        20 => ("SCHILY.xattr.user.name", b"value"),
        21 => ("SCHILY.xattr.user.empty", b""),
        22 => ("SCHILY.xattr.user.binary", b"\0\xff\n="),
        23 => ("SCHILY.xattr.security.capability", CAPABILITY),
        24 => ("SCHILY.xattr.security.capability", b"nonsense"),
        25 => ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        26 => ("SCHILY.xattr.trusted.any", b"x"),
        27 => ("SCHILY.xattr.security.selinux", b"system_u:object_r:etc_t:s0"),
        28 => ("SCHILY.xattr.system.posix_acl_access", ACL),
        29 => ("SCHILY.xattr.user.", b"x"),
        30 => ("SCHILY.xattr.nonsense", b"x"),
        31 => ("LIBARCHIVE.xattr.user.other", b"dmFsdWU"),
        32 => ("SCHILY.xattr.user.overlay.opaque", b"y"),
        _ => ("comment", b"none"),
    };
    entry.records.push((Text::from(key), Text(value.to_vec())));
}

fn index(random: &mut Random) -> Index {
    let n = 1 + random.below(4);
    let mut entries: Vec<Member> = (0..n).map(|_| member(random)).collect();
    if random.percent(70) {
        let platform = Some(platform("linux", "amd64", None));
        entries.insert(random.below(entries.len() + 1), Member { platform, what: MemberKind::Main });
    }
    Index { docker: random.percent(40), media_type: random.percent(70), entries }
}

fn platform(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
    Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.map(str::to_owned),
        os_version: None,
        os_features: Vec::new(),
    }
}

fn member(random: &mut Random) -> Member {
    const PLATFORMS: [(&str, &str, Option<&str>); 21] = [
        ("linux", "amd64", None),
        ("linux", "amd64", None),
        ("linux", "amd64", Some("v1")),
        ("linux", "amd64", Some("v2")),
        ("linux", "amd64", Some("v3")),
        ("linux", "amd64", Some("v9")),
        ("linux", "x86_64", None),
        ("linux", "x86-64", None),
        ("linux", "386", None),
        ("linux", "i386", None),
        ("linux", "arm64", None),
        ("linux", "arm64", Some("v8")),
        ("linux", "arm", Some("v7")),
        ("linux", "s390x", None),
        ("Linux", "AMD64", None),
        ("windows", "amd64", None),
        ("darwin", "amd64", None),
        ("linux", "", None),
        ("", "amd64", None),
        ("", "", None),
        ("unknown", "unknown", None),
    ];
    let (os, architecture, variant) = *random.of(&PLATFORMS);
    let mut of = platform(os, architecture, variant);
    if random.percent(6) {
        of.os_version = Some("10.0.1".into());
    }
    if random.percent(6) {
        of.os_features = vec!["sse4".into()];
    }
    let what = match random.below(20) {
        0..12 => MemberKind::Image,
        12..15 => MemberKind::Nested,
        15 | 16 => MemberKind::Attestation,
        17 => MemberKind::Missing,
        18 => MemberKind::WrongSize,
        _ => MemberKind::UnknownMediaType,
    };
    if what == MemberKind::Attestation {
        of = platform("unknown", "unknown", None);
    }
    Member { platform: (!random.percent(12)).then_some(of), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::THEMES;

    #[test]
    fn a_seed_determines_the_images_and_they_survive_being_written() {
        let made = images(7, 200);
        assert_eq!(made, images(7, 200));
        assert_ne!(made, images(8, 200));
        let text = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Image>>(&text).unwrap(), made);
        assert!(THEMES.iter().all(|theme| made.iter().any(|image| image.theme == *theme)));
    }
}
