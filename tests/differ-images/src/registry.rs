//! A registry with moods, on loopback: one listener for all images and one for where it leads to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use bytes::Bytes;
use futures::stream;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{HeaderValue, Method, StatusCode};
use tokio::net::TcpListener;

use crate::build::{Held, TAG, digest};
use crate::case::Mood;

const DIGEST_HEADER: &str = "docker-content-digest";
const TOKEN: &str = "the-token";
/// The times that a registry which is busy for a while is so.
const N_BUSY: u32 = 2;

#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    own: SocketAddr,
    elsewhere: SocketAddr,
    /// By the last part of the repository's name.
    images: Mutex<HashMap<String, Arc<Held>>>,
    /// How often a path was asked for, by side.
    asked: Mutex<HashMap<String, u32>>,
}

impl Registry {
    pub async fn start() -> Result<Registry> {
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (own, elsewhere) = (
            listen().await.context("listening on loopback")?,
            listen().await.context("listening on loopback")?,
        );
        let shared = Arc::new(Shared {
            own: own.local_addr()?,
            elsewhere: elsewhere.local_addr()?,
            images: Mutex::default(),
            asked: Mutex::default(),
        });
        for listener in [own, elsewhere] {
            let router = Router::new().fallback(answer).with_state(shared.clone());
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        Ok(Registry { shared })
    }

    /// Puts an image there by this name; only the last few are kept.
    pub fn put(&self, name: &str, held: Held) {
        lock(&self.shared.images).insert(name.to_owned(), Arc::new(held));
    }

    pub fn remove(&self, name: &str) {
        lock(&self.shared.images).remove(name);
        lock(&self.shared.asked).clear();
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.own
    }

    /// How a side names an image.
    pub fn reference(&self, side: &str, name: &str, digest: Option<&str>) -> String {
        let version = digest.map_or_else(|| format!(":{TAG}"), |digest| format!("@{digest}"));
        format!("{}/{side}/{name}{version}", self.shared.own)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A request for something of an image.
struct Asked<'a> {
    request: &'a Request,
    /// Side and name of the image.
    repository: &'a str,
    what: &'a str,
    of: &'a str,
    /// At the second listener.
    elsewhere: bool,
}

impl Asked<'_> {
    fn header(&self, name: http::HeaderName) -> &str {
        self.request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn is_head(&self) -> bool {
        self.request.method() == Method::HEAD
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let elsewhere = host == shared.elsewhere.to_string();
    if let Some(rest) = path.strip_prefix("/token/") {
        return token(&shared, rest, &request);
    }
    let Some(rest) = path.strip_prefix("/v2/").filter(|rest| !rest.is_empty()) else {
        return plain(StatusCode::OK, "{}");
    };
    let mut parts = rest.rsplitn(3, '/');
    let (Some(of), Some(what), Some(repository)) = (parts.next(), parts.next(), parts.next()) else {
        return plain(StatusCode::NOT_FOUND, "");
    };
    let name = repository.rsplit('/').next().unwrap_or_default();
    let Some(held) = lock(&shared.images).get(name).cloned() else {
        return plain(StatusCode::NOT_FOUND, "");
    };
    let asked = Asked { request: &request, repository, what, of, elsewhere };
    shared.serve(&held, &asked).unwrap_or_else(|response| *response)
}

fn plain(status: StatusCode, body: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

fn set(response: &mut Response, name: impl http::header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().append(name, value);
    }
}

fn led(status: StatusCode, to: &str) -> Box<Response> {
    let mut response = plain(status, "");
    set(&mut response, LOCATION, to);
    Box::new(response)
}

impl Shared {
    /// How often this was asked for before.
    fn times(&self, key: String) -> u32 {
        let mut asked = lock(&self.asked);
        let times = asked.entry(key).or_default();
        *times += 1;
        *times - 1
    }

    fn serve(&self, held: &Held, asked: &Asked<'_>) -> Result<Response, Box<Response>> {
        self.authenticate(held, asked)?;
        self.keep_waiting(held, asked)?;
        self.lead_on(held, asked)?;
        match asked.what {
            "manifests" => self.document(held, asked),
            "blobs" => self.blob(held, asked),
            _ => Err(Box::new(plain(StatusCode::NOT_FOUND, ""))),
        }
    }

    fn authenticate(&self, held: &Held, asked: &Asked<'_>) -> Result<(), Box<Response>> {
        let given = asked.header(AUTHORIZATION);
        let bearer = given == format!("Bearer {TOKEN}");
        let host = if held.mood == Mood::BearerElsewhere { self.elsewhere } else { self.own };
        let realm = format!("http://{host}/token/{}/{:?}", asked.repository, held.mood);
        let scope = format!("repository:{}:pull", asked.repository);
        let whole = format!(r#"Bearer realm="{realm}",service="judge",scope="{scope}""#);
        let challenges: Vec<String> = match held.mood {
            Mood::Bearer
            | Mood::BearerElsewhere
            | Mood::BearerAccessToken
            | Mood::BearerWithPassword
            | Mood::BearerWrongPassword
            | Mood::TokenServerBusy
            | Mood::TokenServerGone
            | Mood::EmptyToken => vec![whole],
            Mood::BearerAfterBasic => vec![r#"Basic realm="judge""#.to_owned(), whole],
            Mood::BearerBesideBasic => vec![format!(r#"{whole}, Basic realm="judge""#)],
            Mood::BearerLowerCase => vec![whole.replacen("Bearer", "bearer", 1)],
            Mood::BearerNoService => vec![format!(r#"Bearer realm="{realm}",scope="{scope}""#)],
            Mood::BearerNoScope => vec![format!(r#"Bearer realm="{realm}",service="judge""#)],
            Mood::BearerPerRequest => {
                // A token is good for one path only: each is refused once whatever comes with it.
                if self.times(format!("{} {} auth", asked.repository, asked.of)) > 0 && bearer {
                    return Ok(());
                }
                return Err(refused(&[whole]));
            }
            Mood::Basic | Mood::BasicWrongPassword => vec![r#"Basic realm="judge""#.to_owned()],
            Mood::UnknownScheme => vec!["Negotiate".to_owned()],
            Mood::NoChallenge => vec![],
            Mood::Forbidden => return Err(Box::new(plain(StatusCode::FORBIDDEN, ""))),
            _ => return Ok(()),
        };
        let basic = matches!(held.mood, Mood::Basic | Mood::BasicWrongPassword) && is_me(given);
        if bearer || basic { Ok(()) } else { Err(refused(&challenges)) }
    }

    fn keep_waiting(&self, held: &Held, asked: &Asked<'_>) -> Result<(), Box<Response>> {
        let (status, n) = match held.mood {
            Mood::Busy429 => (StatusCode::TOO_MANY_REQUESTS, N_BUSY),
            Mood::Busy503 => (StatusCode::SERVICE_UNAVAILABLE, N_BUSY),
            Mood::Busy500 => (StatusCode::INTERNAL_SERVER_ERROR, N_BUSY),
            Mood::Always429 => (StatusCode::TOO_MANY_REQUESTS, u32::MAX),
            _ => return Ok(()),
        };
        if self.times(format!("{} {} {} busy", asked.repository, asked.request.method(), asked.of)) >= n {
            return Ok(());
        }
        let mut response = plain(status, "");
        set(&mut response, RETRY_AFTER, "0");
        Err(Box::new(response))
    }

    fn lead_on(&self, held: &Held, asked: &Asked<'_>) -> Result<(), Box<Response>> {
        if asked.elsewhere {
            return Ok(());
        }
        let path = asked.request.uri().path();
        let there = format!("http://{}{path}", self.elsewhere);
        let blob = asked.what == "blobs";
        match held.mood {
            Mood::Redirect302 if blob => Err(led(StatusCode::FOUND, &there)),
            Mood::Redirect307Elsewhere if blob => Err(led(StatusCode::TEMPORARY_REDIRECT, &there)),
            Mood::Redirect308 if blob => Err(led(StatusCode::PERMANENT_REDIRECT, &there)),
            Mood::RedirectManifest if !blob => Err(led(StatusCode::TEMPORARY_REDIRECT, &there)),
            Mood::RedirectRelative if blob && asked.request.uri().query().is_none() => {
                Err(led(StatusCode::TEMPORARY_REDIRECT, &format!("{path}?again")))
            }
            Mood::RedirectLoop if blob => Err(led(StatusCode::TEMPORARY_REDIRECT, path)),
            Mood::RedirectNowhere if blob => Err(Box::new(plain(StatusCode::TEMPORARY_REDIRECT, ""))),
            _ => Ok(()),
        }
    }

    fn document(&self, held: &Held, asked: &Asked<'_>) -> Result<Response, Box<Response>> {
        let of = if asked.of == TAG { held.target.as_str() } else { asked.of };
        let missing =
            || Box::new(plain(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#));
        if held.mood == Mood::ManifestGone {
            return Err(missing());
        }
        if asked.is_head() {
            match held.mood {
                Mood::NoHead => return Err(Box::new(plain(StatusCode::METHOD_NOT_ALLOWED, ""))),
                Mood::HeadNotFound => return Err(missing()),
                Mood::HeadForbidden => return Err(Box::new(plain(StatusCode::FORBIDDEN, ""))),
                _ => {}
            }
        }
        let (media_type, bytes) = held.documents.get(of).ok_or_else(missing)?;
        let mut response = Response::new(Body::from(bytes.clone()));
        match held.mood {
            Mood::TextType => set(&mut response, CONTENT_TYPE, "text/plain"),
            Mood::OctetType => set(&mut response, CONTENT_TYPE, "application/octet-stream"),
            Mood::ParametersOfType => {
                set(&mut response, CONTENT_TYPE, &format!("{media_type}; charset=utf-8"))
            }
            Mood::NoType => {}
            _ => set(&mut response, CONTENT_TYPE, media_type),
        }
        match held.mood {
            Mood::NoDigestHeader => {}
            Mood::WrongDigestHeader => set(&mut response, DIGEST_HEADER, &digest(b"other")),
            _ => set(&mut response, DIGEST_HEADER, of),
        }
        if held.mood == Mood::Chunked && !asked.is_head() {
            *response.body_mut() = in_pieces(bytes, None);
        } else {
            set(&mut response, CONTENT_LENGTH, &bytes.len().to_string());
        }
        Ok(response)
    }

    fn blob(&self, held: &Held, asked: &Asked<'_>) -> Result<Response, Box<Response>> {
        let missing = || Box::new(plain(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#));
        let is_config = held.configs.iter().any(|config| config == asked.of);
        let mut bytes = held.blobs.get(asked.of).ok_or_else(missing)?.clone();
        match held.mood {
            Mood::BlobGone if !is_config => return Err(missing()),
            Mood::ConfigGone if is_config => return Err(missing()),
            Mood::CorruptBlob if !is_config => flip(&mut bytes),
            Mood::CorruptConfig if is_config => flip(&mut bytes),
            Mood::LongerBlob if !is_config => bytes.extend_from_slice(b"more"),
            Mood::EmptyBlob if !is_config => bytes.clear(),
            _ => {}
        }
        let total = bytes.len();
        let truncated =
            matches!(held.mood, Mood::TruncatedOnce | Mood::TruncatedOnceNoRange | Mood::TruncatedAlways);
        let ranges = held.mood != Mood::TruncatedOnceNoRange;
        let offset = asked
            .header(RANGE)
            .strip_prefix("bytes=")
            .and_then(|range| range.split('-').next()?.parse().ok());
        let offset = offset.filter(|offset: &usize| ranges && *offset > 0 && *offset < total);
        let rest = &bytes[offset.unwrap_or(0)..];
        let mut response = Response::new(Body::from(rest.to_vec()));
        set(&mut response, CONTENT_TYPE, "application/octet-stream");
        if let Some(offset) = offset {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, CONTENT_RANGE, &format!("bytes {offset}-{}/{total}", total - 1));
        }
        let first = !asked.is_head()
            && truncated
            && self.times(format!("{} {} cut", asked.repository, asked.of)) == 0;
        if first || (truncated && held.mood == Mood::TruncatedAlways && !asked.is_head()) {
            set(&mut response, CONTENT_LENGTH, &rest.len().to_string());
            *response.body_mut() = in_pieces(&rest[..rest.len() / 2], Some("the connection breaks"));
        } else if held.mood == Mood::Chunked && !asked.is_head() {
            *response.body_mut() = in_pieces(rest, None);
        } else {
            set(&mut response, CONTENT_LENGTH, &rest.len().to_string());
        }
        Ok(response)
    }
}

fn flip(bytes: &mut [u8]) {
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
}

/// A body without a length, which may break off.
fn in_pieces(bytes: &[u8], broken: Option<&'static str>) -> Body {
    let mut pieces: Vec<Result<Bytes, std::io::Error>> =
        bytes.chunks(600).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    if let Some(why) = broken {
        pieces.push(Err(std::io::Error::other(why)));
    }
    Body::from_stream(stream::iter(pieces))
}

fn refused(challenges: &[String]) -> Box<Response> {
    let mut response = plain(StatusCode::UNAUTHORIZED, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
    challenges.iter().for_each(|challenge| set(&mut response, WWW_AUTHENTICATE, challenge));
    Box::new(response)
}

fn is_me(authorization: &str) -> bool {
    let wanted = base64::engine::general_purpose::STANDARD.encode("me:secret");
    authorization.strip_prefix("Basic ") == Some(wanted.as_str())
}

/// The token server: `/token/<repository>/<mood>`.
fn token(shared: &Shared, path: &str, request: &Request) -> Response {
    let given =
        request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mood = path.rsplit('/').next().unwrap_or_default();
    // OAuth's way in, which containerd tries first where it has a password: most registries do not have it.
    if request.method() == Method::POST {
        return plain(StatusCode::NOT_FOUND, "");
    }
    let wants_password = ["BearerWithPassword", "BearerWrongPassword"].contains(&mood);
    if wants_password && !is_me(given) {
        return plain(StatusCode::UNAUTHORIZED, "");
    }
    match mood {
        "TokenServerBusy" if shared.times(format!("{path} token")) < N_BUSY => {
            let mut response = plain(StatusCode::TOO_MANY_REQUESTS, "");
            set(&mut response, RETRY_AFTER, "0");
            response
        }
        "TokenServerGone" => plain(StatusCode::NOT_FOUND, ""),
        "EmptyToken" => plain(StatusCode::OK, r#"{"token":""}"#),
        "BearerAccessToken" => plain(StatusCode::OK, r#"{"access_token":"the-token","expires_in":300}"#),
        _ => plain(StatusCode::OK, r#"{"token":"the-token"}"#),
    }
}
