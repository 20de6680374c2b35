//! Which requests, approvals and certificates are well-formed.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skiff_api::{Cause, Object, name};
use x509_parser::pem::Pem;

use super::{APPROVED, DENIED, conditions, conditions_of, parse};
use crate::call::Part;

/// All that upstream knows, sorted.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const MIN_EXPIRATION_S: i64 = 600;
const MAX_SIGNER_DOMAIN_BYTES: usize = 253;
/// A name of the longest kind, a namespace and a dot.
const MAX_SIGNER_PATH_BYTES: usize = 253 + 63 + 1;
const FAILED: &str = "Failed";

pub(super) fn validate_create(request: &Object) -> Vec<Cause> {
    let mut causes = validate_spec(request, None);
    validate_conditions(request, None, &mut causes);
    causes
}

/// What an update, of whichever part, may make of a request.
pub(super) fn validate_update(part: Part, new: &Object, old: &Object) -> Vec<Cause> {
    let mut causes = validate_spec(new, Some(old));
    validate_conditions(new, Some(old), &mut causes);
    let field = "status.conditions";
    for type_ in [APPROVED, DENIED, FAILED] {
        let (before, after) = (conditions_of(old, type_).count(), conditions_of(new, type_).count());
        if after < before {
            let why = format!("updates may not remove a condition of type {type_:?}");
            causes.push(Cause::forbidden(field, &why));
        }
        if part == Part::Approval || type_ == FAILED || after < before {
            continue;
        }
        if after > before {
            let why = format!("updates may not add a condition of type {type_:?}");
            causes.push(Cause::forbidden(field, &why));
        } else if conditions_of(old, type_).ne(conditions_of(new, type_)) {
            let why = format!("updates may not modify a condition of type {type_:?}");
            causes.push(Cause::forbidden(field, &why));
        }
    }
    validate_certificate_change(part, new, old, &mut causes);
    causes
}

fn validate_certificate_change(part: Part, new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let text = |request: &Object| request["status"]["certificate"].as_str().unwrap_or_default().to_owned();
    let (before, after) = (text(old), text(new));
    if before == after {
        return;
    }
    let field = "status.certificate";
    if part != Part::Status {
        causes.push(Cause::forbidden(field, "updates may not set certificate content"));
    } else if !before.is_empty() {
        causes.push(Cause::forbidden(field, "updates may not modify existing certificate content"));
    }
    // What is there already and malformed may stay so.
    if certificate_fault(&before).is_none()
        && let Some(fault) = certificate_fault(&after)
    {
        causes.push(Cause::invalid(field, &json!("<certificate data>"), &fault));
    }
}

/// Why base64 of PEM is not one or more certificates, and nothing else.
fn certificate_fault(base64: &str) -> Option<String> {
    if base64.is_empty() {
        return None;
    }
    let none = || Some("must contain at least one CERTIFICATE PEM block".to_owned());
    let Ok(bytes) = STANDARD.decode(base64) else { return none() };
    let mut n_blocks = 0;
    for block in Pem::iter_from_buffer(&bytes) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        match x509_parser::parse_x509_certificate(&block.contents) {
            Ok(([], _)) => n_blocks += 1,
            Ok(_) => return Some("x509: trailing data".to_owned()),
            Err(_) => return Some("x509: malformed certificate".to_owned()),
        }
    }
    if n_blocks == 0 { none() } else { None }
}

fn validate_spec(request: &Object, old: Option<&Object>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &request["spec"];
    // It cannot change, and was checked when it was made.
    if old.is_none()
        && let Err(why) = parse(request)
    {
        causes.push(Cause::invalid("spec.request", &spec["request"], &why));
    }
    let usages = |request: &Object| -> Vec<Value> {
        request["spec"]["usages"].as_array().cloned().unwrap_or_default()
    };
    validate_usages(&usages(request), old.map(usages).as_deref(), &mut causes);
    validate_signer(spec, old, &mut causes);
    if spec["expirationSeconds"].as_i64().is_some_and(|s| s < MIN_EXPIRATION_S) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid("spec.expirationSeconds", &spec["expirationSeconds"], why));
    }
    causes
}

fn validate_usages(usages: &[Value], old: Option<&[Value]>, causes: &mut Vec<Cause>) {
    let is_known = |usage: &Value| usage.as_str().is_some_and(|u| USAGES.contains(&u));
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", ""));
    }
    if old.is_none_or(|old| old.iter().all(is_known)) {
        for (at, usage) in usages.iter().enumerate().filter(|(_, usage)| !is_known(usage)) {
            causes.push(Cause::not_supported(format!("spec.usages[{at}]"), usage, USAGES));
        }
    }
    if old.is_none_or(|old| !has_duplicates(old)) {
        let mut seen = HashSet::new();
        for (at, usage) in usages.iter().enumerate().filter(|(_, usage)| !seen.insert(*usage)) {
            causes.push(Cause::duplicate(format!("spec.usages[{at}]"), usage));
        }
    }
}

fn has_duplicates(values: &[Value]) -> bool {
    let mut seen = HashSet::new();
    !values.iter().all(|value| seen.insert(value))
}

fn validate_signer(spec: &Value, old: Option<&Object>, causes: &mut Vec<Cause>) {
    const FIELD: &str = "spec.signerName";
    let signer = spec["signerName"].as_str().unwrap_or_default();
    if signer == LEGACY_SIGNER {
        if old.is_none() {
            let why = "the legacy signerName is not allowed via this API version";
            causes.push(Cause::invalid(FIELD, &json!(signer), why));
        }
        return;
    }
    if signer.is_empty() {
        causes.push(Cause::required(FIELD, ""));
        return;
    }
    let (domain, path) = match signer.split('/').collect::<Vec<_>>()[..] {
        [domain, path] => (domain, path),
        _ => {
            let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            causes.push(Cause::invalid(FIELD, &json!(signer), why));
            return;
        }
    };
    let mut first_fault = |of: &str, fault: fn(&str) -> Option<String>| {
        let found = of.split('.').find_map(|label| fault(label).map(|why| (label, why)));
        if let Some((label, why)) = found {
            causes.push(Cause::invalid(FIELD, &json!(of), &format!("validating label {label:?}: {why}")));
        }
    };
    first_fault(domain, name::dns_label_fault);
    first_fault(path, name::dns_subdomain_fault);
    if domain.len() > MAX_SIGNER_DOMAIN_BYTES {
        causes.push(Cause::too_long(FIELD, MAX_SIGNER_DOMAIN_BYTES));
    }
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        causes.push(Cause::invalid(FIELD, &json!(domain), why));
    }
    if path.len() > MAX_SIGNER_PATH_BYTES {
        causes.push(Cause::too_long(FIELD, MAX_SIGNER_PATH_BYTES));
    }
}

fn validate_conditions(request: &Object, old: Option<&Object>, causes: &mut Vec<Cause>) {
    const FIELD: &str = "status.conditions";
    let has = |type_: &str| old.is_some_and(|old| conditions_of(old, type_).next().is_some());
    let old_has_both = has(APPROVED) && has(DENIED);
    let types = |request: &Object| conditions(request).iter().map(|c| c["type"].clone()).collect::<Vec<_>>();
    let old_has_duplicates = old.is_some_and(|old| has_duplicates(&types(old)));
    let (mut seen, mut decided) = (HashSet::new(), HashSet::new());
    for (at, condition) in conditions(request).iter().enumerate() {
        let type_ = condition["type"].as_str().unwrap_or_default();
        if type_.is_empty() && !has("") {
            causes.push(Cause::required(format!("{FIELD}[{at}].type"), ""));
        }
        let only_true = matches!(type_, APPROVED | DENIED | FAILED);
        let allowed: &[&str] = if only_true { &["True"] } else { &["False", "True", "Unknown"] };
        match condition["status"].as_str().unwrap_or_default() {
            "" => causes.push(Cause::required(format!("{FIELD}[{at}].status"), "")),
            status if !allowed.contains(&status) => {
                let field = format!("{FIELD}[{at}].status");
                causes.push(Cause::not_supported(field, &condition["status"], allowed));
            }
            _ => {}
        }
        if matches!(type_, APPROVED | DENIED) && !old_has_both {
            decided.insert(type_);
            if decided.len() > 1 {
                let why = "Approved and Denied conditions are mutually exclusive";
                causes.push(Cause::invalid(FIELD, &condition["type"], why));
            }
        }
        if !seen.insert(type_) && !old_has_duplicates {
            causes.push(Cause::duplicate(format!("{FIELD}[{at}].type"), &condition["type"]));
        }
    }
}
