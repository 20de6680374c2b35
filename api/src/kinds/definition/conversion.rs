//! How objects are brought from one version to another.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::faults::{invalid_shown, invalid_text, label, one_of};
use super::options::Options;
use super::shown;
use super::view::{Spec, at};
use crate::kinds::builtin::rules::path::{Faults, Path, has, list, text};
use crate::kinds::builtin::rules::registration;

/// Those of the reviews that this server may send.
const KNOWN: [&str; 2] = ["v1", "v1beta1"];

pub(super) fn check(faults: &mut Faults, spec: &Spec<'_>, options: &Options<'_>, path: &Path<'_>) {
    let conversion = at(spec.value, "conversion");
    if conversion.is_null() {
        return;
    }
    let strategy = text(conversion, "strategy");
    if strategy != "None" && spec.preserves() {
        let why = "must be None if spec.preserveUnknownFields is true";
        invalid_shown(faults, &path.child("strategy"), &shown::json(&json!(strategy)), why);
    }
    one_of(faults, &path.child("strategy"), strategy, &["None", "Webhook"]);
    let webhook = at(conversion, "webhook");
    let (client, versions) = (at(webhook, "clientConfig"), list(webhook, "conversionReviewVersions"));
    // Upstream has them under other names inside.
    let (client_at, versions_at) =
        (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    if strategy != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if !client.is_null() {
            faults.forbidden(&client_at, why);
        }
        if !versions.is_empty() {
            faults.forbidden(&versions_at, why);
        }
        return;
    }
    if client.is_null() {
        faults.required(&client_at, "required when strategy is set to Webhook");
    } else {
        webhook_client(faults, client, options, &client_at);
    }
    review_versions(faults, versions, options.known_review_version, &versions_at);
}

fn webhook_client(faults: &mut Faults, client: &Value, options: &Options<'_>, path: &Path<'_>) {
    match (at(client, "url").as_str(), has(client, "service")) {
        (Some(url), false) => registration::web_address(faults, url, &path.child("url")),
        (None, true) => registration::service(faults, at(client, "service"), &path.child("service")),
        _ => faults.required(path, "exactly one of url or service is required"),
    }
    let bundle = text(client, "caBundle");
    if !bundle.is_empty() && options.certificates && !has_certificate(bundle) {
        let why = "unable to load root certificates: unable to parse bytes as PEM block";
        invalid_text(faults, &path.child("caBundle"), bundle, why);
    }
}

fn review_versions(faults: &mut Faults, versions: &[Value], needs_known: bool, path: &Path<'_>) {
    if versions.is_empty() {
        return faults.required(path, "");
    }
    let mut seen = HashSet::new();
    for (index, version) in versions.iter().enumerate() {
        let (path, version) = (path.index(index), version.as_str().unwrap_or_default());
        if !seen.insert(version) {
            invalid_text(faults, &path, version, "duplicate version");
            continue;
        }
        for why in label(version) {
            invalid_text(faults, &path, version, &why);
        }
    }
    if needs_known && !KNOWN.iter().any(|known| seen.contains(known)) {
        let why = format!("must include at least one of {}", KNOWN.join(", "));
        invalid_shown(faults, path, &shown::json(&json!(versions)), &why);
    }
}

/// Whether a stored conversion has a version that is known, or none at all.
pub(super) fn had_known_version(conversion: &Value) -> bool {
    let versions = list(at(conversion, "webhook"), "conversionReviewVersions");
    versions.is_empty() || versions.iter().any(|version| KNOWN.iter().any(|known| version == known))
}

/// Whether the certificates of a stored conversion, if it has any, can be read.
pub(super) fn had_certificates(conversion: &Value) -> bool {
    let bundle = text(at(at(conversion, "webhook"), "clientConfig"), "caBundle");
    bundle.is_empty() || has_certificate(bundle)
}

/// Whether there is a certificate in the text form. Whether it is a good one shows when it is used.
fn has_certificate(bundle: &str) -> bool {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let Some(text) = STANDARD.decode(bundle).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else {
        return false;
    };
    let body = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(body, _)| body);
    let joined = body.map(|body| body.split_whitespace().collect::<String>());
    joined.is_some_and(|body| STANDARD.decode(body).is_ok_and(|der| der.first() == Some(&0x30)))
}
