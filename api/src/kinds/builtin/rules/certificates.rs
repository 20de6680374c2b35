//! Bundles of authorities, and the certificates that pods ask for.
//!
//! Not here but in the API server, as it takes keys, a clock or who asks: whether a request is signed with its key, whether a
//! certificate begins to hold now, and whether somebody may sign.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, Path, entries, has, list, number, text};
use super::walk::{Below, Walk};
use crate::name;
use crate::structural::mail;
use crate::table::cell::seconds;
use crate::x509::{self, Key, PublicKey};

const MAX_BUNDLE_BYTES: usize = 1 << 20;
const MAX_REQUEST_BYTES: usize = 10 << 10;
const MAX_CHAIN_BYTES: usize = 100 << 10;
const MAX_UID_BYTES: usize = 128;
const MAX_DOMAIN_BYTES: usize = 253;
const MAX_SIGNER_BYTES: usize = MAX_DOMAIN_BYTES + 1 + MAX_DOMAIN_BYTES + 63 + 1;
const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;
const LEAST_S: i64 = 3600;
const MOST_S: i64 = 91 * 24 * 3600;
/// Of Kubernetes' own signers.
const MOST_OF_OWN_S: i64 = 24 * 3600;
/// Between the times when a certificate is to be had anew and when it begins and ends to hold.
const MARGIN_S: i64 = 600;

const OMITTED: &str = "<value omitted>";
const CERTIFICATE: &str = "CERTIFICATE";

pub(super) fn bundle<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let (root, old) = (Path::ROOT, walk.old);
    let spec = root.child("spec");
    let (signer, faults) = (text(&value["spec"], "signerName"), &mut walk.faults);
    if old.is_none() {
        let meta = root.child("metadata");
        let name = text(&value["metadata"], "name");
        if let Some(fault) = bundle_name_fault(name, signer).filter(|_| !name.is_empty()) {
            faults.invalid(&meta.child("name"), &name.into(), &fault);
        }
    }
    if !signer.is_empty() {
        signer_name(faults, signer, &spec.child("signerName"));
    }
    let given = text(&value["spec"], "trustBundle");
    if old.is_none_or(|old| text(&old["spec"], "trustBundle") != given) {
        anchors(faults, given, &spec.child("trustBundle"));
    }
    if old.is_some_and(|old| text(&old["spec"], "signerName") != signer) {
        faults.invalid(&spec.child("signerName"), &signer.into(), "field is immutable");
    }
    Below::Nothing
}

/// A signer's bundles have its name before theirs.
fn bundle_name_fault(name: &str, signer: &str) -> Option<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return Some("ClusterTrustBundle without signer name must not have \":\" in its name".into());
        }
        return name::dns_subdomain_fault(name);
    }
    let prefix = signer.replace('/', ":") + ":";
    match name.strip_prefix(&prefix) {
        Some(rest) => name::dns_subdomain_fault(rest),
        None => {
            Some(format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"))
        }
    }
}

/// `example.com/some-signer`
fn signer_name(faults: &mut Faults, signer: &str, path: &Path<'_>) {
    if signer.is_empty() {
        return faults.required(path, "");
    }
    let parts: Vec<&str> = signer.split('/').take(3).collect();
    let [domain, name] = parts[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return faults.invalid(path, &signer.into(), why);
    };
    if domain.len() > MAX_DOMAIN_BYTES {
        faults.too_long(path, MAX_DOMAIN_BYTES);
    }
    let wrong = domain.split('.').find_map(|label| Some((label, Format::Label.fault(label)?)));
    if let Some((label, fault)) = wrong {
        let why = format!("validating label {}: {fault}", json!(label));
        faults.invalid(path, &domain.into(), &why);
    }
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        faults.invalid(path, &domain.into(), why);
    }
    let wrong = name.split('.').find_map(|label| Some((label, Format::Subdomain.fault(label)?)));
    if let Some((label, fault)) = wrong {
        let why = format!("validating label {}: {fault}", json!(label));
        faults.invalid(path, &name.into(), &why);
    }
    if signer.len() > MAX_SIGNER_BYTES {
        faults.too_long(path, MAX_SIGNER_BYTES);
    }
}

/// One authority at least, none twice, and nothing else.
fn anchors(faults: &mut Faults, bundle: &str, path: &Path<'_>) {
    if bundle.len() > MAX_BUNDLE_BYTES {
        return faults.too_long(path, MAX_BUNDLE_BYTES);
    }
    let blocks = x509::pem(bundle);
    let (mut known, mut is_fine): (HashMap<&[u8], Vec<usize>>, bool) = (HashMap::new(), true);
    for (at, block) in blocks.iter().enumerate() {
        let fault = if block.label != CERTIFICATE {
            Some(format!("has bad block type: {}", block.label))
        } else if block.has_headers {
            Some("has PEM block headers".to_owned())
        } else {
            match x509::certificate(&block.der) {
                None => Some("does not parse as X.509".to_owned()),
                Some(certificate) if !certificate.is_authority => {
                    Some("does not have the CA bit set".to_owned())
                }
                Some(_) => None,
            }
        };
        match fault {
            Some(fault) => {
                is_fine = false;
                faults.invalid(path, &OMITTED.into(), &format!("entry {at} {fault}"));
            }
            None => known.entry(&block.der).or_default().push(at),
        }
    }
    if is_fine && known.is_empty() {
        faults.invalid(path, &OMITTED.into(), "at least one trust anchor must be provided");
    }
    let mut twice: Vec<&Vec<usize>> = known.values().filter(|at| is_fine && at.len() > 1).collect();
    twice.sort();
    for places in twice {
        let places: Vec<String> = places.iter().map(usize::to_string).collect();
        let why = format!("duplicate trust anchor (indices [{}])", places.join(" "));
        faults.invalid(path, &OMITTED.into(), &why);
    }
}

/// Authorities that a volume of a pod has: those of one bundle, or of a signer's.
pub(super) fn projected_bundle<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) {
    let faults = &mut walk.faults;
    match (value["name"].as_str(), value["signerName"].as_str()) {
        (Some(_), Some(_)) => faults.invalid(path, value, "only one of name and signerName may be used"),
        (Some(name), None) => {
            let field = path.child("name");
            if name.is_empty() {
                faults.required(&field, "must be a valid object name");
            }
            let signer =
                name.rsplit_once(':').map_or_else(String::new, |(signer, _)| signer.replace(':', "/"));
            if let Some(fault) = bundle_name_fault(name, &signer) {
                let why = format!("not a valid clustertrustbundlename: {fault}");
                faults.invalid(&field, &name.into(), &why);
            }
            if has(value, "labelSelector") {
                let why = "labelSelector must be unset if name is specified";
                faults.invalid(&path.child("labelSelector"), &value["labelSelector"], why);
            }
        }
        (None, Some(signer)) => {
            let field = path.child("signerName");
            if signer.is_empty() {
                faults.required(&field, "must be a valid signer name");
            }
            signer_name(faults, signer, &field);
            if has(value, "labelSelector") {
                super::labels::selector(walk, &value["labelSelector"], &path.child("labelSelector"));
            }
        }
        (None, None) => faults.required(path, "either name or signerName must be specified"),
    }
}

/// A key of the pod's own and what somebody signs for it.
pub(super) fn projected_own(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const KEYS: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    let signer = text(value, "signerName");
    signer_name(faults, signer, &path.child("signerName"));
    annotations(faults, value, "userAnnotations", path);
    if !KEYS.contains(&text(value, "keyType")) {
        faults.not_supported(&path.child("keyType"), &text(value, "keyType").into(), &KEYS);
    }
    let field = path.child("maxExpirationSeconds");
    if let Some(seconds) = value["maxExpirationSeconds"].as_i64() {
        let most = if is_own(signer) { MOST_OF_OWN_S } else { MOST_S };
        if seconds < LEAST_S {
            faults.invalid(&field, &seconds.into(), "if provided, maxExpirationSeconds must be >= 3600");
        }
        if seconds > most {
            let why = format!("if provided, maxExpirationSeconds must be <= {most}");
            faults.invalid(&field, &seconds.into(), &why);
        }
    }
}

pub(super) fn pod_request<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    if walk.old.is_some() {
        return Below::Nothing; // What cannot change was checked when it was made.
    }
    let (root, asked, faults) = (Path::ROOT, &value["spec"], &mut walk.faults);
    let path = root.child("spec");
    let signer = text(asked, "signerName");
    signer_name(faults, signer, &path.child("signerName"));
    annotations(faults, asked, "unverifiedUserAnnotations", &path);
    for (name, uid) in
        [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")]
    {
        if let Some(fault) = Format::Subdomain.fault(text(asked, name)) {
            faults.invalid(&path.child(name), &text(asked, name).into(), &fault);
        }
        match text(asked, uid).len() {
            0 => faults.invalid(&path.child(uid), &"".into(), "must not be empty"),
            1..=MAX_UID_BYTES => {}
            _ => faults.too_long(&path.child(uid), MAX_UID_BYTES),
        }
    }
    let field = path.child("maxExpirationSeconds");
    if !has(asked, "maxExpirationSeconds") {
        faults.required(&field, "must be set");
        return Below::Nothing;
    }
    let most = if is_own(signer) { MOST_OF_OWN_S } else { MOST_S };
    if !(LEAST_S..=most).contains(&number(asked, "maxExpirationSeconds")) {
        let why = format!("must be in the range [{LEAST_S}, {most}]");
        faults.invalid(&field, &asked["maxExpirationSeconds"], &why);
    }
    stub(faults, asked, &path);
    Below::Nothing
}

fn is_own(signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    domain == "kubernetes.io" || domain.ends_with(".kubernetes.io")
}

fn annotations(faults: &mut Faults, holder: &Value, field: &str, path: &Path<'_>) {
    let (path, mut n_bytes) = (&path.child(field), 0);
    for (key, value) in entries(holder, field) {
        n_bytes += key.len() + value.as_str().map_or(0, str::len);
        let lower = key.to_lowercase();
        if lower.is_empty() {
            faults.required(path, "");
        } else if let Some(fault) = Format::Qualified.fault(&lower) {
            faults.invalid(path, &lower.into(), &fault);
        } else if !lower.contains('/') {
            let why = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            faults.invalid(path, &lower.into(), why);
        }
    }
    if n_bytes > MAX_ANNOTATIONS_BYTES {
        faults.too_long(path, MAX_ANNOTATIONS_BYTES);
    }
}

/// The request that the node made with the pod's key.
fn stub(faults: &mut Faults, asked: &Value, spec: &Path<'_>) {
    let field = spec.child("stubPKCS10Request");
    let Some(der) = bytes(asked, "stubPKCS10Request").filter(|der| !der.is_empty()) else {
        let why = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
        return faults.invalid_unshown(spec, why);
    };
    if der.len() > MAX_REQUEST_BYTES {
        return faults.too_long(&field, MAX_REQUEST_BYTES);
    }
    let Some(key) = x509::request(&der) else {
        return faults.invalid_unshown(&field, "must be a valid PKCS#10 CSR");
    };
    match key.kind {
        Key::Ed25519 | Key::P256 | Key::P384 | Key::P521 | Key::Rsa { bits: 3072 | 4096 } => {}
        Key::P224 => {
            let why = "elliptic public keys must use curve P256, P384, or P521";
            faults.invalid(&field, &"curve P-224".into(), why);
        }
        Key::Rsa { bits } => {
            let why = "RSA keys must have modulus size 3072 or 4096";
            faults.invalid(&field, &format!("{bits}-bit modulus").into(), why);
        }
        Key::Other => {
            let why = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";
            faults.invalid_unshown(&field, why);
        }
    }
}

fn bytes(holder: &Value, field: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text(holder, field)).ok()
}

const ENDS: [&str; 3] = ["Denied", "Failed", "Issued"];

/// What a signer says to a pod's request: once, and for good. The conditions themselves were looked at.
pub(super) fn answered(faults: &mut Faults, new: &Value, old: &Value, path: &Path<'_>) {
    let (status, was) = (&new["status"], &old["status"]);
    let field = path.child("conditions");
    let mut n_ends = 0;
    for (at, condition) in list(status, "conditions").iter().enumerate() {
        let (path, type_) = (field.index(at), text(condition, "type"));
        if !ENDS.contains(&type_) {
            faults.not_supported(&path.child("type"), &type_.into(), &ENDS);
            continue;
        }
        n_ends += 1;
        if n_ends > 1 {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            faults.invalid(&path.child("type"), &type_.into(), why);
        }
        if text(condition, "status") != "True" {
            faults.not_supported(&path.child("status"), &condition["status"], &["True"]);
        }
    }
    super::status::conditions(faults, status, &field);
    if !faults.is_empty() {
        return;
    }
    let is = |status: &Value, ends: &[&str]| {
        let said = list(status, "conditions").iter().filter(|c| text(c, "status") == "True");
        said.into_iter().any(|c| ends.contains(&text(c, "type")))
    };
    let is_same = bare(status) == bare(was);
    if is(was, &ENDS) {
        let why = "immutable after PodCertificateRequest is issued, denied, or failed";
        if !is_same {
            faults.invalid_unshown(path, why);
        }
    } else if is(status, &["Denied", "Failed"]) {
        if bare(status).keys().any(|key| *key != "conditions") {
            let why =
                "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            faults.invalid_unshown(path, why);
        }
    } else if is(status, &["Issued"]) {
        issued(faults, status, &old["spec"], path);
    } else if !is_same {
        let why = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
        faults.invalid_unshown(path, why);
    }
}

/// What a status says, without what says nothing.
fn bare(status: &Value) -> std::collections::BTreeMap<&str, &Value> {
    let says = |value: &Value| !matches!(value, Value::Null) && *value != json!([]) && *value != "";
    let fields = status.as_object().into_iter().flatten();
    fields.filter(|(_, value)| says(value)).map(|(key, value)| (key.as_str(), value)).collect()
}

fn issued(faults: &mut Faults, status: &Value, asked: &Value, path: &Path<'_>) {
    let (field, chain) = (path.child("certificateChain"), text(status, "certificateChain"));
    if chain.len() > MAX_CHAIN_BYTES {
        return faults.too_long(&field, MAX_CHAIN_BYTES);
    }
    let blocks = x509::pem(chain);
    let Some((first, others)) = blocks.split_first() else {
        let why = "issued certificate chain must contain at least one certificate";
        return faults.invalid(&field, &chain.into(), why);
    };
    const ALL: &str = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
    if first.label != CERTIFICATE {
        return faults.invalid(&field, &chain.into(), ALL);
    }
    let Some(leaf) = x509::certificate(&first.der) else {
        return faults.invalid(&field, &chain.into(), "leaf certificate does not parse as valid X.509");
    };
    names(faults, &leaf, &field);
    let key: Option<PublicKey> = bytes(asked, "stubPKCS10Request").and_then(|der| x509::request(&der));
    if key.as_ref() != Some(&leaf.key) {
        let why = "leaf certificate was not issued to the requested public key";
        return faults.invalid(&field, &chain.into(), why);
    }
    if !times(faults, status, &leaf, asked, path) {
        return;
    }
    for block in others {
        if block.label != CERTIFICATE {
            // Upstream's spelling.
            let why = "issued certificate chain must consist entirely of CERTFICATE PEM blocks";
            return faults.invalid(&field, &chain.into(), why);
        }
        if x509::certificate(&block.der).is_none() {
            let why = "intermediate certificate does not parse as valid X.509";
            return faults.invalid(&field, &chain.into(), why);
        }
    }
}

/// Whom a certificate is for must be readable by all.
fn names(faults: &mut Faults, leaf: &x509::Certificate, path: &Path<'_>) {
    for name in &leaf.dns_names {
        if name.is_empty() {
            faults.invalid(path, &"".into(), "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            let why = "leaf certificate's DNSName should not contain '..'";
            faults.invalid(path, &name.as_str().into(), why);
        }
        if name.starts_with('.') || name.ends_with('.') {
            let why = "leaf certificate's DNSName should not start or end with '.'";
            faults.invalid(path, &name.as_str().into(), why);
        }
    }
    for email in leaf.emails.iter().filter(|email| !mail::is_address(email)) {
        let why = "leaf certificate should not contain invalid EmailAddress";
        faults.invalid(path, &email.as_str().into(), why);
    }
}

/// Whether the times are those of the certificate, and it holds as long as was asked for.
fn times(
    faults: &mut Faults,
    status: &Value,
    leaf: &x509::Certificate,
    asked: &Value,
    path: &Path<'_>,
) -> bool {
    let at = |name: &str| seconds(text(status, name));
    let (Some(begins), Some(ends), Some(renewed)) = (at("notBefore"), at("notAfter"), at("beginRefreshAt"))
    else {
        const CONSISTENT: &str = "must be present and consistent with the issued certificate";
        let names = [
            ("notBefore", CONSISTENT),
            ("notAfter", CONSISTENT),
            ("beginRefreshAt", "must be present and in the range [notbefore+10min, notafter-10min]"),
        ];
        for (name, why) in names.into_iter().filter(|(name, _)| at(name).is_none()) {
            faults.required(&path.child(name), why);
        }
        return false;
    };
    if !faults.is_empty() {
        return false; // Whom it is for is wrong.
    }
    let lifetime_s = leaf.not_after_s - leaf.not_before_s;
    let most_s = number(asked, "maxExpirationSeconds");
    let longest = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most_s})");
    // Upstream shows nanoseconds.
    let lifetime = || lifetime_s.saturating_mul(1_000_000_000).into();
    let wrong: Option<(&str, Value, &str)> = if begins != leaf.not_before_s {
        let why = "must be set to the NotBefore time encoded in the leaf certificate";
        Some(("notBefore", status["notBefore"].clone(), why))
    } else if ends != leaf.not_after_s {
        let why = "must be set to the NotAfter time encoded in the leaf certificate";
        Some(("notAfter", status["notAfter"].clone(), why))
    } else if lifetime_s < LEAST_S {
        Some(("certificateChain", lifetime(), "leaf certificate lifetime must be >= 1 hour"))
    } else if lifetime_s > most_s {
        Some(("certificateChain", lifetime(), &longest))
    } else if renewed < begins + MARGIN_S {
        let why = "must be at least 10 minutes after status.notBefore";
        Some(("beginRefreshAt", status["beginRefreshAt"].clone(), why))
    } else if renewed > ends - MARGIN_S {
        let why = "must be at least 10 minutes before status.notAfter";
        Some(("beginRefreshAt", status["beginRefreshAt"].clone(), why))
    } else {
        None
    };
    if let Some((field, value, why)) = &wrong {
        faults.invalid(&path.child(field), value, why);
    }
    wrong.is_none()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::{Cause, Kinds, Object};

    const AUTHORITY: &str = include_str!("../../../x509/authority.pem");
    const LEAF: &str = include_str!("../../../x509/leaf.pem");
    const REQUEST: &str = include_str!("../../../x509/request.pem");

    fn refused(kind: &str, object: &Object, old: Option<&Object>) -> Vec<Cause> {
        let kinds = Kinds::builtin();
        let kind = kinds.by_kind("certificates.k8s.io", "v1", kind).unwrap();
        kind.validate(object, old)
    }

    #[track_caller]
    fn check(found: &[Cause], wanted: &[(&str, &str)]) {
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for (cause, (field, why)) in found.iter().zip(wanted) {
            assert!(cause.field == *field && cause.message.contains(why), "{cause:?}");
        }
    }

    fn bundle(name: &str, signer: &str, text: &str) -> Object {
        json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": text}})
    }

    #[test]
    fn a_bundle_is_of_authorities_alone_and_named_by_its_signer() {
        let found = |name: &str, signer: &str, text: &str| {
            refused("ClusterTrustBundle", &bundle(name, signer, text), None)
        };
        check(&found("mine", "", AUTHORITY), &[]);
        check(&found("example.com:s:mine", "example.com/s", AUTHORITY), &[]);
        let field = "spec.trustBundle";
        check(&found("mine", "", LEAF), &[(field, "entry 0 does not have the CA bit set")]);
        check(&found("mine", "", REQUEST), &[(field, "entry 0 has bad block type: CERTIFICATE REQUEST")]);
        check(&found("mine", "", "nothing"), &[(field, "at least one trust anchor must be provided")]);
        let twice = AUTHORITY.repeat(2);
        check(&found("mine", "", &twice), &[(field, "duplicate trust anchor (indices [0 1])")]);
        check(&found("a:b", "", AUTHORITY), &[("metadata.name", "must not have \":\" in its name")]);
        let prefix = "must be named with prefix example.com:s:";
        check(&found("mine", "example.com/s", AUTHORITY), &[("metadata.name", prefix)]);
        let short = "should be a domain with at least two segments separated by dots";
        check(&found("example:s:mine", "example/s", AUTHORITY), &[("spec.signerName", short)]);
    }

    #[test]
    fn what_a_bundle_was_is_not_read_again() {
        let old = bundle("mine", "", "from before");
        check(&refused("ClusterTrustBundle", &old, Some(&old)), &[]);
        let new = bundle("mine", "", "now");
        assert_eq!(refused("ClusterTrustBundle", &new, Some(&old)).len(), 1);
    }

    fn request(change: Value) -> Object {
        let mut spec = json!({
            "signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "default",
            "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 86400,
            "stubPKCS10Request": STANDARD.encode(&x509::pem(REQUEST)[0].der),
        });
        for (field, value) in change.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({"metadata": {"name": "r"}, "spec": spec})
    }

    #[test]
    fn a_request_of_a_pod_says_whose_it_is_and_with_which_key() {
        let found = |change: Value| refused("PodCertificateRequest", &request(change), None);
        check(&found(json!({})), &[]);
        check(&found(json!({"podUID": ""})), &[("spec.podUID", "must not be empty")]);
        let range = ("spec.maxExpirationSeconds", "must be in the range [3600, 7862400]");
        check(&found(json!({"maxExpirationSeconds": 60})), &[range]);
        let own = json!({"signerName": "kubernetes.io/s", "maxExpirationSeconds": 86401});
        check(&found(own), &[("spec.maxExpirationSeconds", "must be in the range [3600, 86400]")]);
        let none = json!({"stubPKCS10Request": ""});
        check(&found(none), &[("spec", "exactly one of (stubPKCS10Request) or")]);
        let wrong = json!({"stubPKCS10Request": "AAAA"});
        check(&found(wrong), &[("spec.stubPKCS10Request", "must be a valid PKCS#10 CSR")]);
        let bare = json!({"unverifiedUserAnnotations": {"a": "b"}});
        check(&found(bare), &[("spec.unverifiedUserAnnotations", "must be a domain-prefixed key")]);
    }

    #[test]
    fn whom_a_certificate_is_for_is_written_as_all_read_it() {
        let found = |dns_names: &[&str], emails: &[&str]| -> Vec<String> {
            let mut leaf = x509::certificate(&x509::pem(LEAF)[0].der).unwrap();
            leaf.dns_names = dns_names.iter().map(|name| (*name).to_owned()).collect();
            leaf.emails = emails.iter().map(|email| (*email).to_owned()).collect();
            let mut faults = Faults::default();
            names(&mut faults, &leaf, &Path::ROOT.child("c"));
            faults.causes.iter().map(|cause| cause.message.clone()).collect()
        };
        assert_eq!(found(&["a.b", "*.a.b"], &["a@b"]), [""; 0]);
        let why = "leaf certificate should not contain empty DNSName";
        assert_eq!(found(&[""], &[]), [format!("Invalid value: \"\": {why}")]);
        let why = "leaf certificate's DNSName should not contain '..'";
        assert_eq!(found(&["a..b"], &[]), [format!("Invalid value: \"a..b\": {why}")]);
        let why = "leaf certificate's DNSName should not start or end with '.'";
        assert_eq!(found(&["a.b."], &[]), [format!("Invalid value: \"a.b.\": {why}")]);
        let why = "leaf certificate should not contain invalid EmailAddress";
        assert_eq!(found(&[], &["a"]), [format!("Invalid value: \"a\": {why}")]);
    }

    #[test]
    fn a_request_is_answered_once() {
        let kinds = Kinds::builtin();
        let kind = kinds.by_kind("certificates.k8s.io", "v1", "PodCertificateRequest").unwrap();
        let with = |status: Value| {
            let mut object = request(json!({}));
            object["status"] = status;
            object
        };
        let ended = |type_: &str| json!([{"type": type_, "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let open = with(json!({}));
        let leaf = x509::certificate(&x509::pem(LEAF)[0].der).unwrap();
        let at = |s: i64| crate::time::Moment::new(s, 0).unwrap().to_text(crate::time::Precision::Seconds);
        let issued = |chain: &str, renewed_s: i64| {
            with(json!({
                "conditions": ended("Issued"), "certificateChain": chain, "notBefore": at(leaf.not_before_s),
                "notAfter": at(leaf.not_after_s), "beginRefreshAt": at(renewed_s),
            }))
        };
        let renewed_s = leaf.not_after_s - 3600;
        check(&kind.validate_status(&issued(LEAF, renewed_s), &open), &[]);
        check(&kind.validate_status(&issued(&format!("{LEAF}{AUTHORITY}"), renewed_s), &open), &[]);
        let key = ("status.certificateChain", "leaf certificate was not issued to the requested public key");
        check(&kind.validate_status(&issued(AUTHORITY, renewed_s), &open), &[key]);
        let late = ("status.beginRefreshAt", "must be at least 10 minutes before status.notAfter");
        check(&kind.validate_status(&issued(LEAF, leaf.not_after_s), &open), &[late]);
        let denied = with(json!({"conditions": ended("Denied")}));
        check(&kind.validate_status(&denied, &open), &[]);
        let again = ("status", "immutable after PodCertificateRequest is issued, denied, or failed");
        check(&kind.validate_status(&issued(LEAF, renewed_s), &denied), &[again]);
        let unended = ("status", "status is immutable unless transitioning");
        check(&kind.validate_status(&with(json!({"certificateChain": LEAF})), &open), &[unended]);
        let other = with(json!({"conditions": ended("Ready")}));
        check(&kind.validate_status(&other, &open), &[("status.conditions[0].type", "Unsupported value")]);
    }
}
