//! Files that were stored without their holes: GNU's own header, and its three forms in PAX.
//!
//! | form | where the map is | name and size |
//! |---|---|---|
//! | old GNU, type `S` | in the header and blocks after it | the header's, `realsize` |
//! | PAX 0.0 | records `GNU.sparse.offset` and `GNU.sparse.numbytes` by turns | the header's, `GNU.sparse.size` |
//! | PAX 0.1 | record `GNU.sparse.map` | `GNU.sparse.name`, `GNU.sparse.size` |
//! | PAX 1.0 | in front of the content, in whole blocks | `GNU.sparse.name`, `GNU.sparse.realsize` |
//!
//! Source: GNU tar's manual, "Storing Sparse Files" and "Sparse Formats".

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::tar_stream::{BLOCK, TarStream, invalid, number as header_number};

pub(super) const OFFSET: &str = "GNU.sparse.offset";
pub(super) const NUMBYTES: &str = "GNU.sparse.numbytes";
pub(super) const MAP: &str = "GNU.sparse.map";

/// Fragments of one file. A map of so many is longer than any that PAX records may hold.
const MAX_FRAGMENTS: usize = 256 << 10;

/// A stretch of a file that has content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

pub(super) struct Map {
    pub(super) fragments: Vec<Fragment>,
    /// Of the file with its holes.
    pub(super) size: u64,
    pub(super) path: Option<Vec<u8>>,
}

/// Which form an entry is in, with what its records say.
pub(super) enum Form {
    Gnu,
    Pax { map: Vec<u8>, size: u64, path: Option<Vec<u8>> },
    PaxInContent { size: u64, path: Option<Vec<u8>> },
}

impl Form {
    pub(super) fn of(kind: EntryType, pax: &BTreeMap<String, Vec<u8>>) -> io::Result<Option<Form>> {
        if kind == EntryType::GNUSparse {
            return Ok(Some(Form::Gnu));
        }
        let record = |name: &str| pax.get(name).map(Vec::as_slice);
        let path = || pax.get("GNU.sparse.name").filter(|name| !name.is_empty()).cloned();
        let size = || {
            let size = record("GNU.sparse.realsize").or(record("GNU.sparse.size"));
            size.and_then(number).ok_or_else(|| invalid("a sparse file without its size"))
        };
        let version = (record("GNU.sparse.major"), record("GNU.sparse.minor"));
        match version {
            (Some(b"1"), Some(b"0")) => Ok(Some(Form::PaxInContent { size: size()?, path: path() })),
            (None, None) | (Some(b"0"), Some(b"0" | b"1")) => {
                let Some(map) = pax.get(MAP).cloned() else { return Ok(None) };
                Ok(Some(Form::Pax { map, size: size()?, path: path() }))
            }
            _ => Err(invalid("a sparse file of a form that is not known")),
        }
    }

    pub(super) fn read<R: Read>(self, header: &Header, content: &mut TarStream<R>) -> io::Result<Map> {
        match self {
            Form::Gnu => gnu(header, content),
            Form::Pax { map, size, path } => {
                let numbers: Option<Vec<u64>> = match map.as_slice() {
                    b"" => Some(Vec::new()),
                    map => map.split(|byte| *byte == b',').map(number).collect(),
                };
                let numbers = numbers.ok_or_else(|| invalid("a sparse map that is no list of numbers"))?;
                Ok(Map { fragments: pairs(&numbers)?, size, path })
            }
            Form::PaxInContent { size, path } => Ok(Map { fragments: in_content(content)?, size, path }),
        }
    }
}

/// Whether a map fits its file and what is stored of it.
pub(super) fn check(map: &Map, stored: u64) -> io::Result<()> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for fragment in &map.fragments {
        let next = fragment.offset.checked_add(fragment.bytes).filter(|next| *next <= map.size);
        let next = next.filter(|_| fragment.offset >= end);
        end = next.ok_or_else(|| invalid("a sparse map that is out of order or longer than its file"))?;
        sum += fragment.bytes;
    }
    if sum != stored {
        return Err(invalid("a sparse map that does not fit its content"));
    }
    Ok(())
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn pairs(numbers: &[u64]) -> io::Result<Vec<Fragment>> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(invalid("a sparse map of an odd length"));
    };
    if pairs.len() > MAX_FRAGMENTS {
        return Err(invalid("a sparse map is too long"));
    }
    Ok(pairs.iter().map(|[offset, bytes]| Fragment { offset: *offset, bytes: *bytes }).collect())
}

/// Numbers of a line each: how many fragments, then their pairs. The content begins with the next block.
fn in_content<R: Read>(content: &mut TarStream<R>) -> io::Result<Vec<Fragment>> {
    let (mut numbers, mut line, mut wanted) = (Vec::new(), Vec::new(), 1);
    while numbers.len() < wanted {
        let mut block = [0; BLOCK];
        content.read_exact(&mut block)?;
        for byte in block {
            if numbers.len() == wanted {
                break;
            }
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(invalid("a sparse map that is no list of numbers"));
                }
                continue;
            }
            let read = number(&line).ok_or_else(|| invalid("a sparse map that is no list of numbers"))?;
            if numbers.is_empty() {
                let count = usize::try_from(read).ok().filter(|count| *count <= MAX_FRAGMENTS);
                wanted = 1 + 2 * count.ok_or_else(|| invalid("a sparse map is too long"))?;
            }
            numbers.push(read);
            line.clear();
        }
    }
    pairs(&numbers[1..])
}

/// Four fragments in the header, then blocks of twenty-one.
fn gnu<R: Read>(header: &Header, content: &mut TarStream<R>) -> io::Result<Map> {
    let bytes = header.as_bytes();
    let mut numbers = Vec::new();
    read_pairs(&bytes[386..482], &mut numbers)?;
    let mut goes_on = bytes[482] != 0;
    while goes_on {
        let block = content.header_block()?;
        read_pairs(&block[..504], &mut numbers)?;
        goes_on = block[504] != 0;
        if numbers.len() > 2 * MAX_FRAGMENTS {
            return Err(invalid("a sparse map is too long"));
        }
    }
    let size = octal(&bytes[483..495])?.ok_or_else(|| invalid("a sparse file without its size"))?;
    Ok(Map { fragments: pairs(&numbers)?, size, path: None })
}

fn read_pairs(bytes: &[u8], numbers: &mut Vec<u64>) -> io::Result<()> {
    for pair in bytes.chunks_exact(24) {
        let (Some(offset), Some(length)) = (octal(&pair[..12])?, octal(&pair[12..])?) else { break };
        numbers.extend([offset, length]);
    }
    Ok(())
}

/// A number of a header; `None` if it is blank.
fn octal(field: &[u8]) -> io::Result<Option<u64>> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(None);
    }
    let value =
        u64::try_from(header_number(field)?).map_err(|_| invalid("a number in a header is out of range"))?;
    Ok(Some(value))
}
