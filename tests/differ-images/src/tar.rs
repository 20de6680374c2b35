//! A layer's archive, byte by byte: no library would write most of these.

use crate::case::{Ending, Entry, Form, Kind, Layer, Odd, Sparse, Text};

const BLOCK: usize = 512;
/// Of a file that is stored without its holes.
const SPARSE_SIZE: usize = 10_000;

/// The uncompressed archive of a layer.
pub fn archive(layer: &Layer) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in &layer.entries {
        write(&mut out, entry);
    }
    let after = Entry::file("after-the-end", 4);
    let zeros = |out: &mut Vec<u8>, n: usize| out.resize(out.len() + n, 0);
    match layer.ending {
        Ending::TwoBlocks => zeros(&mut out, 2 * BLOCK),
        Ending::None => {}
        Ending::OneBlock => zeros(&mut out, BLOCK),
        Ending::ManyBlocks => zeros(&mut out, 21 * BLOCK),
        Ending::Garbage => {
            zeros(&mut out, 2 * BLOCK);
            out.extend([0x5a; 700]);
        }
        Ending::Entry => {
            zeros(&mut out, 2 * BLOCK);
            write(&mut out, &after);
        }
        Ending::OneBlockThenEntry => {
            zeros(&mut out, BLOCK);
            write(&mut out, &after);
        }
        Ending::CutHeader => {
            write(&mut out, &after);
            out.truncate(out.len() - 2 * BLOCK + 300);
        }
        Ending::CutContent => {
            write(&mut out, &after);
            out.truncate(out.len() - BLOCK + 2);
        }
        Ending::CutPadding => {
            write(&mut out, &after);
            out.truncate(out.len() - BLOCK + 4);
        }
        Ending::ShortBlock => zeros(&mut out, 100),
    }
    out
}

impl Entry {
    pub fn new(name: &str, kind: Kind) -> Entry {
        let (mode, mtime) = (0o755, 1_600_000_000);
        let (form, records, odd) = (Form::Ustar, Vec::new(), Vec::new());
        Entry { name: name.into(), kind, form, mode, uid: 0, gid: 0, mtime, records, odd }
    }

    pub fn file(name: &str, size: usize) -> Entry {
        Entry::new(name, Kind::File { fill: b'x', size })
    }

    fn is(&self, odd: Odd) -> bool {
        self.odd.contains(&odd)
    }
}

fn write(out: &mut Vec<u8>, entry: &Entry) {
    let mut records = entry.records.clone();
    let mut name = entry.name.0.clone();
    let (flag, body, link) = match &entry.kind {
        Kind::File { fill, size } => (b'0', vec![*fill; *size], None),
        Kind::Flag { flag, size } => (*flag, vec![b'f'; *size], None),
        Kind::Directory => (b'5', Vec::new(), None),
        Kind::Symlink { to } => (b'2', Vec::new(), Some(to)),
        Kind::Hardlink { to } => (b'1', Vec::new(), Some(to)),
        Kind::Char { .. } => (b'3', Vec::new(), None),
        Kind::Block { .. } => (b'4', Vec::new(), None),
        Kind::Fifo => (b'6', Vec::new(), None),
        Kind::Sparse(form) => {
            let (flag, body) = sparse(*form, &mut records, &mut name);
            (flag, body, None)
        }
        Kind::Global => {
            let records = pax(&[(Text::from("comment"), Text::from("of all that follows"))]);
            extension(out, b'g', b"pax_global_header", &records);
            return;
        }
    };
    let flag = if flag == b'0' && entry.is(Odd::OldFlag) { 0 } else { flag };
    let is_file = matches!(entry.kind, Kind::File { .. } | Kind::Flag { .. } | Kind::Sparse(_));
    let body = if !is_file && entry.is(Odd::RealSize) { vec![b'r'; 600] } else { body };
    let size = if !is_file && entry.is(Odd::ClaimedSize) { 4000 } else { body.len() };
    let link = link.map(|to| to.0.clone()).unwrap_or_default();

    let mut header = Block::new(entry.form);
    let is_pax = matches!(entry.form, Form::Pax | Form::Ustar);
    if !header.put_name(&name, entry.form) {
        if is_pax {
            records.push((Text::from("path"), Text(name.clone())));
        } else {
            extension(out, b'L', b"././@LongLink", &[&name[..], b"\0"].concat());
        }
    } else if entry.is(Odd::LongNameToo) {
        extension(out, b'L', b"././@LongLink", b"another-name\0");
    }
    if !header.put_link(&link) {
        if is_pax {
            records.push((Text::from("linkpath"), Text(link.clone())));
        } else {
            extension(out, b'K', b"././@LongLink", &[&link[..], b"\0"].concat());
        }
    }
    let type_bits = if entry.is(Odd::TypeInMode) { 0o100_000 } else { 0 };
    header.number(100..108, i64::from(entry.mode | type_bits), entry);
    for (range, key, value) in
        [(108..116, "uid", entry.uid), (116..124, "gid", entry.gid), (136..148, "mtime", entry.mtime)]
    {
        let fits = value >= 0 && value < 1 << (3 * (range.len() - 1));
        if !fits && is_pax && !entry.is(Odd::Base256) {
            records.push((Text::from(key), Text(value.to_string().into_bytes())));
            header.number(range, 0, entry);
        } else {
            header.number(range, value, entry);
        }
    }
    header.number(124..136, i64::try_from(size).unwrap_or(i64::MAX), entry);
    if let Kind::Char { major, minor } | Kind::Block { major, minor } = &entry.kind {
        header.number(329..337, i64::from(*major), entry);
        header.number(337..345, i64::from(*minor), entry);
    }
    if matches!(entry.kind, Kind::Sparse(Sparse::OldGnu)) {
        header.sparse_map();
    }
    for (odd, range) in [(Odd::BlankOwner, 108..124), (Odd::BlankMode, 100..108), (Odd::BlankTime, 136..148)]
    {
        if entry.is(odd) {
            header.0[range].fill(0);
        }
    }
    if entry.is(Odd::NoOctal) {
        header.0[100..108].copy_from_slice(b"0000abc\0");
    }
    header.0[156] = flag;
    header.sum(entry);
    if !records.is_empty() {
        extension(out, b'x', b"PaxHeaders/x", &pax(&records));
    }
    out.extend_from_slice(&header.0);
    out.extend_from_slice(&body);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

struct Block([u8; BLOCK]);

impl Block {
    fn new(form: Form) -> Block {
        let mut block = [0; BLOCK];
        match form {
            Form::V7 => {}
            Form::Gnu => block[257..265].copy_from_slice(b"ustar  \0"),
            Form::Ustar | Form::Pax => block[257..265].copy_from_slice(b"ustar\x0000"),
        }
        Block(block)
    }

    /// Whether it fits; what does not is cut off.
    fn put_name(&mut self, name: &[u8], form: Form) -> bool {
        if name.len() <= 100 {
            self.0[..name.len()].copy_from_slice(name);
            return true;
        }
        let ends = |at: &usize| {
            name[*at] == b'/' && *at <= 155 && *at > 0 && name.len() - at - 1 <= 100 && name.len() > at + 1
        };
        if form == Form::Ustar
            && let Some(at) = (0..name.len()).find(ends)
        {
            self.0[..name.len() - at - 1].copy_from_slice(&name[at + 1..]);
            self.0[345..345 + at].copy_from_slice(&name[..at]);
            return true;
        }
        self.0[..100].copy_from_slice(&name[..100]);
        false
    }

    fn put_link(&mut self, link: &[u8]) -> bool {
        let n = link.len().min(100);
        self.0[157..157 + n].copy_from_slice(&link[..n]);
        n == link.len()
    }

    fn number(&mut self, range: std::ops::Range<usize>, value: i64, entry: &Entry) {
        let digits = range.len() - 1;
        let fits = value >= 0 && (digits * 3 >= 63 || value < 1 << (3 * digits));
        let field = &mut self.0[range];
        if entry.is(Odd::Base256) || !fits {
            let sign = if value < 0 { 0xff } else { 0 };
            field.fill(sign);
            let bytes = value.to_be_bytes();
            let n = field.len().min(8);
            let at = field.len() - n;
            field[at..].copy_from_slice(&bytes[8 - n..]);
            field[0] |= 0x80;
            return;
        }
        let text = if entry.is(Odd::Spaces) {
            format!("{value:>digits$o} ")
        } else {
            format!("{value:0digits$o}\0")
        };
        field.copy_from_slice(text.as_bytes());
    }

    /// Two stretches of a file: 512 bytes at 1024 and 5 at 9000.
    fn sparse_map(&mut self) {
        for (at, number) in [(386, 1024), (398, 512), (410, 9000), (422, 5), (483, SPARSE_SIZE)] {
            self.0[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
    }

    fn sum(&mut self, entry: &Entry) {
        self.0[148..156].fill(b' ');
        let signed: i64 = self.0.iter().map(|byte| i64::from(byte.cast_signed())).sum();
        let unsigned: i64 = self.0.iter().map(|byte| i64::from(*byte)).sum();
        let mut sum = if entry.is(Odd::SignedChecksum) { signed } else { unsigned };
        if entry.is(Odd::WrongChecksum) {
            sum += 1;
        }
        self.0[148..156].copy_from_slice(format!("{:06o}\0 ", sum.max(0)).as_bytes());
    }
}

/// A header with content that amends the next one.
fn extension(out: &mut Vec<u8>, flag: u8, name: &[u8], content: &[u8]) {
    let plain = Entry::file("", 0);
    let mut header = Block::new(if flag == b'L' || flag == b'K' { Form::Gnu } else { Form::Ustar });
    header.put_name(name, Form::Ustar);
    for (range, value) in [(100..108, 0o644), (108..116, 0), (116..124, 0), (136..148, 0)] {
        header.number(range, value, &plain);
    }
    header.number(124..136, i64::try_from(content.len()).unwrap_or(i64::MAX), &plain);
    header.0[156] = flag;
    header.sum(&plain);
    out.extend_from_slice(&header.0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Records of `length key=value\n`, the length counting itself.
fn pax(records: &[(Text, Text)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let body = key.0.len() + value.0.len() + 3;
        let length =
            (1..=9).map(|digits| body + digits).find(|n| n.to_string().len() == n - body).unwrap_or(body);
        out.extend_from_slice(format!("{length} ").as_bytes());
        out.extend_from_slice(&key.0);
        out.push(b'=');
        out.extend_from_slice(&value.0);
        out.push(b'\n');
    }
    out
}

fn sparse(form: Sparse, records: &mut Vec<(Text, Text)>, name: &mut Vec<u8>) -> (u8, Vec<u8>) {
    let content = [&b"a"[..], &[b'x'; 511], b"HELLO"].concat();
    let mut record = |key: &str, value: &[u8]| records.push((Text::from(key), Text(value.to_vec())));
    let real = SPARSE_SIZE.to_string();
    match form {
        Sparse::OldGnu => (b'S', content),
        Sparse::Pax00 => {
            record("GNU.sparse.size", real.as_bytes());
            record("GNU.sparse.numblocks", b"2");
            for (key, value) in
                [("offset", "1024"), ("numbytes", "512"), ("offset", "9000"), ("numbytes", "5")]
            {
                record(&format!("GNU.sparse.{key}"), value.as_bytes());
            }
            (b'0', content)
        }
        Sparse::Pax01 | Sparse::Broken => {
            let map: &[u8] = if form == Sparse::Broken { b"1024,512,500,5" } else { b"1024,512,9000,5" };
            record("GNU.sparse.size", real.as_bytes());
            record("GNU.sparse.numblocks", b"2");
            record("GNU.sparse.name", name);
            record("GNU.sparse.map", map);
            name.splice(0..0, *b"GNUSparseFile.0/");
            (b'0', content)
        }
        Sparse::Pax10 => {
            record("GNU.sparse.major", b"1");
            record("GNU.sparse.minor", b"0");
            record("GNU.sparse.name", name);
            record("GNU.sparse.realsize", real.as_bytes());
            name.splice(0..0, *b"GNUSparseFile.0/");
            let mut with_map = b"2\n1024\n512\n9000\n5\n".to_vec();
            with_map.resize(BLOCK, 0);
            with_map.extend_from_slice(&content);
            (b'0', with_map)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_sum_that_the_format_wants() {
        let mut out = Vec::new();
        write(&mut out, &Entry::file("a", 3));
        assert_eq!(out.len(), 2 * BLOCK);
        let sum = std::str::from_utf8(&out[148..154]).unwrap();
        let sum = u32::from_str_radix(sum, 8).unwrap();
        out[148..156].fill(b' ');
        assert_eq!(out[..BLOCK].iter().map(|byte| u32::from(*byte)).sum::<u32>(), sum);
    }

    #[test]
    fn records_count_their_own_length() {
        let records = [(Text::from("a"), Text::from("b")), (Text::from("k"), Text(vec![b'v'; 95]))];
        let bytes = pax(&records);
        assert!(bytes.starts_with(b"6 a=b\n102 k="), "{}", bytes.escape_ascii());
        assert_eq!(bytes.len(), 6 + 102);
    }
}
