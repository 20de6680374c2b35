//! Tar, entry by entry: ustar, GNU long names, PAX. Reading it ourselves keeps every length that the
//! archive claims under a cap.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::sparse;

pub(super) const BLOCK: usize = 512;
/// For a long name, a long link or a set of PAX records: extended attributes are at most 64 KiB each.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Extensions in a row before an entry.
const MAX_EXTENSIONS: u32 = 16;

pub(crate) struct TarStream<R> {
    inner: R,
    /// Bytes of the current entry that have not been read, and the padding after them.
    left: u64,
    padding: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: i64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Where the content that follows belongs, of a file that was stored without its holes.
    pub(crate) sparse: Option<Vec<Fragment>>,
}

pub(crate) use super::sparse::Fragment;

/// What came before an entry to amend its header.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: BTreeMap<String, Vec<u8>>,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(inner: R) -> TarStream<R> {
        TarStream { inner, left: 0, padding: 0 }
    }

    /// Skips what is left of the last entry and reads the next one's headers; `None` at the end.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        for _ in 0..MAX_EXTENSIONS {
            let unread = self.left + self.padding;
            self.skip(unread)?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            self.set_size(header.entry_size()?);
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(without_nul(self.extension()?)),
                EntryType::GNULongLink => extensions.link = Some(without_nul(self.extension()?)),
                EntryType::XHeader => extensions.pax = pax_records(&self.extension()?)?,
                // `git archive` puts a commit there.
                EntryType::XGlobalHeader => {}
                kind => return self.entry(&header, kind, extensions).map(Some),
            }
        }
        Err(invalid("too many extension headers before an entry"))
    }

    /// The entry of a header, with what of its content describes the rest.
    fn entry(&mut self, header: &Header, kind: EntryType, extensions: Extensions) -> io::Result<Entry> {
        let form = sparse::Form::of(kind, &extensions.pax)?;
        let mut entry = entry(header, kind, extensions)?;
        // Whatever their headers say, only files have content: old writers put the size of a link's target there.
        let stored = if entry.kind == Kind::File { entry.size } else { 0 };
        self.set_size(stored);
        if let (Some(form), Kind::File) = (form, entry.kind) {
            let map = form.read(header, self)?;
            sparse::check(&map, self.left)?;
            entry.size = map.size;
            entry.path = map.path.unwrap_or(entry.path);
            entry.sparse = Some(map.fragments);
        }
        Ok(entry)
    }

    /// A block that belongs to the header before it, and is no part of the content.
    pub(super) fn header_block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.inner.read_exact(&mut block)?;
        Ok(block)
    }

    fn set_size(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// A header block; `None` at the two zero blocks, or where the archive ends without.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut n = 0;
        while n < BLOCK {
            match self.inner.read(&mut block[n..])? {
                0 if n == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => n += more,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
        if sum + 8 * u32::from(b' ') != header.cksum()? {
            return Err(invalid("header checksum does not match"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.left > MAX_EXTENSION_BYTES {
            return Err(invalid("extension header is too large"));
        }
        let mut bytes = Vec::new();
        let wanted = self.left;
        self.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    fn skip(&mut self, n_bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.inner).take(n_bytes), &mut io::sink())?;
        if skipped == n_bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The content of the current entry.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn entry(header: &Header, kind: EntryType, extensions: Extensions) -> io::Result<Entry> {
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        other => {
            return Err(invalid(&format!("entry type {:?} is not supported", char::from(other.as_byte()))));
        }
    };
    let Extensions { path, link, mut pax } = extensions;
    let number = |pax: &BTreeMap<String, Vec<u8>>, key: &str| -> io::Result<Option<u64>> {
        let Some(value) = pax.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        text.map(Some).ok_or_else(|| invalid(&format!("PAX record {key} is no number")))
    };
    let id = |number: u64| u32::try_from(number).map_err(|_| invalid("owner is out of range"));
    let size = number(&pax, "size")?.map_or_else(|| header.entry_size(), Ok)?;
    let uid = id(number(&pax, "uid")?.map_or_else(|| or_zero(header.uid(), &header.as_old().uid), Ok)?)?;
    let gid = id(number(&pax, "gid")?.map_or_else(|| or_zero(header.gid(), &header.as_old().gid), Ok)?)?;
    let (mtime_s, mtime_ns) = match pax.get("mtime").and_then(|value| pax_time(value)) {
        Some(time) => time,
        None => (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0),
    };
    let xattrs = pax
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("SCHILY.xattr.")?.to_owned(), value.clone())))
        .collect();
    let path = pax.remove("path").or(path).unwrap_or_else(|| header.path_bytes().into_owned());
    let link = pax
        .remove("linkpath")
        .or(link)
        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
        .unwrap_or_default();
    // Old archives mark a directory by a trailing slash only.
    let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
    let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            (number(header.device_major())?, number(header.device_minor())?)
        }
        _ => (0, 0),
    };
    let mode = header.mode()? & 0o7777;
    let sparse = None;
    Ok(Entry { kind, path, link, size, mode, uid, gid, mtime_s, mtime_ns, device, xattrs, sparse })
}

/// Some writers leave a number blank where they mean zero.
fn or_zero(number: io::Result<u64>, field: &[u8]) -> io::Result<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { number }
}

/// Records of `length key=value\n`, the length counting itself; values may hold any byte.
fn pax_records(mut bytes: &[u8]) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let malformed = || invalid("malformed PAX record");
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let length =
            length.filter(|length| *length > space + 1 && *length <= bytes.len()).ok_or_else(malformed)?;
        let (record, rest) = bytes.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| malformed())?;
        let value = &record[equals + 1..];
        if matches!(key, sparse::OFFSET | sparse::NUMBYTES) {
            // These stand once a fragment. Together they are what another form writes as one record.
            let map: &mut Vec<u8> = records.entry(sparse::MAP.to_owned()).or_default();
            if !map.is_empty() {
                map.push(b',');
            }
            map.extend_from_slice(value);
        } else {
            records.insert(key.to_owned(), value.to_vec());
        }
        bytes = rest;
    }
    Ok(records)
}

/// Seconds with a fraction; negative before 1970.
fn pax_time(value: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut nanoseconds = 0;
    if !fraction.is_empty() {
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        nanoseconds = digits.parse::<u32>().ok()?.into();
    }
    let seconds: i64 = seconds.parse().ok()?;
    if text.starts_with('-') && nanoseconds > 0 {
        return Some((seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

pub(super) fn invalid(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.to_owned())
}
