//! What is read of certificates and of requests for them: enough to say whether they are any, and for which key.
//!
//! Nothing is verified here: a signature is looked at by who has the means.
//!
//! # Guarantees
//! Reading is linear in the length of the text, whatever stands in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// One block of a text in PEM.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// `CERTIFICATE`
    pub label: String,
    pub has_headers: bool,
    pub der: Vec<u8>,
}

/// The blocks of a text in PEM, in order. What is no block is passed over, as upstream does.
pub fn pem(text: &str) -> Vec<Block> {
    let mut lines = text.lines().map(str::trim_end);
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        let label = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----"));
        let Some(label) = label else { continue };
        let end = format!("-----END {label}-----");
        let mut inside = lines.clone();
        let (mut body, mut has_headers, mut is_whole) = (String::new(), false, false);
        for line in inside.by_ref() {
            if line == end {
                is_whole = true;
                break;
            }
            // Another block begins: this one never ended.
            if line.starts_with("-----BEGIN ") {
                break;
            }
            if body.is_empty() && line.contains(':') {
                has_headers = true;
            } else {
                body.push_str(line.trim());
            }
        }
        if is_whole && let Ok(der) = STANDARD.decode(body) {
            blocks.push(Block { label: label.to_owned(), has_headers, der });
            lines = inside;
        }
    }
    blocks
}

/// The same the other way: lines of 64 characters, as everybody writes them.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines = body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n");
    format!("-----BEGIN {label}-----\n{}-----END {label}-----\n", lines.collect::<String>())
}

/// What a key is, as far as its size and its curve are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Ed25519,
    P224,
    P256,
    P384,
    P521,
    Rsa { bits: usize },
    Other,
}

/// A public key: what it is, and all of its bytes, which are the same for the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub kind: Key,
    pub der: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub key: PublicKey,
    pub is_authority: bool,
    /// Seconds since 1970.
    pub not_before_s: i64,
    pub not_after_s: i64,
    /// Whom it is for, by name and by address of mail.
    pub dns_names: Vec<String>,
    pub emails: Vec<String>,
}

/// A request for a certificate, and what it takes to see that who made it has the key.
#[derive(Debug)]
pub struct SignedRequest<'d> {
    pub key: PublicKey,
    /// What the key is for, as it stands in an `AlgorithmIdentifier` (RFC 5280), without its length.
    pub key_algorithm: &'d [u8],
    pub key_bits: &'d [u8],
    /// What the signature is of.
    pub signed: &'d [u8],
    /// How it was made, as `key_algorithm`.
    pub algorithm: &'d [u8],
    pub signature: &'d [u8],
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const BYTES: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ELLIPTIC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const CURVES: [(&[u8], Key); 4] = [
    (&[0x2b, 0x81, 0x04, 0x00, 0x21], Key::P224),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], Key::P256),
    (&[0x2b, 0x81, 0x04, 0x00, 0x22], Key::P384),
    (&[0x2b, 0x81, 0x04, 0x00, 0x23], Key::P521),
];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const EMAIL: u8 = 0x81;
const DNS_NAME: u8 = 0x82;

/// Values of DER, one after the other.
#[derive(Clone, Copy)]
struct Reader<'d>(&'d [u8]);

/// A value: what it is, what is in it, and it all.
struct Value<'d> {
    tag: u8,
    content: &'d [u8],
    whole: &'d [u8],
}

impl<'d> Reader<'d> {
    fn next(&mut self) -> Option<Value<'d>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - after.len()];
        self.0 = after;
        Some(Value { tag, content, whole })
    }

    fn expect(&mut self, tag: u8) -> Option<Value<'d>> {
        self.next().filter(|value| value.tag == tag)
    }

    /// The next value if it is of this tag.
    fn optional(&mut self, tag: u8) -> Option<Value<'d>> {
        let mut ahead = *self;
        let value = ahead.next().filter(|value| value.tag == tag)?;
        *self = ahead;
        Some(value)
    }
}

/// What is within the one value that a text consists of.
fn only(der: &[u8], tag: u8) -> Option<Reader<'_>> {
    let mut reader = Reader(der);
    let value = reader.expect(tag)?;
    reader.0.is_empty().then_some(Reader(value.content))
}

/// Reads a certificate (RFC 5280).
pub fn certificate(der: &[u8]) -> Option<Certificate> {
    let mut outer = only(der, SEQUENCE)?;
    let mut signed = Reader(outer.expect(SEQUENCE)?.content);
    outer.expect(SEQUENCE)?;
    outer.expect(BITS)?;
    signed.optional(VERSION);
    signed.expect(INTEGER)?;
    for _ in ["algorithm", "issuer"] {
        signed.expect(SEQUENCE)?;
    }
    let mut validity = Reader(signed.expect(SEQUENCE)?.content);
    let (not_before_s, not_after_s) = (time(&validity.next()?)?, time(&validity.next()?)?);
    signed.expect(SEQUENCE)?;
    let key = public_key(&signed.expect(SEQUENCE)?)?;
    let mut found = Certificate {
        key,
        is_authority: false,
        not_before_s,
        not_after_s,
        dns_names: vec![],
        emails: vec![],
    };
    while let Some(value) = signed.next() {
        if value.tag == EXTENSIONS {
            read_extensions(only(value.content, SEQUENCE)?, &mut found)?;
        }
    }
    Some(found)
}

/// Whether extensions say that the certificate is an authority's, and whom it is for.
fn read_extensions(mut extensions: Reader<'_>, certificate: &mut Certificate) -> Option<()> {
    while !extensions.0.is_empty() {
        let mut extension = Reader(extensions.expect(SEQUENCE)?.content);
        let name = extension.expect(OBJECT)?;
        extension.optional(BOOLEAN);
        let value = extension.expect(BYTES)?;
        if name.content == BASIC_CONSTRAINTS {
            let mut constraints = only(value.content, SEQUENCE)?;
            certificate.is_authority = constraints.optional(BOOLEAN).is_some_and(|is| is.content == [0xff]);
        }
        if name.content == ALTERNATIVE_NAMES {
            let mut names = only(value.content, SEQUENCE)?;
            while !names.0.is_empty() {
                let name = names.next()?;
                let of_kind = match name.tag {
                    EMAIL => &mut certificate.emails,
                    DNS_NAME => &mut certificate.dns_names,
                    _ => continue,
                };
                let text = std::str::from_utf8(name.content).ok().filter(|text| text.is_ascii())?;
                of_kind.push(text.to_owned());
            }
        }
    }
    Some(())
}

/// Reads whose key a request for a certificate (RFC 2986) is about.
pub fn request(der: &[u8]) -> Option<PublicKey> {
    Some(signed_request(der)?.key)
}

/// The same, with its signature.
pub fn signed_request(der: &[u8]) -> Option<SignedRequest<'_>> {
    let mut outer = only(der, SEQUENCE)?;
    let signed = outer.expect(SEQUENCE)?;
    let algorithm = outer.expect(SEQUENCE)?.content;
    let signature = whole_bytes(&outer.expect(BITS)?)?;
    let mut asked = Reader(signed.content);
    asked.expect(INTEGER)?;
    asked.expect(SEQUENCE)?;
    let info = asked.expect(SEQUENCE)?;
    let mut parts = Reader(info.content);
    let key_algorithm = parts.expect(SEQUENCE)?.content;
    let key_bits = whole_bytes(&parts.expect(BITS)?)?;
    let key = public_key(&info)?;
    Some(SignedRequest { key, key_algorithm, key_bits, signed: signed.whole, algorithm, signature })
}

/// Bits that are bytes: the first says how many at the end are not used.
fn whole_bytes<'d>(bits: &Value<'d>) -> Option<&'d [u8]> {
    bits.content.split_first().filter(|(n_unused, _)| **n_unused == 0).map(|(_, bytes)| bytes)
}

fn public_key(value: &Value<'_>) -> Option<PublicKey> {
    let mut parts = Reader(value.content);
    let mut algorithm = Reader(parts.expect(SEQUENCE)?.content);
    let name = algorithm.expect(OBJECT)?.content;
    let bits = whole_bytes(&parts.expect(BITS)?)?;
    let kind = match name {
        ED25519 => Key::Ed25519,
        ELLIPTIC => {
            let curve = algorithm.expect(OBJECT)?.content;
            CURVES.iter().find(|(known, _)| *known == curve).map_or(Key::Other, |(_, key)| *key)
        }
        RSA => {
            let modulus = only(bits, SEQUENCE)?.expect(INTEGER)?.content;
            let n_zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            Key::Rsa { bits: (modulus.len() - n_zeros) * 8 }
        }
        _ => Key::Other,
    };
    Some(PublicKey { kind, der: value.whole.to_vec() })
}

/// `261130142200Z`, or with all digits of the year.
fn time(value: &Value<'_>) -> Option<i64> {
    let text = std::str::from_utf8(value.content).ok()?.strip_suffix('Z')?;
    let full = match value.tag {
        // RFC 5280: two digits mean the years 1950 to 2049.
        UTC_TIME => format!("{}{text}", if text.as_bytes().first()? >= &b'5' { "19" } else { "20" }),
        TIME => text.to_owned(),
        _ => return None,
    };
    let at = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", &full).ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by `openssl req -x509 -newkey ec -days 3650`, and by `openssl x509 -req` of a request of `openssl req -newkey rsa:3072`.
    const AUTHORITY: &str = include_str!("x509/authority.pem");
    const LEAF: &str = include_str!("x509/leaf.pem");
    const REQUEST: &str = include_str!("x509/request.pem");

    #[test]
    fn a_certificate_says_for_how_long_and_whose_key() {
        let authority = certificate(&pem(AUTHORITY)[0].der).expect("a certificate");
        assert!(authority.is_authority);
        assert_eq!(authority.key.kind, Key::P256);
        assert_eq!(authority.not_after_s - authority.not_before_s, 3650 * 86_400);
        let leaf = certificate(&pem(LEAF)[0].der).expect("a certificate");
        assert!(!leaf.is_authority);
        assert_eq!(leaf.key.kind, Key::Rsa { bits: 3072 });
        assert!(leaf.dns_names.is_empty() && leaf.emails.is_empty(), "{leaf:?}");
    }

    #[test]
    fn whom_a_certificate_is_for_is_read_of_its_extensions() {
        let mut certificate = certificate(&pem(LEAF)[0].der).expect("a certificate");
        // An extension with the names `a.b` and `c@d`, and an address that is passed over.
        let names =
            b"\x30\x1b\x30\x19\x06\x03\x55\x1d\x11\x04\x12\x30\x10\x82\x03a.b\x81\x03c@d\x87\x04\x7f\0\0\x01";
        read_extensions(only(names, SEQUENCE).expect("a sequence"), &mut certificate).expect("names");
        assert_eq!((certificate.dns_names, certificate.emails), (vec!["a.b".into()], vec!["c@d".into()]));
    }

    #[test]
    fn a_request_is_about_the_key_of_its_certificate() {
        let asked = request(&pem(REQUEST)[0].der).expect("a request");
        assert_eq!(asked, certificate(&pem(LEAF)[0].der).expect("a certificate").key);
        assert_eq!(certificate(&pem(REQUEST)[0].der), None);
        assert_eq!(request(&pem(LEAF)[0].der), None);
        let der = &pem(REQUEST)[0].der;
        let signed = signed_request(der).expect("a request");
        assert_eq!(signed.signature.len(), 3072 / 8);
        assert_eq!(
            signed.algorithm,
            [&[0x06, 0x09][..], &RSA[..8], &[0x0b, 0x05, 0x00]].concat(),
            "with SHA-256"
        );
        assert!(der.ends_with(signed.signature) && signed.signed.len() < der.len());
    }

    #[test]
    fn what_is_no_block_is_passed_over() {
        let text =
            format!("note\n-----BEGIN X-----\nno base64!\n-----END X-----\n{LEAF}rest\n-----BEGIN Y-----\n");
        assert_eq!(pem(&text), pem(LEAF));
        assert_eq!(to_pem("CERTIFICATE", &pem(LEAF)[0].der), LEAF);
        let headed = "-----BEGIN A-----\nk: v\n\nAAAA\n-----END A-----\n";
        assert_eq!(pem(headed), [Block { label: "A".into(), has_headers: true, der: vec![0, 0, 0] }]);
    }

    proptest! {
        #[test]
        fn whatever_is_read_makes_no_panic(any: Vec<u8>, at: usize, byte: u8) {
            _ = (certificate(&any), request(&any));
            let mut bytes = pem(LEAF).remove(0).der;
            let at = at % bytes.len();
            bytes[at] = byte;
            _ = (certificate(&bytes), request(&bytes));
            bytes.truncate(at);
            _ = (certificate(&bytes), request(&bytes));
        }
    }
}
