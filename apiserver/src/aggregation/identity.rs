//! Who asks, as headers that only a front proxy may send: written for servers behind this one, and read from proxies before it.
//!
//! Source: `SetAuthProxyHeaders` of client-go's `transport`, and `headerrequest` of `k8s.io/apiserver`.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::auth::{ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED, UserInfo};
use crate::request::decoded;

pub(crate) const USER: &str = "X-Remote-User";
pub(crate) const UID: &str = "X-Remote-Uid";
pub(crate) const GROUP: &str = "X-Remote-Group";
pub(crate) const EXTRA_PREFIX: &str = "X-Remote-Extra-";

const USER_HEADER: HeaderName = HeaderName::from_static("x-remote-user");
const UID_HEADER: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP_HEADER: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA_HEADER: &str = "x-remote-extra-";

/// Whom the servers see that are asked for themselves.
const AGGREGATOR: &str = "system:kube-aggregator";

/// Who asks where nobody did.
pub(super) fn aggregator() -> UserInfo {
    UserInfo { name: AGGREGATOR.into(), groups: vec![MASTERS.into()], ..UserInfo::default() }
}

/// Takes away whatever a client says of itself.
fn clear(headers: &mut HeaderMap) {
    for name in [USER_HEADER, UID_HEADER, GROUP_HEADER] {
        headers.remove(name);
    }
    let extras: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(EXTRA_HEADER)).cloned().collect();
    extras.iter().for_each(|name| _ = headers.remove(name));
}

/// Writes who asks. What no header can hold is left out.
pub(super) fn tell(user: &UserInfo, headers: &mut HeaderMap) {
    clear(headers);
    let mut add = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.append(name, value);
        }
    };
    add(USER_HEADER, &user.name);
    if !user.uid.is_empty() {
        add(UID_HEADER, &user.uid);
    }
    for group in &user.groups {
        add(GROUP_HEADER, group);
    }
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("{EXTRA_HEADER}{}", escaped(key))) else { continue };
        values.iter().for_each(|value| add(name.clone(), value));
    }
}

/// A key as a part of a header's name.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Whom a front proxy says a request is of; `None` if it does not.
pub(crate) fn told(headers: &HeaderMap) -> Option<UserInfo> {
    let texts = |name: &HeaderName| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .filter(|text| !text.is_empty())
            .collect()
    };
    let first = |name: &HeaderName| {
        headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let name = first(&USER_HEADER).filter(|name| !name.is_empty())?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA_HEADER) {
            let values = headers.get_all(header).iter();
            let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            extra.entry(decoded(key)).or_default().extend(values);
        }
    }
    let mut user =
        UserInfo { uid: first(&UID_HEADER).unwrap_or_default(), groups: texts(&GROUP_HEADER), name, extra };
    let is_said = user.is_in(AUTHENTICATED) || user.is_in(UNAUTHENTICATED);
    if user.name != ANONYMOUS && !is_said {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_of_itself_is_replaced_by_who_it_is() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-user", "x-remote-uid", "x-remote-group", "x-remote-extra-scope"] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("forged"));
        }
        headers.append(HeaderName::from_static("x-mine"), HeaderValue::from_static("1"));
        let mut user = UserInfo::new("jane", &["a", "b"]);
        user.uid = "u".into();
        user.extra.insert("example.com/Scope".into(), vec!["x".into(), "y".into()]);
        tell(&user, &mut headers);
        let mut said: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("text"))).collect();
        said.sort_unstable();
        assert_eq!(
            said,
            [
                "x-mine=1",
                "x-remote-extra-example.com%2fscope=x",
                "x-remote-extra-example.com%2fscope=y",
                "x-remote-group=a",
                "x-remote-group=b",
                "x-remote-group=system:authenticated",
                "x-remote-uid=u",
                "x-remote-user=jane",
            ]
        );
        let read = told(&headers).expect("a user");
        assert_eq!((read.name.as_str(), read.uid.as_str()), ("jane", "u"));
        assert_eq!(read.groups, ["a", "b", "system:authenticated"]);
        assert_eq!(read.extra["example.com/scope"], ["x", "y"]);
    }

    #[test]
    fn a_proxy_that_names_nobody_says_nothing() {
        assert_eq!(told(&HeaderMap::new()), None);
        let mut headers = HeaderMap::new();
        headers.append(USER_HEADER, HeaderValue::from_static("system:anonymous"));
        assert_eq!(told(&headers).expect("a user").groups, [] as [&str; 0]);
    }
}
