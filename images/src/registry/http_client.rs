//! Requests to a registry: authenticated when it asks for it, repeated when it is busy, led on only to where it may lead.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use oci_distribution::errors::{OciEnvelope, OciErrorCode};
use parking_lot::Mutex;
use reqwest::{Client, Method, Response, Url, redirect};
use serde::Deserialize;

use super::challenge::{Challenge, Realm, challenges};
use super::reach::{Guard, Reach};
use crate::registries::{Auth, Tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence on a connection for this long ends it.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// Times that one request is sent while its registry is busy.
const MAX_TRIES: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// However long a registry asks to be left alone: beyond this the pull fails, and the pod's own back-off goes on.
const MAX_BACKOFF: Duration = Duration::from_secs(20);
/// A token is some kilobytes at most.
const MAX_TOKEN_BYTES: u64 = 256 << 10;
/// What is read of a refusal, for the code in it.
const MAX_REFUSAL_BYTES: u64 = 16 << 10;
/// Refusals in a row of one request, each answered anew: a token may run out between two requests.
const MAX_CHALLENGES: usize = 3;

/// Why there is no answer. Never with a word that the other side chose.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("failed to do request: {0}")]
    Request(String),
    /// With the code that the distribution specification has for it, if the registry says one.
    #[error("unexpected status {0}")]
    Status(StatusCode, Option<&'static str>),
    #[error("authorization failed: {0}")]
    Denied(&'static str),
    #[error("{0}")]
    Led(#[from] super::reach::Refused),
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    #[error("longer than {0} bytes")]
    TooLong(u64),
}

/// A registry's host, spoken to on behalf of one pull.
pub(super) struct Http {
    /// Made when they are needed: most registries lead nowhere.
    clients: Mutex<HashMap<Party, Client>>,
    reach: Reach,
    tls: TlsSettings,
    base: Url,
    credentials: Credentials,
    repository: String,
    /// What the last challenge was answered with.
    authorization: Mutex<Option<HeaderValue>>,
}

/// Whom a request goes to, by which it is decided what is believed and where the name may lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Party {
    /// The registry itself, which is the user's choice.
    Own,
    /// Another port of its host, such as a token server: the same settings, but a stranger's word.
    OwnHost,
    /// A host of `registries.yaml`, which is the user's choice, too: with its own settings.
    Configured(String),
    /// Where the registry sends us. Its settings are its own: who does not check its certificate, checks others'.
    Stranger,
}

/// How certificates are checked: of the registry itself, and by host of others that `registries.yaml` names.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsSettings {
    pub(super) own: Option<Tls>,
    pub(super) others: BTreeMap<String, Tls>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    None,
    Basic {
        username: String,
        password: String,
    },
    /// To be exchanged for a token of the registry.
    Identity(String),
    /// A token of the registry itself.
    Bearer(String),
}

impl Credentials {
    /// A token for the registry comes before one to be exchanged, and that before a password.
    pub(super) fn of(auth: &Auth) -> Credentials {
        if !auth.registry_token.is_empty() {
            return Credentials::Bearer(auth.registry_token.clone());
        }
        if !auth.identity_token.is_empty() {
            return Credentials::Identity(auth.identity_token.clone());
        }
        match auth.basic() {
            Some((username, password)) => Credentials::Basic { username, password },
            None => Credentials::None,
        }
    }

    fn basic(&self) -> Option<HeaderValue> {
        let Credentials::Basic { username, password } = self else { return None };
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
        secret(&format!("Basic {encoded}"))
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn builder(tls: Option<&Tls>) -> Result<reqwest::ClientBuilder, String> {
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")));
    if let Some(tls) = tls {
        builder = builder.danger_accept_invalid_certs(tls.insecure_skip_verify);
        if let Some(path) = &tls.ca_file {
            let pem = std::fs::read(path).map_err(|err| format!("read {}: {err}", path.display()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|err| format!("{}: {err}", path.display()))?;
            builder = builder.tls_certs_merge(certificates);
        }
    }
    Ok(builder)
}

impl Http {
    pub(super) fn new(
        base: Url,
        repository: &str,
        credentials: Credentials,
        tls: TlsSettings,
        reach: Reach,
    ) -> Result<Http, String> {
        let given = match &credentials {
            Credentials::Bearer(token) => secret(&format!("Bearer {token}")),
            _ => None,
        };
        let (repository, authorization) = (repository.to_owned(), Mutex::new(given));
        let http =
            Http { clients: Mutex::default(), reach, tls, base, credentials, repository, authorization };
        // Settings that cannot be used are told before anything is asked.
        http.client(&http.base).map_err(|err| err.to_string())?;
        Ok(http)
    }

    fn party(&self, url: &Url) -> Party {
        match self.reach.configured_as(url) {
            _ if url.origin() == self.base.origin() => Party::Own,
            Some(host) => Party::Configured(host.to_owned()),
            None if url.host() == self.base.host() => Party::OwnHost,
            None => Party::Stranger,
        }
    }

    fn client(&self, url: &Url) -> Result<Client, HttpError> {
        let party = self.party(url);
        if let Some(client) = self.clients.lock().get(&party) {
            return Ok(client.clone());
        }
        let tls = match &party {
            Party::Own | Party::OwnHost => self.tls.own.as_ref(),
            Party::Configured(host) => self.tls.others.get(host),
            Party::Stranger => None,
        };
        let mut builder = builder(tls).map_err(HttpError::Request)?;
        if matches!(party, Party::OwnHost | Party::Stranger) {
            builder = builder.dns_resolver(Guard(self.reach.clone()));
        }
        let client = builder.build().map_err(|err| HttpError::Request(super::chain(&err)))?;
        self.clients.lock().insert(party, client.clone());
        Ok(client)
    }

    /// The answer to a GET of a path of the registry: one of success.
    pub(super) async fn get(&self, path: &str, accept: &str, offset: u64) -> Result<Response, HttpError> {
        let url = self.base.join(path).map_err(|err| HttpError::Request(err.to_string()))?;
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut n_challenges = 0;
        loop {
            let response = self.follow(url.clone(), &headers).await?;
            match response.status() {
                // Whoever a redirect leads to may not say where our credentials go.
                StatusCode::UNAUTHORIZED if response.url().origin() != self.base.origin() => {
                    return Err(HttpError::Denied("the host that the registry leads to wants credentials"));
                }
                StatusCode::UNAUTHORIZED if n_challenges < MAX_CHALLENGES => {
                    n_challenges += 1;
                    self.answer(response.headers()).await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(HttpError::Denied("the registry refuses these credentials, or none"));
                }
                status if status.is_success() => return Ok(response),
                status => return Err(HttpError::Status(status, code_of(response).await)),
            }
        }
    }

    /// Goes where redirects lead. Credentials go to nobody but the registry.
    async fn follow(&self, url: Url, headers: &HeaderMap) -> Result<Response, HttpError> {
        let mut at = url;
        for hop in 0..=MAX_REDIRECTS {
            let is_own = at.origin() == self.base.origin();
            let mut headers = headers.clone();
            if is_own && let Some(authorization) = self.authorization.lock().clone() {
                headers.insert(AUTHORIZATION, authorization);
            }
            if hop > 0 && !is_own {
                self.reach.check(&at)?;
            }
            let client = self.client(&at)?;
            let send = || client.request(Method::GET, at.clone()).headers(headers.clone());
            let response = send_patiently(send).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| at.join(location).ok());
            at = next.ok_or(HttpError::Status(response.status(), None))?;
        }
        Err(HttpError::Redirects)
    }

    /// Gets ready to be heard: by the challenge of the request that was refused.
    async fn answer(&self, refusal: &HeaderMap) -> Result<(), HttpError> {
        let denied = HttpError::Denied;
        for challenge in challenges(refusal) {
            let authorization = match (&challenge, &self.credentials) {
                (_, Credentials::Bearer(_)) => return Err(denied("the registry refuses its own token")),
                (Challenge::Bearer(realm), _) if !realm.realm.is_empty() => Some(self.token(realm).await?),
                (Challenge::Basic, credentials) => credentials.basic(),
                _ => None,
            };
            if authorization.is_some() {
                *self.authorization.lock() = authorization;
                return Ok(());
            }
        }
        Err(denied("the registry asks for credentials that there are none of"))
    }

    async fn token(&self, realm: &Realm) -> Result<HeaderValue, HttpError> {
        let url = self.base.join(&realm.realm).map_err(|_| super::reach::Refused::NoUrl)?;
        if url.origin() != self.base.origin() {
            self.reach.check(&url)?;
        }
        if self.base.scheme() == "https" && url.scheme() == "http" && self.credentials != Credentials::None {
            return Err(HttpError::Denied("the registry wants its credentials sent in clear"));
        }
        let client = self.client(&url)?;
        let own_scope = format!("repository:{}:pull", self.repository);
        let scope = if realm.scope.is_empty() { own_scope } else { realm.scope.clone() };
        let service = realm.service.as_str();
        let response = if let Credentials::Identity(token) = &self.credentials {
            let form = form_of(&[
                ("grant_type", "refresh_token"),
                ("service", service),
                ("client_id", "skiff"),
                ("scope", &scope),
                ("refresh_token", token),
            ]);
            let form_type = "application/x-www-form-urlencoded";
            let post = || client.post(url.clone()).header("content-type", form_type).body(form.clone());
            send_patiently(post).await?
        } else {
            let mut asked = url.clone();
            asked.query_pairs_mut().append_pair("scope", &scope);
            if !service.is_empty() {
                asked.query_pairs_mut().append_pair("service", service);
            }
            let basic = self.credentials.basic();
            let get = || {
                let request = client.get(asked.clone());
                match &basic {
                    Some(basic) => request.header(AUTHORIZATION, basic.clone()),
                    None => request,
                }
            };
            send_patiently(get).await?
        };
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(HttpError::Denied("the token server refuses these credentials, or none"));
            }
            status => return Err(HttpError::Status(status, None)),
        }
        let body = read(response, MAX_TOKEN_BYTES).await?;
        let token = serde_json::from_slice::<Token>(&body).ok().and_then(Token::either);
        token
            .and_then(|token| secret(&format!("Bearer {token}")))
            .ok_or(HttpError::Denied("the token server answers without a token"))
    }
}

/// The distribution specification's name of what is wrong, if the answer has one. Only its names are repeated, never what else
/// the other side wrote.
async fn code_of(response: Response) -> Option<&'static str> {
    let body = read(response, MAX_REFUSAL_BYTES).await.ok()?;
    let OciEnvelope { errors } = serde_json::from_slice(&body).ok()?;
    Some(match errors.first()?.code {
        OciErrorCode::BlobUnknown => "BLOB_UNKNOWN",
        OciErrorCode::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
        OciErrorCode::ManifestInvalid => "MANIFEST_INVALID",
        OciErrorCode::ManifestUnknown | OciErrorCode::NotFound => "MANIFEST_UNKNOWN",
        OciErrorCode::NameInvalid => "NAME_INVALID",
        OciErrorCode::NameUnknown => "NAME_UNKNOWN",
        OciErrorCode::Unauthorized => "UNAUTHORIZED",
        OciErrorCode::Denied => "DENIED",
        OciErrorCode::Unsupported => "UNSUPPORTED",
        OciErrorCode::Toomanyrequests => "TOOMANYREQUESTS",
        _ => return None,
    })
}

fn form_of(pairs: &[(&str, &str)]) -> String {
    let mut form = Url::parse("form:?").ok();
    if let Some(form) = &mut form {
        form.query_pairs_mut().extend_pairs(pairs);
    }
    form.and_then(|form| form.query().map(str::to_owned)).unwrap_or_default()
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Token {
    fn either(self) -> Option<String> {
        self.token.into_iter().chain(self.access_token).find(|token| !token.is_empty())
    }
}

/// Sends a request until the other side is not too busy for it, a bounded number of times.
async fn send_patiently(request: impl Fn() -> reqwest::RequestBuilder) -> Result<Response, HttpError> {
    let mut backoff = FIRST_BACKOFF;
    let mut n_sent = 0;
    loop {
        n_sent += 1;
        let response =
            request().send().await.map_err(|err| HttpError::Request(super::chain(&err.without_url())))?;
        let status = response.status();
        let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
        let wait = asked_wait(response.headers()).unwrap_or(backoff);
        if !busy || n_sent == MAX_TRIES || wait > MAX_BACKOFF {
            return Ok(response);
        }
        drop(response);
        tokio::time::sleep(wait).await;
        backoff *= 2;
    }
}

/// How long the other side asks to be left alone.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A body that is no longer than it may be; what is too long is not read on.
pub(super) async fn read(response: Response, limit: u64) -> Result<Bytes, HttpError> {
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(HttpError::TooLong(limit));
    }
    let (mut body, mut stream) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|err| HttpError::Request(super::chain(&err.without_url())))?;
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(HttpError::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
