//! Acting as someone else: `Impersonate-User`, `-Group`, `-Uid` and `-Extra-…`.
//!
//! Each thing that is claimed is asked for on its own, with the verb `impersonate` on `users`,
//! `serviceaccounts`, `groups`, `uids` and `userextras/<key>`; the request is then authorized as the other user's.
//!
//! Source: apiserver's `endpoints/filters/impersonation`.

use http::HeaderMap;
use skiff_api::Status;

use super::attributes::Attributes;
use super::authorize::Authorization;
use super::{ANONYMOUS, AUTHENTICATED, SERVICE_ACCOUNT_PREFIX, SERVICE_ACCOUNTS, UNAUTHENTICATED, UserInfo};
use crate::request::decoded;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// One thing that a request claims to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    User(String),
    ServiceAccount { namespace: String, name: String },
    Group(String),
    Extra { key: String, value: String },
    Uid(String),
}

impl Claim {
    fn asked<'a>(&'a self, user: &'a UserInfo) -> Attributes<'a> {
        let (group, resource, subresource, namespace, name) = match self {
            Claim::User(name) => ("", "users", "", "", name),
            Claim::ServiceAccount { namespace, name } => {
                ("", "serviceaccounts", "", namespace.as_str(), name)
            }
            Claim::Group(name) => ("", "groups", "", "", name),
            Claim::Extra { key, value } => (AUTHENTICATION, "userextras", key.as_str(), "", value),
            Claim::Uid(uid) => (AUTHENTICATION, "uids", "", "", uid),
        };
        Attributes {
            version: "v1",
            subresource,
            namespace,
            name,
            ..Attributes::on(user, "impersonate", group, resource)
        }
    }
}

/// Whom the request is to be answered as.
///
/// # Errors
/// 403 for the first claim that `user` may not make, 400 for groups and the like of nobody.
pub(crate) async fn impersonated(
    authorizer: &Authorization,
    user: UserInfo,
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    let claims = claims(headers)?;
    for claim in &claims {
        let attributes = claim.asked(&user);
        let decision = authorizer.authorize(&attributes).await;
        if !decision.is_allowed() {
            return Err(attributes.forbidden(&decision.reason));
        }
    }
    if claims.is_empty() {
        return Ok(user);
    }
    let other = become_claimed(claims);
    tracing::info!(user = user.name, other = other.name, "impersonation");
    Ok(other)
}

fn claims(headers: &HeaderMap) -> Result<Vec<Claim>, Status> {
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let first = |name: &str| texts(name).into_iter().next().filter(|text| !text.is_empty());
    let user = first(USER);
    let mut claims = Vec::new();
    claims.extend(user.clone().map(|user| match service_account(&user) {
        Some((namespace, name)) => Claim::ServiceAccount { namespace, name },
        None => Claim::User(user),
    }));
    claims.extend(texts(GROUP).into_iter().map(Claim::Group));
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            let key = decoded(key);
            claims.extend(
                texts(name.as_str()).into_iter().map(|value| Claim::Extra { key: key.clone(), value }),
            );
        }
    }
    claims.extend(first(UID).map(Claim::Uid));
    if user.is_none() && !claims.is_empty() {
        return Err(Status::bad_request(format!("requested {claims:?} without impersonating a user")));
    }
    Ok(claims)
}

/// Namespace and name of a service account's user name.
fn service_account(user: &str) -> Option<(String, String)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    let is_valid = skiff_api::name::dns_label_fault(namespace).is_none()
        && skiff_api::name::dns_subdomain_fault(name).is_none();
    is_valid.then(|| (namespace.to_owned(), name.to_owned()))
}

fn become_claimed(claims: Vec<Claim>) -> UserInfo {
    let mut user = UserInfo::default();
    let mut implied = Vec::new();
    for claim in claims {
        match claim {
            Claim::User(name) => user.name = name,
            Claim::ServiceAccount { namespace, name } => {
                user.name = format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}");
                implied = vec![SERVICE_ACCOUNTS.to_owned(), format!("system:serviceaccounts:{namespace}")];
            }
            Claim::Group(group) => user.groups.push(group),
            Claim::Extra { key, value } => user.extra.entry(key).or_default().push(value),
            Claim::Uid(uid) => user.uid = uid,
        }
    }
    // Groups that are said are all there are.
    if user.groups.is_empty() {
        user.groups = implied;
    }
    let said = |group: &str| user.groups.iter().any(|g| g == group);
    let added = match user.name.as_str() {
        ANONYMOUS if !said(UNAUTHENTICATED) => Some(UNAUTHENTICATED),
        ANONYMOUS => None,
        _ if said(AUTHENTICATED) || said(UNAUTHENTICATED) => None,
        _ => Some(AUTHENTICATED),
    };
    user.groups.extend(added.map(str::to_owned));
    user
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn user(pairs: &[(&'static str, &'static str)]) -> Result<UserInfo, Status> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        claims(&headers).map(become_claimed)
    }

    #[test]
    fn whoever_is_claimed_gets_the_groups_that_come_with_it() {
        let groups = |pairs| user(pairs).expect("a user").groups;
        assert_eq!(groups(&[(USER, "jane")]), ["system:authenticated"]);
        assert_eq!(groups(&[(USER, "jane"), (GROUP, "a"), (GROUP, "b")]), ["a", "b", "system:authenticated"]);
        assert_eq!(groups(&[(USER, "jane"), (GROUP, "system:unauthenticated")]), ["system:unauthenticated"]);
        assert_eq!(groups(&[(USER, "system:anonymous")]), ["system:unauthenticated"]);
        assert_eq!(
            groups(&[(USER, "system:serviceaccount:a:default")]),
            ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]
        );
        assert_eq!(
            groups(&[(USER, "system:serviceaccount:a:default"), (GROUP, "x")]),
            ["x", "system:authenticated"]
        );
    }

    #[test]
    fn extras_and_uid_are_taken_over() {
        let user = user(&[
            (USER, "jane"),
            (UID, "u-1"),
            ("impersonate-extra-example.com%2fscope", "a"),
            ("impersonate-extra-example.com%2fscope", "b"),
        ])
        .expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "u-1"));
        assert_eq!(user.extra["example.com/scope"], ["a", "b"]);
    }

    #[test]
    fn groups_of_nobody_are_refused() {
        let status = user(&[(GROUP, "a")]).expect_err("refused");
        assert_eq!(status.code, 400);
        assert!(status.message.ends_with("without impersonating a user"), "{}", status.message);
        assert_eq!(user(&[(USER, ""), (UID, "x")]).expect_err("refused").code, 400);
    }
}
