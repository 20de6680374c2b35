//! The time of a certificate.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};

/// The time of a certificate, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    from: UnixTime,
    to: UnixTime,
}

impl Validity {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Validity> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let time = |at: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(at.timestamp()).ok()?;
            Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
        };
        let validity = parsed.validity();
        let (from, to) = (time(validity.not_before)?, time(validity.not_after)?);
        (from <= to).then_some(Validity { from, to })
    }

    /// The moment in it that is next to `now`: `now` itself if it is one.
    pub(crate) fn nearest_to(self, now: UnixTime) -> UnixTime {
        now.clamp(self.from, self.to)
    }
}
