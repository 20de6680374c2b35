//! What the types and fields of built-in kinds are for, in upstream's words, as `kubectl explain` tells them.
//!
//! The words are k8s-openapi's, whose sources the build script reads and packs: none is kept beside them (decision 19).
//! A [`Reader`] unpacks the texts of one API package when the first of its types is asked for, and holds them until it
//! is dropped: one lives as long as a document is made.

mod own;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::ops::Range;

use flate2::read::DeflateDecoder;
use skiff_api::openapi::Texts;

/// The blocks one after the other.
const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/texts.bin"));
/// The packages in order, with where their blocks begin and end.
const INDEX: &[(&str, usize, usize)] = include!(concat!(env!("OUT_DIR"), "/index.rs"));
/// Ends a type in a block, as the build script has it.
const TYPE: char = '\u{1e}';
/// Ends a name or a text.
const PART: char = '\u{1f}';

/// How many bytes of the program the texts are.
pub fn packed_bytes() -> usize {
    PACKED.len()
}

/// Reads texts by the names that OpenAPI has for types, such as `io.k8s.api.core.v1.Pod`.
#[derive(Default)]
pub struct Reader {
    open: RefCell<BTreeMap<&'static str, Block>>,
}

/// The texts of a package.
#[derive(Default)]
struct Block {
    text: String,
    /// What follows a type's name.
    types: HashMap<Box<str>, Range<usize>>,
}

impl Texts for Reader {
    fn of_type(&self, name: &str) -> Option<String> {
        if let Some(own) = own::of_type(name) {
            return Some(own.to_owned());
        }
        self.with(name, |mut parts| parts.next().map(str::to_owned))
    }

    fn of_field(&self, name: &str, field: &str) -> Option<String> {
        if let Some(own) = own::of_field(name, field) {
            return Some(own.to_owned());
        }
        let name = match own::like(name) {
            Some(like) if matches!(field, "apiVersion" | "kind" | "metadata") => like,
            _ => name,
        };
        self.with(name, |parts| {
            let mut parts = parts.skip(1);
            while let (Some(name), Some(text)) = (parts.next(), parts.next()) {
                if name == field {
                    return Some(text.to_owned());
                }
            }
            None
        })
    }
}

impl Reader {
    /// Reads the parts of a type: its text, then names and texts of fields.
    fn with(
        &self,
        name: &str,
        read: impl FnOnce(std::str::Split<'_, char>) -> Option<String>,
    ) -> Option<String> {
        let (package, _) = name.rsplit_once('.')?;
        let at = INDEX.binary_search_by_key(&package, |(package, ..)| package).ok()?;
        let (package, start, end) = *INDEX.get(at)?;
        let mut open = self.open.borrow_mut();
        let block = open.entry(package).or_insert_with(|| Block::unpack(PACKED.get(start..end)));
        let parts = block.text.get(block.types.get(name)?.clone())?;
        read(parts.split(PART)).filter(|text| !text.is_empty())
    }
}

impl Block {
    /// What cannot be unpacked has no texts.
    fn unpack(packed: Option<&[u8]>) -> Block {
        let mut block = Block::default();
        if DeflateDecoder::new(packed.unwrap_or_default()).read_to_string(&mut block.text).is_err() {
            return Block::default();
        }
        let mut start = 0;
        for of_type in block.text.split_terminator(TYPE) {
            let end = start + of_type.len();
            if let Some((name, _)) = of_type.split_once(PART) {
                block.types.insert(name.into(), start + name.len() + PART.len_utf8()..end);
            }
            start = end + TYPE.len_utf8();
        }
        block
    }
}

#[cfg(test)]
#[path = "../build/described.rs"]
mod described;
#[cfg(test)]
mod tests;
