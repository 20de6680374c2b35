//! What differs from containerd on purpose, each with its reason.
//!
//! A case that differs is known only if it is alike once just that is taken out of it, so that nothing else hides behind it.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::case::{
    ConfigOdd, Entry, Image, Kind, Layer, ManifestOdd, MediaType, MemberKind, Mood, Platform, Sparse, Text,
};
use crate::judge::{Judge, Judged};

pub struct Known {
    pub what: &'static str,
    pub reason: &'static str,
    take_out: fn(&mut Image),
}

pub const KNOWN: &[Known] = &[
    Known {
        what: "owners that are none",
        reason: "a number beyond 32 bits, or below zero, is refused; containerd cuts it off, so that 2^32 is root, and \
                 leaves the file with root for -1",
        take_out: owners,
    },
    Known {
        what: "names that lead out of the layer",
        reason: "refused; containerd puts them into the root",
        take_out: leading_out,
    },
    Known {
        what: "entries of an unknown type for the root",
        reason: "refused like others of their type; containerd skips what is for the root before it looks",
        take_out: unknown_roots,
    },
    Known {
        what: "whiteouts in the lowest layer",
        reason: "they hide what layers below have, as the image specification says, which is nothing; containerd removes \
                 what its own layer has put there before",
        take_out: lowest_whiteouts,
    },
    Known {
        what: "whiteouts of what their own layer has",
        reason: "they hide what layers below have and leave that, as the image specification says; containerd refuses the layer \
                 or lets shine through what lies below, by the order of the entries",
        take_out: own_whiteouts,
    },
    Known {
        what: "directories that a later entry of the layer replaces",
        reason: "the later entry keeps its own time; containerd gives it the directory's, or refuses the layer if there is none",
        take_out: replaced_directories,
    },
    Known {
        what: "names below a link of a lower layer",
        reason: "they lead where the link leads, as for a program in a container; containerd puts a directory in the link's \
                 place, which hides what it led to, such as `/usr/lib` by a file below `lib`",
        take_out: below_lower_links,
    },
    Known {
        what: "directories deep below a file of a lower layer",
        reason: "they take its place, or that of what was removed; containerd makes the first directory there and fails at the next",
        take_out: below_lower_files,
    },
    Known {
        what: "GNU's old sparse files",
        reason: "unpacked; containerd knows the forms of PAX only",
        take_out: old_sparse,
    },
    Known {
        what: "attributes of the host",
        reason: "labels of security modules are the host's, and `user.overlay.` may steer an overlay: not kept",
        take_out: host_attributes,
    },
    Known {
        what: "attributes of links, devices and pipes",
        reason: "not kept: nothing but labels can be there",
        take_out: odd_attributes,
    },
    Known {
        what: "images for other machines without an index",
        reason: "refused, where containerd would take it and its program fail with `exec format error`",
        take_out: foreign,
    },
    Known {
        what: "variants of x86-64",
        reason: "ranked by what this machine's CPU has, and taken where it has it; containerd takes none",
        take_out: variants,
    },
    Known {
        what: "images of 32 bits in an index",
        reason: "taken where there is nothing better, as containerd does for the kubelet; its `ctr` does not fetch them",
        take_out: narrow,
    },
    Known {
        what: "broken members of an index besides the chosen one",
        reason: "not looked at; containerd fetches all that match",
        take_out: broken_members,
    },
    Known {
        what: "names of fields in other letters",
        reason: "not those fields, as JSON has it; containerd's reader takes `RootFS` for `rootfs`",
        take_out: letters,
    },
    Known {
        what: "fields of a config that nobody uses",
        reason: "not looked at; containerd refuses a time of creation that is none",
        take_out: unused_fields,
    },
    Known {
        what: "media types of layers that are unknown or wrong",
        reason: "what a layer is, its bytes say; containerd refuses types that it does not know, and does not unpack what \
                 is packed against its type",
        take_out: layer_types,
    },
    Known {
        what: "media types of manifests that are unknown or wrong",
        reason: "what a document is, its fields say; containerd goes by the header or the descriptor",
        take_out: document_types,
    },
    Known {
        what: "layers with URLs",
        reason: "a manifest does not lead to other hosts: the registry is asked; containerd asks the URLs first",
        take_out: urls,
    },
    Known {
        what: "schema version 1 with the fields of 2",
        reason: "refused; containerd does not look at it",
        take_out: schema_1,
    },
    Known {
        what: "registries that fail for a while",
        reason: "asked again, as they are when they answer 429; containerd gives up, and does not wait for a token server at all",
        take_out: busy,
    },
    Known {
        what: "registries that refuse HEAD",
        reason: "it is not used; containerd's first question is one, and only a 405 makes it ask otherwise",
        take_out: head,
    },
];

/// Why containerd's side is what it is, if nothing that is known explains it.
pub enum Explained {
    /// It is alike without these.
    By(Vec<&'static Known>),
    /// Nothing that is known explains it: what is left of it.
    Not(Box<Judged>),
}

pub async fn explain(judge: &Judge, judged: Judged) -> Result<Explained> {
    // One alone, if one will do: what is taken out without need would hide what it did not cause.
    for known in KNOWN {
        let mut image = judged.image.clone();
        (known.take_out)(&mut image);
        if image != judged.image && judge.judge(&image).await?.verdict.agrees() {
            return Ok(Explained::By(vec![known]));
        }
    }
    let (mut left, mut taken) = (judged, Vec::new());
    for known in KNOWN {
        let mut image = left.image.clone();
        (known.take_out)(&mut image);
        if image == left.image {
            continue;
        }
        taken.push(known);
        left = judge.judge(&image).await?;
        if left.verdict.agrees() {
            return Ok(Explained::By(taken));
        }
    }
    Ok(Explained::Not(Box::new(left)))
}

fn entries(image: &mut Image) -> impl Iterator<Item = &mut Entry> {
    image.layers.iter_mut().flat_map(|layer| &mut layer.entries)
}

fn has_key(record: &(Text, Text), keys: &[&str]) -> bool {
    keys.iter().any(|key| record.0.0 == key.as_bytes())
}

fn owners(image: &mut Image) {
    let is_owner = |id: i64| (0..i64::from(u32::MAX)).contains(&id);
    for entry in entries(image) {
        if !is_owner(entry.uid) {
            entry.uid = 0;
        }
        if !is_owner(entry.gid) {
            entry.gid = 0;
        }
        entry.records.retain(|record| {
            let id = std::str::from_utf8(&record.1.0).ok().and_then(|text| text.parse().ok());
            !has_key(record, &["uid", "gid"]) || id.is_none_or(is_owner)
        });
    }
}

/// The names of an entry's path, its record's if it has one; `None` if it leads out.
fn names(entry: &Entry) -> Option<Vec<Vec<u8>>> {
    let by_record =
        entry.records.iter().rev().find(|record| has_key(record, &["path"]) && !record.1.0.is_empty());
    clean(by_record.map_or(&entry.name.0, |record| &record.1.0))
}

fn clean(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name.to_vec()),
        }
    }
    Some(names)
}

fn leading_out(image: &mut Image) {
    let leads_out = |entry: &Entry| {
        let link = match &entry.kind {
            Kind::Hardlink { to } => clean(&to.0).is_none(),
            _ => false,
        };
        link || names(entry).is_none()
    };
    for layer in &mut image.layers {
        layer.entries.retain(|entry| !leads_out(entry));
    }
}

fn unknown_roots(image: &mut Image) {
    for layer in &mut image.layers {
        layer.entries.retain(|entry| {
            let is_root = names(entry).is_some_and(|names| names.is_empty());
            !(is_root && matches!(entry.kind, Kind::Flag { .. }))
        });
    }
}

/// What an entry hides: the path of a whiteout's victim, or of the directory that is made opaque.
fn hidden(entry: &Entry) -> Option<Vec<Vec<u8>>> {
    let mut path = names(entry)?;
    let last = path.pop()?;
    let name = last.strip_prefix(b".wh.")?;
    if name != b".wh..opq" {
        path.push(name.to_vec());
    }
    Some(path)
}

fn lowest_whiteouts(image: &mut Image) {
    if let Some(layer) = image.layers.first_mut() {
        layer.entries.retain(|entry| hidden(entry).is_none());
    }
}

fn own_whiteouts(image: &mut Image) {
    for layer in &mut image.layers {
        let all = layer.entries.clone();
        let mut seen = BTreeSet::new();
        layer.entries.retain(|entry| {
            let Some(hidden) = hidden(entry) else { return true };
            let meets = |names: Option<Vec<Vec<u8>>>| names.is_some_and(|names| names.starts_with(&hidden));
            let met = all.iter().any(|other| {
                let links = matches!(&other.kind, Kind::Hardlink { to } if meets(clean(&to.0)));
                *other != *entry && (links || meets(names(other)))
            });
            // The same whiteout twice is one that meets itself.
            !met && seen.insert(hidden)
        });
    }
}

fn replaced_directories(image: &mut Image) {
    for layer in &mut image.layers {
        let all = layer.entries.clone();
        let is_directory = |entry: &Entry| {
            entry.kind == Kind::Directory
                || (entry.name.0.ends_with(b"/") && matches!(entry.kind, Kind::Flag { .. }))
        };
        let mut at = 0;
        layer.entries.retain(|entry| {
            at += 1;
            let own = names(entry).unwrap_or_default();
            let replaces = |later: &Entry| {
                !is_directory(later)
                    && names(later).is_some_and(|names| !names.is_empty() && own.starts_with(&names))
            };
            !(is_directory(entry) && all[at..].iter().any(replaces))
        });
    }
}

fn below_lower_links(image: &mut Image) {
    above_others(image, 1, |kind| matches!(kind, Kind::Symlink { .. } | Kind::Hardlink { .. }));
}

fn below_lower_files(image: &mut Image) {
    above_others(image, 2, |kind| *kind != Kind::Directory);
}

/// Takes out entries of some kinds below which, so many levels deep, higher layers have something.
fn above_others(image: &mut Image, depth: usize, is_of_kind: fn(&Kind) -> bool) {
    let mut above: Vec<Layer> = Vec::new();
    for layer in image.layers.iter_mut().rev() {
        let is_followed = |own: &[Vec<u8>]| {
            let is_below = |names: Vec<Vec<u8>>| names.len() >= own.len() + depth && names.starts_with(own);
            let below = |entry: &Entry| {
                let link = match &entry.kind {
                    Kind::Hardlink { to } => clean(&to.0),
                    _ => None,
                };
                names(entry).is_some_and(is_below) || link.is_some_and(is_below)
            };
            above.iter().any(|layer| layer.entries.iter().any(below))
        };
        let before = layer.clone();
        // A whiteout is where its victim was, and is no directory.
        layer.entries.retain(|entry| {
            let path = hidden(entry).or_else(|| names(entry));
            !(is_of_kind(&entry.kind) && path.is_some_and(|own| is_followed(&own)))
        });
        above.push(before);
    }
}

fn old_sparse(image: &mut Image) {
    for entry in entries(image) {
        if entry.kind == Kind::Sparse(Sparse::OldGnu) || matches!(entry.kind, Kind::Flag { flag: b'7', .. }) {
            entry.kind = Kind::File { fill: b's', size: 10 };
        }
    }
}

fn host_attributes(image: &mut Image) {
    const KEYS: [&str; 2] = ["SCHILY.xattr.security.selinux", "SCHILY.xattr.user.overlay.opaque"];
    entries(image).for_each(|entry| entry.records.retain(|record| !has_key(record, &KEYS)));
}

fn odd_attributes(image: &mut Image) {
    for entry in entries(image) {
        if !matches!(entry.kind, Kind::File { .. } | Kind::Directory) {
            entry.records.retain(|record| !record.0.0.starts_with(b"SCHILY.xattr."));
        }
    }
}

fn foreign(image: &mut Image) {
    if matches!(image.config, ConfigOdd::ForeignPlatform | ConfigOdd::OtherSystem) {
        image.config = ConfigOdd::Plain;
    }
}

fn platforms(image: &mut Image) -> impl Iterator<Item = &mut Platform> {
    image.index.iter_mut().flat_map(|index| &mut index.entries).filter_map(|member| member.platform.as_mut())
}

fn variants(image: &mut Image) {
    for platform in platforms(image).filter(|platform| !platform.architecture.starts_with("arm")) {
        platform.variant = None;
    }
}

fn narrow(image: &mut Image) {
    for platform in platforms(image).filter(|platform| platform.architecture.ends_with("386")) {
        platform.architecture = "s390x".to_owned();
    }
}

fn broken_members(image: &mut Image) {
    if let Some(index) = &mut image.index {
        index.entries.retain(|member| !matches!(member.what, MemberKind::Missing | MemberKind::WrongSize));
    }
}

fn unused_fields(image: &mut Image) {
    if image.config == ConfigOdd::OddCreated {
        image.config = ConfigOdd::Plain;
    }
}

fn letters(image: &mut Image) {
    if image.config == ConfigOdd::UpperCaseKeys {
        image.config = ConfigOdd::Plain;
    }
}

fn layer_types(image: &mut Image) {
    image.layers.iter_mut().for_each(|layer| layer.media_type = MediaType::Right);
}

fn document_types(image: &mut Image) {
    if matches!(image.mood, Mood::TextType | Mood::NoType | Mood::OctetType | Mood::ParametersOfType) {
        image.mood = Mood::Plain;
    }
    if image.manifest == ManifestOdd::OtherMediaType {
        image.manifest = ManifestOdd::Plain;
    }
    if let Some(index) = &mut image.index {
        index.entries.retain(|member| member.what != MemberKind::UnknownMediaType);
    }
}

fn urls(image: &mut Image) {
    if image.manifest == ManifestOdd::Urls {
        image.manifest = ManifestOdd::Plain;
    }
}

fn schema_1(image: &mut Image) {
    if image.manifest == ManifestOdd::SchemaVersion1 {
        image.manifest = ManifestOdd::Plain;
    }
}

fn busy(image: &mut Image) {
    if matches!(image.mood, Mood::Busy503 | Mood::Busy500 | Mood::TokenServerBusy) {
        image.mood = Mood::Plain;
    }
}

fn head(image: &mut Image) {
    if matches!(image.mood, Mood::HeadForbidden | Mood::HeadNotFound) {
        image.mood = Mood::Plain;
    }
}
