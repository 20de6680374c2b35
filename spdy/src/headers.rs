//! Header blocks: names and values behind lengths, in one zlib stream a direction that begins with a dictionary known to
//! both sides.
//!
//! The decompressor at hand knows no such dictionaries. A stored block with the dictionary's text, put before what the
//! other side sends, fills its window in the same way. What is sent are stored blocks: answers have no headers.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress};

/// Of all headers of a stream, read.
const MAX_BLOCK_BYTES: usize = 16 << 10;
const MAX_HEADERS: u32 = 64;
const DICTIONARY_ADLER: u32 = 0xe3c6_a7c2;
const ZLIB_HEAD: [u8; 2] = [0x78, 0xbb];
/// What ends a run of blocks on a whole byte, as zlib's own flush does.
const EMPTY_BLOCK: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// The first part of the dictionary: words, each behind its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// The second part.
const REST: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized",
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,",
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
);

static DICTIONARY: LazyLock<Bytes> = LazyLock::new(|| {
    let mut dictionary = BytesMut::new();
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('_', " ");
        dictionary.put_u32(u32::try_from(word.len()).unwrap_or_default());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(REST.as_bytes());
    dictionary.freeze()
});

/// Why a header block cannot be read. The connection's compression is lost with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("headers are not a zlib stream with SPDY's dictionary")]
    NotZlib,
    #[error("headers are compressed wrongly")]
    Corrupt,
    #[error("headers take more than {MAX_BLOCK_BYTES} bytes, or are more than {MAX_HEADERS}")]
    TooLarge,
    #[error("headers end within a name or a value, or are no text")]
    Malformed,
}

/// The headers of a stream, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, whose name is asked for in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
        fn number(block: &mut &[u8]) -> Result<u32, HeaderError> {
            let (bytes, rest) = block.split_first_chunk().ok_or(HeaderError::Malformed)?;
            *block = rest;
            Ok(u32::from_be_bytes(*bytes))
        }
        fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
            let length = number(block)? as usize;
            let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Malformed)?;
            *block = rest;
            String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Malformed)
        }
        let count = number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(HeaderError::TooLarge);
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = text(&mut block)?.to_ascii_lowercase();
            headers.push((name, text(&mut block)?));
        }
        Ok(Headers(headers))
    }
}

/// Reads the header blocks of a connection, one after the other.
pub(crate) struct Inflater {
    stream: Decompress,
    begun: bool,
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater { stream: Decompress::new(false), begun: false }
    }
}

impl Inflater {
    pub(crate) fn headers(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        if !self.begun {
            self.begun = true;
            block = self.begin(block)?;
        }
        Headers::parse(&self.inflate(block)?)
    }

    /// Takes the head of the zlib stream.
    fn begin<'b>(&mut self, block: &'b [u8]) -> Result<&'b [u8], HeaderError> {
        let (head, rest) = block.split_first_chunk::<2>().ok_or(HeaderError::NotZlib)?;
        let is_zlib = head[0] & 0x0f == 8 && u16::from_be_bytes(*head) % 31 == 0;
        if !is_zlib {
            return Err(HeaderError::NotZlib);
        }
        if head[1] & 0x20 == 0 {
            return Ok(rest);
        }
        let (adler, rest) = rest.split_first_chunk().ok_or(HeaderError::NotZlib)?;
        if u32::from_be_bytes(*adler) != DICTIONARY_ADLER {
            return Err(HeaderError::NotZlib);
        }
        self.inflate(&stored(&DICTIONARY))?;
        Ok(rest)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut out = vec![0; MAX_BLOCK_BYTES + 1];
        let (in_before, out_before) = (self.stream.total_in(), self.stream.total_out());
        loop {
            // Neither is longer than a frame.
            let taken = usize::try_from(self.stream.total_in() - in_before).unwrap_or(block.len());
            let made = usize::try_from(self.stream.total_out() - out_before).unwrap_or(out.len());
            if made == out.len() {
                return Err(HeaderError::TooLarge);
            }
            let (input, output) = (block.get(taken..).unwrap_or_default(), &mut out[made..]);
            self.stream.decompress(input, output, FlushDecompress::Sync).map_err(|_| HeaderError::Corrupt)?;
            let in_now = usize::try_from(self.stream.total_in() - in_before).unwrap_or(block.len());
            let out_now = usize::try_from(self.stream.total_out() - out_before).unwrap_or(made);
            if in_now == taken && out_now == made {
                if taken < block.len() {
                    return Err(HeaderError::Corrupt);
                }
                out.truncate(made);
                return Ok(out);
            }
        }
    }
}

/// Writes header blocks.
#[derive(Default)]
pub(crate) struct Deflater {
    begun: bool,
}

impl Deflater {
    /// A block that has no header.
    pub(crate) fn no_headers(&mut self) -> Bytes {
        let mut block = BytesMut::new();
        if !std::mem::replace(&mut self.begun, true) {
            block.extend_from_slice(&ZLIB_HEAD);
            block.put_u32(DICTIONARY_ADLER);
        }
        block.extend_from_slice(&stored(&0_u32.to_be_bytes()));
        block.freeze()
    }
}

/// A text as it is in a block that compresses nothing, and an empty one, after which a reader need not wait for more.
fn stored(text: &[u8]) -> Bytes {
    let length = u16::try_from(text.len()).unwrap_or_default();
    let mut block = BytesMut::with_capacity(text.len() + 10);
    block.put_u8(0);
    block.put_u16_le(length);
    block.put_u16_le(!length);
    block.extend_from_slice(text);
    block.extend_from_slice(&EMPTY_BLOCK);
    block.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What zlib makes of these headers with the dictionary, flushed after each.
    const FIRST: &str =
        "78f9e3c6a7c202253a50ca0a2e294a4dcc851625aca9a080c65ad44ae3f134a41c2f0267190b030b0300000000ffff";
    const SECOND: &str = "c26a36a8984aa4d86800000000ffff";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn adler(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_one_that_both_sides_know() {
        assert_eq!(DICTIONARY.len(), 1423);
        assert_eq!(adler(&DICTIONARY), DICTIONARY_ADLER);
    }

    #[test]
    fn blocks_of_a_connection_are_one_stream_that_begins_with_the_dictionary() {
        let mut inflater = Inflater::default();
        let first = inflater.headers(&bytes(FIRST)).unwrap();
        assert_eq!(first.get("streamtype"), Some("error"));
        assert_eq!(first.get("accept-charset"), Some("chunked,text/html,image/png"));
        let second = inflater.headers(&bytes(SECOND)).unwrap();
        assert_eq!(second.get("streamtype"), Some("data"));
        assert_eq!(second.get("port"), Some("8080"));
    }

    #[test]
    fn what_is_written_can_be_read() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for _ in 0..3 {
            assert_eq!(inflater.headers(&deflater.no_headers()), Ok(Headers::default()));
        }
    }

    #[test]
    fn a_block_is_bounded_by_what_it_becomes() {
        // 64 KiB of zeros in a few bytes.
        let mut bomb = flate2::Compress::new(flate2::Compression::best(), false);
        let mut small = vec![0; 1024];
        let made = bomb.compress(&[0; 65536], &mut small, flate2::FlushCompress::Sync).unwrap();
        assert_eq!(made, flate2::Status::Ok);
        small.truncate(usize::try_from(bomb.total_out()).unwrap());
        let block = [&[0x78, 0x9c][..], &small].concat();
        assert_eq!(Inflater::default().headers(&block), Err(HeaderError::TooLarge));
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        for block in [&b""[..], b"x", b"GET / HTTP/1.1", &[0x78, 0xbb, 1, 2, 3, 4], &[0x78, 0xbb]] {
            assert_eq!(Inflater::default().headers(block), Err(HeaderError::NotZlib));
        }
        for text in
            [&[0, 0, 0, 1, 0, 0, 0, 9, b'a'][..], &[0, 0], &[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]]
        {
            let block = [&[0x78, 0x9c][..], &stored(text)].concat();
            assert_eq!(Inflater::default().headers(&block), Err(HeaderError::Malformed));
        }
    }
}
