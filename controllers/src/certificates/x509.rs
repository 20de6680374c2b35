//! Requests read, and certificates written.
//!
//! A certificate is put together from the parts of the request as they came (subject, key, alternative names), so that
//! nothing of what was checked is lost or changed on the way.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, SigningKey as _};
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

use super::der;

/// For clocks that are behind: always less than the shortest life of a certificate.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// A certificate that lives shorter than this keeps its end in spite of that.
const SHORT: SignedDuration = SignedDuration::from_hours(8);

#[derive(Debug, Error)]
pub(super) enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("the PEM block holds no PKCS#10 certificate request")]
    Der,
    #[error("the signature of the request is not valid")]
    Signature,
    #[error("the subject of the request is not text")]
    Subject,
    #[error("the request has more than one list of subject alternative names")]
    Names,
}

/// What a request asks for.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) common_names: Vec<String>,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) n_emails: usize,
    pub(super) n_uris: usize,
    /// Alternative names of other forms, or malformed ones.
    pub(super) n_others: usize,
    subject_der: Vec<u8>,
    public_key_der: Vec<u8>,
    /// The content of the extension, if there is one.
    names_der: Option<Vec<u8>>,
}

impl Request {
    pub(super) fn parse(pem: &[u8]) -> Result<Request, RequestError> {
        let (pem, _) = Pem::read(std::io::Cursor::new(pem)).map_err(|_| RequestError::Pem)?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err(RequestError::Pem);
        }
        let (rest, parsed) =
            X509CertificationRequest::from_der(&pem.contents).map_err(|_| RequestError::Der)?;
        if !rest.is_empty() {
            return Err(RequestError::Der);
        }
        parsed.verify_signature().map_err(|_| RequestError::Signature)?;
        let info = &parsed.certification_request_info;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value.as_str().map(str::to_owned).map_err(|_| RequestError::Subject)
        };
        let mut request = Request {
            common_names: info.subject.iter_common_name().map(text).collect::<Result<_, _>>()?,
            organizations: info.subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            subject_der: info.subject.as_raw().to_vec(),
            public_key_der: info.subject_pki.raw.to_vec(),
            ..Request::default()
        };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
                continue;
            };
            let names = requested.extensions.iter().filter(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
            for extension in names {
                if request.names_der.replace(extension.value.to_vec()).is_some() {
                    return Err(RequestError::Names);
                }
                request.add_names(extension.parsed_extension());
            }
        }
        Ok(request)
    }

    fn add_names(&mut self, extension: &ParsedExtension<'_>) {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            self.n_others += 1;
            return;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match ip_of(bytes) {
                    Some(ip) => self.ips.push(ip),
                    None => self.n_others += 1,
                },
                GeneralName::RFC822Name(_) => self.n_emails += 1,
                GeneralName::URI(_) => self.n_uris += 1,
                _ => self.n_others += 1,
            }
        }
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    // An IPv4 address in IPv6's clothes is that address to everybody who checks it.
    <[u8; 16]>::try_from(bytes).ok().map(|six| IpAddr::from(six).to_canonical())
}

/// When the first certificate of some PEM stops being valid.
pub(super) fn not_after(pem: &[u8]) -> Option<Timestamp> {
    let (pem, _) = Pem::read(std::io::Cursor::new(pem)).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[derive(Debug, Error)]
pub enum AuthorityError {
    #[error("the cluster's CA certificate is not a certificate in PEM")]
    Certificate,
    #[error("the cluster's CA key is not a private key in PEM")]
    Key(#[source] rcgen::Error),
    #[error(
        "the cluster's CA key is of an algorithm that cannot sign here; use ECDSA P-256 or P-384, Ed25519 or RSA"
    )]
    Algorithm,
    #[error("the cluster's CA key is not the key of its certificate")]
    OtherKey,
}

#[derive(Debug, Error)]
pub(super) enum SignError {
    #[error("the signer has expired: NotAfter={0}")]
    Expired(Timestamp),
    #[error("unrecognized usage values: {0:?}")]
    Usage(String),
    #[error("failed to sign certificate")]
    Sign(#[source] rcgen::Error),
}

/// The cluster's authority.
pub(crate) struct Authority {
    subject_der: Vec<u8>,
    /// Its subject key identifier, if it has one.
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    key: KeyPair,
    algorithm_der: &'static [u8],
}

impl Authority {
    pub(crate) fn new(certificate_pem: &str, key_pem: &str) -> Result<Authority, AuthorityError> {
        let bad = |_| AuthorityError::Certificate;
        let (pem, _) = Pem::read(std::io::Cursor::new(certificate_pem.as_bytes())).map_err(bad)?;
        let certificate = pem.parse_x509().map_err(|_| AuthorityError::Certificate)?;
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Key)?;
        if key.public_key_raw() != certificate.public_key().subject_public_key.data.as_ref() {
            return Err(AuthorityError::OtherKey);
        }
        let key_id = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Authority {
            subject_der: certificate.subject().as_raw().to_vec(),
            key_id,
            not_after: Timestamp::from_second(certificate.validity().not_after.timestamp())
                .map_err(|_| AuthorityError::Certificate)?,
            algorithm_der: der::signature_algorithm(&key).ok_or(AuthorityError::Algorithm)?,
            key,
        })
    }

    /// Signs a request that was checked and approved, and answers PEM.
    pub(super) fn sign(
        &self,
        request: &Request,
        usages: &[String],
        lives: SignedDuration,
        now: Timestamp,
    ) -> Result<String, SignError> {
        let expired = || SignError::Expired(self.not_after);
        if now >= self.not_after {
            return Err(expired());
        }
        let not_before = now.checked_sub(BACKDATE).map_err(|_| expired())?;
        let end = if lives < SHORT { lives } else { lives - BACKDATE };
        let not_after = now.checked_add(end).map_err(|_| expired())?.min(self.not_after);
        let extensions = self.extensions(request, usages)?;
        let tbs = der::sequence(&[
            &der::tagged(0xa0, &[&der::tagged(0x02, &[&[2]])]),
            &der::tagged(0x02, &[&serial()]),
            self.algorithm_der,
            &self.subject_der,
            &der::sequence(&[&der::time(not_before), &der::time(not_after)]),
            &request.subject_der,
            &request.public_key_der,
            &der::tagged(0xa3, &[&extensions]),
        ]);
        let signature = self.key.sign(&tbs).map_err(SignError::Sign)?;
        let certificate = der::sequence(&[&tbs, self.algorithm_der, &der::tagged(0x03, &[&[0], &signature])]);
        Ok(to_pem(&certificate))
    }

    fn extensions(&self, request: &Request, usages: &[String]) -> Result<Vec<u8>, SignError> {
        let mut extensions = der::usages(usages).map_err(SignError::Usage)?;
        extensions.push(der::extension(der::BASIC_CONSTRAINTS, true, &der::sequence(&[])));
        if let Some(id) = &self.key_id {
            let value = der::sequence(&[&der::tagged(0x80, &[id])]);
            extensions.push(der::extension(der::AUTHORITY_KEY_ID, false, &value));
        }
        if let Some(names) = &request.names_der {
            extensions.push(der::extension(der::SUBJECT_ALT_NAME, false, names));
        }
        let parts: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
        Ok(der::sequence(&parts))
    }
}

/// Sixteen random bytes that are a positive number without a leading zero.
fn serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn to_pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for (at, symbol) in encoded.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            pem.push('\n');
        }
        pem.push(symbol);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}
