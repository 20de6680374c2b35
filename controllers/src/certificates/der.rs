//! As much of DER as a certificate needs.
//!
//! Source: X.690 and RFC 5280.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::KeyPair;

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
pub(super) const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;

/// A value of a tag: its parts, one after the other.
pub(super) fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
            // At most eight.
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(0x30, parts)
}

/// `UTCTime` to the end of 2049, `GeneralizedTime` from then on.
pub(super) fn time(at: Timestamp) -> Vec<u8> {
    let utc = at.to_zoned(TimeZone::UTC);
    if (1950..2050).contains(&utc.year()) {
        tagged(0x17, &[utc.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()])
    } else {
        tagged(0x18, &[utc.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()])
    }
}

pub(super) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    sequence(&[&tagged(OID, &[oid]), critical, &tagged(OCTET_STRING, &[value])])
}

/// The two extensions that say what a certificate is for.
///
/// # Errors
/// The usage that none of the cluster's signers gives.
pub(super) fn usages(usages: &[String]) -> Result<Vec<Vec<u8>>, String> {
    let (mut bits, mut purposes) = (0_u8, Vec::new());
    for usage in usages {
        match usage.as_str() {
            "digital signature" | "signing" => bits |= 0x80,
            "key encipherment" => bits |= 0x20,
            "server auth" => purposes.push(tagged(OID, &[SERVER_AUTH])),
            "client auth" => purposes.push(tagged(OID, &[CLIENT_AUTH])),
            other => return Err(other.to_owned()),
        }
    }
    let mut extensions = Vec::new();
    if bits != 0 {
        let unused = u8::try_from(bits.trailing_zeros()).unwrap_or(0);
        extensions.push(extension(KEY_USAGE, true, &tagged(BIT_STRING, &[&[unused, bits]])));
    }
    if !purposes.is_empty() {
        purposes.sort();
        purposes.dedup();
        let parts: Vec<&[u8]> = purposes.iter().map(Vec::as_slice).collect();
        extensions.push(extension(EXTENDED_KEY_USAGE, false, &sequence(&parts)));
    }
    Ok(extensions)
}

/// The algorithm identifier of what a key signs.
pub(super) fn signature_algorithm(key: &KeyPair) -> Option<&'static [u8]> {
    let known: [(&rcgen::SignatureAlgorithm, &[u8]); 4] = [
        (
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        ),
        (
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
        ),
        (&rcgen::PKCS_ED25519, &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70]),
        (
            &rcgen::PKCS_RSA_SHA256,
            &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00],
        ),
    ];
    known.into_iter().find(|(algorithm, _)| key.algorithm() == *algorithm).map(|(_, der)| der)
}
