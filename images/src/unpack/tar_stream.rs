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
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            if is_extension(kind) {
                self.set_size(content_size(number(&header.as_old().size)?)?);
            }
            match kind {
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

    /// A header block; `None` at the two zero blocks, or where the archive ends without. One zero block and then something else is
    /// refused: of what follows, some would read it and others not.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if is_zero(&block) {
            return match self.block()? {
                Some(block) if !is_zero(&block) => Err(invalid("an entry after a block of zeros")),
                _ => Ok(None),
            };
        }
        // Old writers took the bytes for signed.
        let others = || block[..148].iter().chain(&block[156..]);
        let unsigned: i64 = others().map(|byte| i64::from(*byte)).sum();
        let signed: i64 = others().map(|byte| i64::from(byte.cast_signed())).sum();
        let sum = number(&block[148..156])? - 8 * i64::from(b' ');
        if sum != unsigned && sum != signed {
            return Err(invalid("header checksum does not match"));
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        Ok(Some(header))
    }

    /// A block; `None` where the archive ends before it.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let (mut block, mut n) = ([0; BLOCK], 0);
        while n < BLOCK {
            match self.inner.read(&mut block[n..])? {
                0 if n == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => n += more,
            }
        }
        Ok(Some(block))
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

    /// What is left of an entry. Some writers leave out the padding at the end of the archive.
    fn skip(&mut self) -> io::Result<()> {
        let mut skip = |n_bytes: u64| io::copy(&mut (&mut self.inner).take(n_bytes), &mut io::sink());
        if skip(self.left)? != self.left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        skip(self.padding)?;
        (self.left, self.padding) = (0, 0);
        Ok(())
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

fn entry(header: &Header, flag: EntryType, extensions: Extensions) -> io::Result<Entry> {
    let kind = match flag {
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
    // A record without a value says nothing.
    pax.retain(|key, value| !value.is_empty() || key.starts_with(XATTR));
    let fields = header.as_old();
    let numeric = |key: &str, field: &[u8]| -> io::Result<i64> {
        let Some(value) = pax.get(key) else { return number(field) };
        let text = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        text.ok_or_else(|| invalid(&format!("PAX record {key} is no number")))
    };
    // The highest is no owner: for system calls it means that the owner stays as it is.
    let id = |number: i64| u32::try_from(number).ok().filter(|id| *id != u32::MAX);
    let id = |number: i64| id(number).ok_or_else(|| invalid("owner is out of range"));
    let size = numeric("size", &fields.size)?;
    let (uid, gid) = (id(numeric("uid", &fields.uid)?)?, id(numeric("gid", &fields.gid)?)?);
    let (mtime_s, mtime_ns) = bounded(match pax.get("mtime") {
        Some(value) => pax_time(value).ok_or_else(|| invalid("PAX record mtime is no time"))?,
        None => (number(&fields.mtime)?, 0),
    });
    let xattrs = pax
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_owned(), value.clone())))
        .collect();
    let given = |name: Option<Vec<u8>>| name.filter(|name| !name.is_empty());
    // GNU's long names come before those of PAX where an archive has both.
    let path = given(path).or(pax.remove("path")).unwrap_or_else(|| header.path_bytes().into_owned());
    let link = given(link)
        .or(pax.remove("linkpath"))
        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
        .unwrap_or_default();
    // Old archives, which have no flag for it, mark a directory by a trailing slash only.
    let is_old = header.as_bytes()[156] == 0;
    let kind = if kind == Kind::File && is_old && path.ends_with(b"/") { Kind::Directory } else { kind };
    let size = if kind == Kind::File { content_size(size)? } else { 0 };
    let device = match (kind, header.as_ustar()) {
        (Kind::CharDevice | Kind::BlockDevice, Some(fields)) => {
            (device_number(&fields.dev_major)?, device_number(&fields.dev_minor)?)
        }
        (Kind::CharDevice | Kind::BlockDevice, None) => match header.as_gnu() {
            Some(fields) => (device_number(&fields.dev_major)?, device_number(&fields.dev_minor)?),
            None => (0, 0),
        },
        _ => (0, 0),
    };
    let mode = u32::try_from(number(&fields.mode)? & 0o7777).unwrap_or_default();
    let sparse = None;
    Ok(Entry { kind, path, link, size, mode, uid, gid, mtime_s, mtime_ns, device, xattrs, sparse })
}

const XATTR: &str = "SCHILY.xattr.";

fn is_extension(kind: EntryType) -> bool {
    use EntryType::{GNULongLink, GNULongName, XGlobalHeader, XHeader};
    matches!(kind, GNULongLink | GNULongName | XGlobalHeader | XHeader)
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn content_size(size: i64) -> io::Result<u64> {
    u64::try_from(size).map_err(|_| invalid("a size below zero"))
}

fn device_number(field: &[u8]) -> io::Result<u32> {
    u32::try_from(number(field)?).map_err(|_| invalid("a device number is out of range"))
}

/// A number of a header: octal digits amid spaces and NULs, none for zero, or, where the first bit is set, a number of base 256 in two's
/// complement.
pub(super) fn number(field: &[u8]) -> io::Result<i64> {
    let out_of_range = || invalid("a number in a header is out of range");
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let is_negative = field[0] & 0x40 != 0;
        let first = if is_negative { field[0] } else { field[0] & 0x7f };
        let digits = [first].into_iter().chain(field[1..].iter().copied());
        let value = digits.fold(if is_negative { -1_i128 } else { 0 }, |value, byte| {
            // What is beyond 64 bits stays out of range, and does not overflow.
            (value.saturating_mul(256) | i128::from(byte)).clamp(-1 << 100, 1 << 100)
        });
        return i64::try_from(value).map_err(|_| out_of_range());
    }
    let is_blank = |byte: &u8| matches!(byte, 0 | b' ');
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    let digits = field[start..end].split(|byte| *byte == 0).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => {
            value.checked_mul(8).map(|value| value + i64::from(digit - b'0')).ok_or_else(out_of_range)
        }
        _ => Err(invalid("a number in a header is none")),
    })
}

/// The kernel's clock begins in 1970 and, counted in nanoseconds, ends in 2262. What is beyond is its beginning, as with containerd.
fn bounded(time: (i64, i64)) -> (i64, i64) {
    let in_ns = i128::from(time.0) * 1_000_000_000 + i128::from(time.1);
    if (0..=i128::from(i64::MAX)).contains(&in_ns) { time } else { (0, 0) }
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
        // Whether or not another record has the last word: a reader that stops at the NUL would see another name.
        if matches!(key, "path" | "linkpath") && value.contains(&0) {
            return Err(malformed());
        }
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
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
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
