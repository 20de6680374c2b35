//! Documents in memory, each as what differs from one like it.
//!
//! Most objects of a cluster have siblings: the pods of a Deployment differ in a name, an address and some times, and what
//! managers own is the same text in each. Compressed against one of their kind, documents take less than a tenth of what they are.
//!
//! # Guarantees
//! - What comes out is what went in, to the byte.
//! - Documents and those that they are packed against take no more than twice what the documents are.
//! - No more than [`STEMS`] groups of siblings are known at a time.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use bytes::Bytes;
use lz4_flex::block::{compress_into_with_dict, decompress_into_with_dict, get_maximum_output_size};

/// Smaller ones have little to lose.
const SMALLEST: usize = 512;
/// Larger ones would take their time, on the thread that hands out changes.
const LARGEST: usize = 64 << 10;
/// Groups of siblings that are known.
const STEMS: usize = 1024;
/// After so many siblings, one that has little in common with the base becomes the next base.
const USES: u32 = 8;

/// One document.
pub(super) enum Document {
    Plain(Bytes),
    Packed { base: Bytes, data: Box<[u8]>, len: u32 },
}

impl Document {
    pub(super) fn bytes(&self) -> Bytes {
        match self {
            Document::Plain(bytes) => bytes.clone(),
            Document::Packed { base, data, len } => {
                let mut out = vec![0; *len as usize];
                match decompress_into_with_dict(data, &mut out, base) {
                    Ok(n) if n == out.len() => out.into(),
                    // Nothing but damaged memory brings this about: what was packed is unpacked with what it was packed against.
                    odd => {
                        tracing::error!(
                            ?odd,
                            "a document cannot be unpacked; the memory of this machine is damaged"
                        );
                        Bytes::new()
                    }
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Document::Plain(bytes) => bytes.len(),
            Document::Packed { len, .. } => *len as usize,
        }
    }

    /// What it takes by itself.
    pub(super) fn weight(&self) -> usize {
        match self {
            Document::Plain(bytes) => bytes.len(),
            Document::Packed { data, .. } => data.len(),
        }
    }
}

/// What a resource's documents are packed against.
#[derive(Default)]
pub(super) struct Bases {
    stems: HashMap<u64, Stem>,
    hasher: RandomState,
    /// Of any group: what an object without siblings is packed against.
    latest: Option<Bytes>,
}

enum Stem {
    /// One object of it came; another makes it a group.
    Alone,
    Group {
        base: Bytes,
        uses: u32,
    },
}

impl Bases {
    /// `key` is that of the object: names of siblings begin alike.
    pub(super) fn pack(&mut self, key: &str, document: Bytes) -> Document {
        if !(SMALLEST..=LARGEST).contains(&document.len()) {
            return Document::Plain(document);
        }
        let stem = self.hasher.hash_one(stem(key));
        if self.stems.len() >= STEMS && !self.stems.contains_key(&stem) {
            self.stems.clear();
        }
        match self.stems.get_mut(&stem) {
            None => {
                self.stems.insert(stem, Stem::Alone);
                let base = self.latest.get_or_insert_with(|| document.clone()).clone();
                packed(&base, &document).unwrap_or(Document::Plain(document))
            }
            Some(of_stem @ Stem::Alone) => {
                *of_stem = Stem::Group { base: document.clone(), uses: 0 };
                self.latest = Some(document.clone());
                Document::Plain(document)
            }
            Some(Stem::Group { base, uses }) => {
                let packed = packed(base, &document);
                *uses += 1;
                let has_much = packed.as_ref().is_some_and(|packed| packed.weight() <= document.len() / 4);
                if *uses >= USES && !has_much {
                    (*base, *uses) = (document.clone(), 0);
                    return Document::Plain(document);
                }
                packed.unwrap_or(Document::Plain(document))
            }
        }
    }
}

/// `None` if that saves too little.
fn packed(base: &Bytes, document: &Bytes) -> Option<Document> {
    let mut scratch = vec![0; get_maximum_output_size(document.len())];
    let n = compress_into_with_dict(document, &mut scratch, base).ok()?;
    let saves = n + size_of::<Document>() <= document.len() / 4 * 3;
    let len = u32::try_from(document.len()).ok()?;
    // The first of a resource is its own base.
    (saves && base.as_ptr() != document.as_ptr()).then(|| Document::Packed {
        base: base.clone(),
        data: scratch[..n].into(),
        len,
    })
}

/// What names of siblings have in common: all but what follows the last dash, or the last slash.
fn stem(key: &str) -> &str {
    let end = key.rfind(['-', '/']).map_or(0, |at| at + 1);
    &key[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As large as a pod of 3 kB with its managed fields.
    fn document(name: &str) -> Bytes {
        let containers: Vec<String> = (0..40)
            .map(|n| {
                format!(
                    "{{\"name\":\"c{n}\",\"image\":\"registry.example.com/shop/c{n}:1.2.3\",\"port\":80{n}}}"
                )
            })
            .collect();
        format!("{{\"metadata\":{{\"name\":\"{name}\",\"uid\":\"{name}-uid\"}},\"spec\":{{\"containers\":[{}]}}}}", containers.join(",")).into()
    }

    #[test]
    fn siblings_take_a_tenth_and_come_out_as_they_were() {
        let mut bases = Bases::default();
        let all: Vec<(Bytes, Document)> = (0..100)
            .map(|n| {
                let name = format!("web-{n}");
                let document = document(&name);
                (document.clone(), bases.pack(&format!("d/{name}"), document))
            })
            .collect();
        let (mut plain, mut taken) = (0, 0);
        for (document, kept) in &all {
            assert_eq!(kept.bytes(), document);
            assert_eq!(kept.len(), document.len());
            plain += document.len();
            taken += kept.weight();
        }
        assert!(taken * 10 < plain, "{taken} of {plain} bytes");
    }

    #[test]
    fn a_group_whose_documents_have_changed_gets_another_base() {
        let mut bases = Bases::default();
        let other = |n: u32| -> Bytes {
            let text: String =
                (0..300_u32).map(|word| format!("{:x}.", word.wrapping_mul(2_654_435_761))).collect();
            format!("{{\"name\":\"web-{n}\",\"data\":\"{text}\"}}").into()
        };
        (0..4).for_each(|n| drop(bases.pack("d/web-0", document(&format!("web-{n}")))));
        let kept: Vec<Document> = (0..40).map(|n| bases.pack("d/web-0", other(n))).collect();
        assert!(kept.iter().enumerate().all(|(n, kept)| kept.bytes() == other(n as u32)));
        let late: usize = kept[20..].iter().map(Document::weight).sum();
        let early: usize = kept[..5].iter().map(Document::weight).sum();
        assert!(late < early, "twenty late ones take {late}, five early ones {early}");
    }

    #[test]
    fn groups_that_are_known_are_bounded() {
        let mut bases = Bases::default();
        for n in 0..3 * STEMS {
            let document = document("web-0");
            assert_eq!(bases.pack(&format!("namespace-{n}/web"), document.clone()).bytes(), document);
        }
        assert!(bases.stems.len() <= STEMS);
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_out_as_it_was(texts in prop::collection::vec("[ -~\\n\u{e9}\u{4e16}]{0,1500}", 1..12), same in any::<bool>()) {
            let mut bases = Bases::default();
            for (n, text) in texts.iter().enumerate() {
                let document = Bytes::from(format!("{}{text}", texts[0]));
                let key = if same { format!("d/web-{n}") } else { format!("d{n}/web") };
                let kept = bases.pack(&key, document.clone());
                prop_assert_eq!(kept.bytes(), document);
            }
        }
    }
}
