//! Links in what a backend answers, made to lead through the proxy: in `Location` and in HTML.
//!
//! A page is rewritten as it passes. What is held back is at most one tag that has not ended yet; one that is
//! longer than [`MAX_HELD_BYTES`] passes as it is.

use std::io::Write;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use futures::{StreamExt, stream};

const MAX_HELD_BYTES: usize = 64 << 10;

/// Attributes that are URLs, by tag (HTML 4 index of attributes, and the later `source` and `video`).
const URLS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Tags whose content is text up to their end tag.
const RAW: &[&str] = &["iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp"];

/// What links are made of.
#[derive(Clone, Debug)]
pub(super) struct Links {
    /// Path of the proxied root, without a slash at its end.
    pub(super) prefix: String,
    /// The address of the backend, and the host that the client asked: links to either lead back to it.
    pub(super) backend: String,
    pub(super) host: String,
}

impl Links {
    /// A URL as the client can follow it. Relative ones, and those of other hosts, stay as they are.
    pub(super) fn rewritten(&self, url: &str) -> String {
        let (origin, host, path) = split(url);
        let is_ours = host.is_empty() || host == self.backend || host == self.host;
        if !is_ours || !path.starts_with('/') {
            return url.to_owned();
        }
        let origin = if !host.is_empty() && host == self.host { origin } else { "" };
        if path.starts_with(&self.prefix) {
            format!("{origin}{path}")
        } else {
            format!("{origin}{}{path}", self.prefix)
        }
    }
}

/// Scheme and authority together, the authority, and the rest from the path on.
fn split(url: &str) -> (&str, &str, &str) {
    let after_scheme = url.find("//").filter(|at| *at == 0 || is_scheme(&url[..*at]));
    let Some(start) = after_scheme.map(|at| at + 2) else { return ("", "", url) };
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    (&url[..end], &url[start..end], &url[end..])
}

fn is_scheme(text: &str) -> bool {
    let Some(scheme) = text.strip_suffix(':') else { return false };
    !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Gzip,
}

/// A page with its links rewritten.
pub(super) fn body(page: Body, links: Links, encoding: Encoding) -> Body {
    let rewriter = Rewriter { links, held: Vec::new(), raw: None };
    let coder = match encoding {
        Encoding::Plain => None,
        Encoding::Gzip => Some(Coder {
            decoder: GzDecoder::new(Vec::new()),
            encoder: GzEncoder::new(Vec::new(), Compression::fast()),
        }),
    };
    let state = Some((page.into_data_stream(), Page { rewriter, coder }));
    Body::from_stream(stream::unfold(state, async |state| {
        let (mut input, mut page) = state?;
        match input.next().await {
            Some(Ok(chunk)) => match page.pass(&chunk) {
                Ok(bytes) => Some((Ok(bytes), Some((input, page)))),
                Err(error) => Some((Err(axum::Error::new(error)), None)),
            },
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((page.end().map_err(axum::Error::new), None)),
        }
    }))
}

struct Page {
    rewriter: Rewriter,
    coder: Option<Coder>,
}

struct Coder {
    decoder: GzDecoder<Vec<u8>>,
    encoder: GzEncoder<Vec<u8>>,
}

impl Page {
    fn pass(&mut self, chunk: &[u8]) -> std::io::Result<Bytes> {
        let Some(coder) = &mut self.coder else { return Ok(self.rewriter.feed(chunk).into()) };
        coder.decoder.write_all(chunk)?;
        let plain = std::mem::take(coder.decoder.get_mut());
        coder.encoder.write_all(&self.rewriter.feed(&plain))?;
        Ok(std::mem::take(coder.encoder.get_mut()).into())
    }

    fn end(mut self) -> std::io::Result<Bytes> {
        let Some(coder) = self.coder else { return Ok(self.rewriter.end().into()) };
        let Coder { decoder, mut encoder } = coder;
        let mut rest = self.rewriter.feed(&decoder.finish()?);
        rest.extend(self.rewriter.end());
        encoder.write_all(&rest)?;
        encoder.finish().map(Bytes::from)
    }
}

/// Passes a page on, tag by tag.
struct Rewriter {
    links: Links,
    /// The beginning of what has not ended yet.
    held: Vec<u8>,
    /// The tag whose text goes on until its end tag.
    raw: Option<&'static str>,
}

/// The next piece of a page, by its length.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// Passes as it is.
    Text(usize),
    /// From `<` to `>`.
    Tag(usize),
    /// Not all there yet.
    Unfinished,
}

impl Rewriter {
    fn feed(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(chunk);
        let mut out = Vec::with_capacity(bytes.len() + self.links.prefix.len());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let length = match self.next(rest) {
                Piece::Text(length) => {
                    out.extend_from_slice(&rest[..length]);
                    length
                }
                Piece::Tag(length) => {
                    self.tag(&rest[..length], &mut out);
                    length
                }
                Piece::Unfinished if rest.len() <= MAX_HELD_BYTES => break,
                Piece::Unfinished => {
                    out.extend_from_slice(rest);
                    rest.len()
                }
            };
            rest = &rest[length..];
        }
        self.held = rest.to_vec();
        out
    }

    /// What is left at the end of the page.
    fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    fn next(&mut self, rest: &[u8]) -> Piece {
        if let Some(raw) = self.raw {
            return match find_end_tag(rest, raw) {
                Some(0) => {
                    self.raw = None;
                    Piece::Text(1)
                }
                Some(length) => Piece::Text(length),
                // The end tag may have begun.
                None => match rest.len().saturating_sub(raw.len() + 1) {
                    0 => Piece::Unfinished,
                    length => Piece::Text(length),
                },
            };
        }
        if rest[0] != b'<' {
            return Piece::Text(rest.iter().position(|b| *b == b'<').unwrap_or(rest.len()));
        }
        let until = |end: &[u8]| rest.windows(end.len()).position(|window| window == end);
        match rest.get(1) {
            None => Piece::Unfinished,
            Some(b'!') if rest.starts_with(b"<!--") => {
                until(b"-->").map_or(Piece::Unfinished, |at| Piece::Text(at + 3))
            }
            Some(b'!') if b"<!--".starts_with(rest) => Piece::Unfinished,
            Some(b'!' | b'?' | b'/') => until(b">").map_or(Piece::Unfinished, |at| Piece::Text(at + 1)),
            Some(letter) if letter.is_ascii_alphabetic() => {
                tag_length(rest).map_or(Piece::Unfinished, Piece::Tag)
            }
            Some(_) => Piece::Text(1),
        }
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let name_end = tag.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'/' | b'>'));
        let name_end = name_end.unwrap_or(tag.len());
        let name = String::from_utf8_lossy(&tag[1..name_end]).to_ascii_lowercase();
        self.raw = RAW.iter().find(|raw| **raw == name).copied();
        let urls = URLS.iter().find(|(of, _)| *of == name).map(|(_, urls)| *urls).unwrap_or_default();
        let mut copied = 0;
        for (attribute, value) in attributes(tag, name_end) {
            let Ok(url) = std::str::from_utf8(&tag[value.clone()]) else { continue };
            if urls.contains(&attribute.as_str()) {
                out.extend_from_slice(&tag[copied..value.start]);
                out.extend_from_slice(self.links.rewritten(url).as_bytes());
                copied = value.end;
            }
        }
        out.extend_from_slice(&tag[copied..]);
    }
}

/// Where `</name` begins.
fn find_end_tag(text: &[u8], name: &str) -> Option<usize> {
    let length = name.len() + 2;
    text.windows(length)
        .position(|window| window.starts_with(b"</") && window[2..].eq_ignore_ascii_case(name.as_bytes()))
}

/// The length of a tag up to its `>`, which may also stand in quotes.
fn tag_length(tag: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in tag.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            // Only after `=` a quote begins a value.
            (None, b'"' | b'\'') if ends_with_equals(&tag[..at]) => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

fn ends_with_equals(text: &[u8]) -> bool {
    text.trim_ascii_end().ends_with(b"=")
}

/// The attributes of a tag that have values: names in lower case, and where the values lie.
fn attributes(tag: &[u8], mut at: usize) -> Vec<(String, std::ops::Range<usize>)> {
    let is_space = |at: usize| tag.get(at).is_some_and(u8::is_ascii_whitespace);
    let find = |from: usize, ends: &dyn Fn(u8) -> bool| {
        tag[from..].iter().position(|b| ends(*b)).map_or(tag.len(), |n| from + n)
    };
    let mut found = Vec::new();
    loop {
        while is_space(at) || tag.get(at) == Some(&b'/') {
            at += 1;
        }
        if at >= tag.len() || tag[at] == b'>' {
            return found;
        }
        let name_start = at;
        // A name may begin with `=`, which would otherwise be no name at all.
        at = find(at + 1, &|b| b.is_ascii_whitespace() || matches!(b, b'=' | b'>' | b'/'));
        let name = String::from_utf8_lossy(&tag[name_start..at]).to_ascii_lowercase();
        while is_space(at) {
            at += 1;
        }
        if tag.get(at) != Some(&b'=') {
            continue;
        }
        at += 1;
        while is_space(at) {
            at += 1;
        }
        let value = match tag.get(at) {
            Some(quote @ (b'"' | b'\'')) => {
                let end = find(at + 1, &|b| b == *quote);
                at + 1..end
            }
            _ => at..find(at, &|b| b.is_ascii_whitespace() || b == b'>'),
        };
        at = if tag.get(value.end).is_some_and(|b| matches!(b, b'"' | b'\'')) {
            value.end + 1
        } else {
            value.end
        };
        found.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/a/pods/p/proxy";

    fn links() -> Links {
        Links { prefix: PREFIX.into(), backend: "10.0.0.7:80".into(), host: "example.org:6443".into() }
    }

    fn rewritten(page: &str) -> String {
        let mut rewriter = Rewriter { links: links(), held: Vec::new(), raw: None };
        let mut out = rewriter.feed(page.as_bytes());
        out.extend(rewriter.end());
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn links_to_the_same_host_lead_through_the_proxy() {
        for (url, expected) in [
            ("/x?y=/z", "PREFIX/x?y=/z"),
            ("x/y", "x/y"),
            ("?q", "?q"),
            ("#top", "#top"),
            ("http://10.0.0.7:80/x", "PREFIX/x"),
            ("https://example.org:6443/x", "https://example.org:6443PREFIX/x"),
            ("https://elsewhere.org/x", "https://elsewhere.org/x"),
            ("//elsewhere.org/x", "//elsewhere.org/x"),
            ("mailto:a@b", "mailto:a@b"),
            ("PREFIX/x", "PREFIX/x"),
            ("/x//y", "PREFIX/x//y"),
        ] {
            let with_prefix = |text: &str| text.replace("PREFIX", PREFIX);
            assert_eq!(links().rewritten(&with_prefix(url)), with_prefix(expected), "{url}");
        }
    }

    #[test]
    fn only_urls_of_a_page_change() {
        for (page, expected) in [
            (r#"<a href="/x">test</a>"#, r#"<a href="PREFIX/x">test</a>"#),
            ("<A class=b HREF='/x' id=c>/x</A>", "<A class=b HREF='PREFIX/x' id=c>/x</A>"),
            ("<img src=/x><img src=/y/>", "<img src=PREFIX/x><img src=PREFIX/y/>"),
            (r#"<a title="> /x" href = "/x">"#, r#"<a title="> /x" href = "PREFIX/x">"#),
            (r#"<p href="/x"> 1 < 2"#, r#"<p href="/x"> 1 < 2"#),
            (r#"<!-- <a href="/x"> --><a href="/y">"#, r#"<!-- <a href="/x"> --><a href="PREFIX/y">"#),
            (
                r#"<script src="/s">if (a<b) "<a href='/x'>"</script><a href="/y">"#,
                r#"<script src="PREFIX/s">if (a<b) "<a href='/x'>"</script><a href="PREFIX/y">"#,
            ),
            (r#"<a href="/unfinished"#, r#"<a href="/unfinished"#),
        ] {
            assert_eq!(rewritten(page), expected.replace("PREFIX", PREFIX), "{page}");
        }
    }

    #[test]
    fn a_tag_without_an_end_is_not_held_for_ever() {
        let mut rewriter = Rewriter { links: links(), held: Vec::new(), raw: None };
        let mut n_out = rewriter.feed(b"<a href=\"").len();
        for _ in 0..1000 {
            n_out += rewriter.feed(&[b'x'; 1000]).len();
            assert!(rewriter.held.len() <= MAX_HELD_BYTES);
        }
        assert_eq!(n_out + rewriter.held.len(), 9 + 1_000_000);
    }

    #[tokio::test]
    async fn a_compressed_page_stays_compressed() {
        let page = r#"<a href="/x">test</a>"#.repeat(1000);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(page.as_bytes()).expect("compresses");
        let compressed = encoder.finish().expect("compresses");
        let chunks: Vec<Result<Bytes, std::io::Error>> =
            compressed.chunks(7).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let rewritten = body(Body::from_stream(stream::iter(chunks)), links(), Encoding::Gzip);
        let bytes = rewritten.collect().await.expect("a page").to_bytes();
        let mut decoder = GzDecoder::new(Vec::new());
        decoder.write_all(&bytes).expect("gzip");
        let text = String::from_utf8(decoder.finish().expect("gzip")).expect("UTF-8");
        assert_eq!(text, page.replace("/x", &format!("{PREFIX}/x")));
    }

    proptest! {
        #[test]
        fn how_a_page_is_cut_into_chunks_does_not_matter(
            page in r#"(<a href="/x">|<img src=/y>|<script>|</script>|<!--|-->|<|>|"|'|=| |text|</p>){0,30}"#,
            size in 1usize..9,
        ) {
            let mut rewriter = Rewriter { links: links(), held: Vec::new(), raw: None };
            let mut out: Vec<u8> = page.as_bytes().chunks(size).flat_map(|chunk| rewriter.feed(chunk)).collect();
            out.extend(rewriter.end());
            prop_assert_eq!(String::from_utf8_lossy(&out).into_owned(), rewritten(&page));
        }

        #[test]
        fn no_page_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rewriter = Rewriter { links: links(), held: Vec::new(), raw: None };
            let _ = rewriter.feed(&bytes);
        }
    }
}
