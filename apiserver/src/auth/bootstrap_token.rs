//! Bootstrap tokens: what a node that wants to join shows until it has a certificate.
//!
//! A token `<id>.<secret>` is good for as long as the Secret `kube-system/bootstrap-token-<id>` says.
//!
//! Source: upstream's bootstrap token authenticator and `k8s.io/cluster-bootstrap`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use skiff_api::Object;
use skiff_api::meta::Meta;

use super::authenticate::Authenticator;
use super::{AUTHENTICATED, BOOTSTRAPPERS, UserInfo};

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const USER_PREFIX: &str = "system:bootstrap:";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;

/// The two parts of a bearer token, if it has the form of a bootstrap token.
pub(super) fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fits = |part: &str, bytes: usize| {
        part.len() == bytes && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, ID_BYTES) && fits(secret, SECRET_BYTES)).then_some((id, secret))
}

impl Authenticator {
    /// The user of a bootstrap token.
    ///
    /// # Errors
    /// Why it is refused, for the log: never the secret.
    pub(super) fn user_of_bootstrap_token(&self, id: &str, secret: &str) -> Result<UserInfo, String> {
        let name = format!("bootstrap-token-{id}");
        let missing = || format!("there is no secret kube-system/{name}");
        let kind = self.kinds.by_resource("", "v1", "secrets").ok_or_else(missing)?;
        let cache = self.caches.of(kind).map_err(|_| missing())?;
        let entry = cache.get(&format!("kube-system/{name}")).ok().flatten().ok_or_else(missing)?;
        check(&entry.parse(), id, secret, Timestamp::now())
    }
}

fn check(object: &Object, id: &str, secret: &str, now: Timestamp) -> Result<UserInfo, String> {
    let field = |key: &str| {
        let decoded = STANDARD.decode(object["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
        String::from_utf8(decoded).unwrap_or_default()
    };
    let name = object.name();
    if object.is_being_deleted() {
        return Err(format!("secret {name} is deleted and awaiting removal"));
    }
    if object["type"] != SECRET_TYPE {
        return Err(format!("secret {name} is not of type {SECRET_TYPE}"));
    }
    if !same(&field("token-secret"), secret) {
        return Err(format!("the token's secret is not that of {name}"));
    }
    if field("token-id") != id {
        return Err(format!("secret {name} has another token-id"));
    }
    if has_expired(&field("expiration"), now) {
        return Err(format!("secret {name} has expired"));
    }
    if field("usage-bootstrap-authentication") != "true" {
        return Err(format!("secret {name} is not marked usage-bootstrap-authentication=true"));
    }
    let mut groups = groups(&field("auth-extra-groups"))?;
    groups.push(AUTHENTICATED.to_owned());
    Ok(UserInfo { name: format!("{USER_PREFIX}{id}"), groups, ..UserInfo::default() })
}

/// Compares without telling by its duration where, or whether the length, differs.
fn same(a: &str, b: &str) -> bool {
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    let differing = a.iter().zip(b.iter()).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differing) == 0
}

/// What cannot be read counts as expired; what is not set never expires.
fn has_expired(expiration: &str, now: Timestamp) -> bool {
    !expiration.is_empty() && expiration.parse::<Timestamp>().map_or(true, |at| at <= now)
}

/// The group of all bootstrap tokens, and the secret's own, sorted.
fn groups(extra: &str) -> Result<Vec<String>, String> {
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    for group in extra.split(',').filter(|_| !extra.is_empty()) {
        if !is_bootstrap_group(group) {
            return Err(format!("bootstrap group {group:?} is invalid (must begin with {BOOTSTRAPPERS}:)"));
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Ok(groups)
}

fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=256).contains(&rest.len())
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn secret(fields: &[(&str, &str)]) -> Object {
        let mut data = json!({
            "token-id": STANDARD.encode("abcdef"), "token-secret": STANDARD.encode("0123456789abcdef"),
            "usage-bootstrap-authentication": STANDARD.encode("true"),
            "expiration": STANDARD.encode("2030-01-01T00:00:00Z"),
        });
        for (key, value) in fields {
            data[*key] = STANDARD.encode(value).into();
        }
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": SECRET_TYPE, "data": data})
    }

    #[test]
    fn only_the_form_of_a_bootstrap_token_is_one() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in
            ["abcdef.0123456789abcde", "Abcdef.0123456789abcdef", "a.b.c", "abcdef0123456789abcdef", "."]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_token_is_good_only_as_its_secret_says() {
        let now = at("2029-12-31T23:59:59Z");
        let ask = |object: &Object, secret: &str, now| check(object, "abcdef", secret, now);
        let right = "0123456789abcdef";
        let user = ask(&secret(&[]), right, now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:authenticated"]);
        ask(&secret(&[]), "0123456789abcdee", now).unwrap_err();
        ask(&secret(&[]), right, at("2030-01-01T00:00:00Z")).unwrap_err();
        ask(&secret(&[("expiration", "soon")]), right, now).unwrap_err();
        ask(&secret(&[("token-id", "fedcba")]), right, now).unwrap_err();
        ask(&secret(&[("usage-bootstrap-authentication", "yes")]), right, now).unwrap_err();
        ask(&secret(&[("auth-extra-groups", "system:masters")]), right, now).unwrap_err();
        let mut other_type = secret(&[]);
        other_type["type"] = "Opaque".into();
        ask(&other_type, right, now).unwrap_err();
        let mut going = secret(&[]);
        going["metadata"]["deletionTimestamp"] = "2029-01-01T00:00:00Z".into();
        ask(&going, right, now).unwrap_err();
        let extra = secret(&[("auth-extra-groups", "system:bootstrappers:b,system:bootstrappers:a-1")]);
        let groups = ask(&extra, right, now).unwrap().groups;
        assert_eq!(groups[1..3], ["system:bootstrappers:a-1", "system:bootstrappers:b"]);
    }
}
