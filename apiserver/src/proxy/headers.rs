//! What of a request's headers is passed on.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, CONNECTION, EXPECT, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

use crate::auth::authenticate::PeerAddress;

/// Headers between two neighbours only (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// A backend does not speak for this server's origin.
pub(crate) const CORS: [HeaderName; 4] = [
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// Says where a request comes from, besides whom it has come by already.
pub(crate) fn add_forwarded(headers: &mut HeaderMap, extensions: &http::Extensions) {
    if let Some(PeerAddress(peer)) = extensions.get() {
        let known = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
        let via: Vec<String> = known.map(str::to_owned).chain([peer.ip().to_string()]).collect();
        if let Ok(value) = HeaderValue::from_str(&via.join(", ")) {
            headers.insert("x-forwarded-for", value);
        }
    }
}

/// What the backend may know of the client's headers: nothing that says who the client is to this server.
pub(crate) fn without_credentials(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let is_ours = *name == AUTHORIZATION || name.as_str().starts_with("impersonate-");
        if is_ours || *name == EXPECT {
            continue;
        }
        if *name == SEC_WEBSOCKET_PROTOCOL {
            kept.extend(without_token(value).map(|value| (name.clone(), value)));
        } else {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Protocols without the token that may be among them.
pub(crate) fn without_token(value: &HeaderValue) -> Option<HeaderValue> {
    let rest: Vec<&str> = value
        .to_str()
        .ok()?
        .split(',')
        .map(str::trim)
        .filter(|protocol| !protocol.starts_with("base64url.bearer."))
        .collect();
    if rest.is_empty() { None } else { HeaderValue::from_str(&rest.join(", ")).ok() }
}

/// Takes away what is between two neighbours only.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_this_server_stays_here() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "jane"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("cookie", "c"),
            ("accept", "*/*"),
            ("sec-websocket-protocol", "chat, base64url.bearer.authorization.k8s.io.eA"),
        ] {
            from.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut to = without_credentials(&from);
        strip(&mut to);
        let mut names: Vec<&str> = to.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "cookie", "sec-websocket-protocol"]);
        assert_eq!(to[SEC_WEBSOCKET_PROTOCOL], "chat");
    }
}
