//! Registries with moods: what they ask for, where they lead, when they are busy, and what they must not make us say.
#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::json;
use skiff_images::{Auth, Caps, Digest, Error, Images, PullCause, Range, Registries, fixture};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as far as moods look at it.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    authorization: String,
    body: String,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Sent over and over until the other side has enough.
    endless: bool,
}

fn answer(status: &'static str, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Answer { status, headers, body: body.to_vec(), endless: false }
}

type Mood = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Server {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    async fn start(mood: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, log) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let (mood, kept): (Mood, _) = (Arc::new(mood), log.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (mood, log) = (mood.clone(), kept.clone());
                tokio::spawn(async move { serve(connection, &mood, &log).await });
            }
        });
        Server { port, log }
    }

    fn asked(&self, part: &str) -> Vec<Request> {
        self.log.lock().unwrap().iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

/// One request a connection.
async fn serve(mut connection: TcpStream, mood: &Mood, log: &Mutex<Vec<Request>>) -> Option<()> {
    let mut bytes = Vec::new();
    let head = loop {
        let mut chunk = [0; 4096];
        let n = connection.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&chunk[..n]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let length: usize = field("content-length").parse().unwrap_or(0);
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        let mut chunk = [0; 4096];
        let n = connection.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        body.extend_from_slice(&chunk[..n]);
    }
    let mut words = text.split(' ');
    let request = Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        authorization: field("authorization"),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let answer = mood(&request);
    log.lock().unwrap().push(request);
    let mut out = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        write!(out, "{name}: {value}\r\n").unwrap();
    }
    if !answer.endless {
        write!(out, "Content-Length: {}\r\n", answer.body.len()).unwrap();
    }
    out.push_str("\r\n");
    connection.write_all(out.as_bytes()).await.ok()?;
    connection.write_all(&answer.body).await.ok()?;
    if answer.endless {
        loop {
            connection.write_all(&answer.body).await.ok()?;
        }
    }
    Some(())
}

/// What a registry has of one image, by the end of the path.
fn image() -> Arc<HashMap<String, Vec<u8>>> {
    let layer = fixture::Layer::default().file("f", 0o644, b"hello").unwrap().finish().unwrap();
    let config = serde_json::to_vec(&json!({"rootfs": {"diff_ids": [Digest::of(&layer)]}})).unwrap();
    let described = |bytes: &[u8]| json!({"digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "config": described(&config), "layers": [described(&layer)]});
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut held = HashMap::from([("manifests/1".to_owned(), manifest)]);
    for blob in [layer, config] {
        held.insert(format!("blobs/{}", Digest::of(&blob)), blob);
    }
    Arc::new(held)
}

fn give(image: &HashMap<String, Vec<u8>>, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap();
    let found = image.iter().find(|(name, _)| path.ends_with(name.as_str()));
    found.map_or_else(|| answer("404 Not Found", &[], b"SECRET"), |(_, body)| answer("200 OK", &[], body))
}

async fn pull(server: &Server, auth: Option<&Auth>, registries: Registries) -> Result<(), Error> {
    let root = tempfile::tempdir().unwrap();
    let images = Images::with_caps(root.path(), registries, Caps::default()).unwrap();
    let image = images.pull(&format!("127.0.0.1:{}/some/app:1", server.port), auth, None).await?;
    assert_eq!(std::fs::read(images.rootfs_layers(&image)[0].join("f")).unwrap(), b"hello");
    Ok(())
}

async fn pull_plain(server: &Server) -> Result<(), Error> {
    pull(server, None, Registries::default()).await
}

fn password() -> Auth {
    Auth { username: "me".into(), password: "secret".into(), ..Auth::default() }
}

const BASIC: &str = "Basic bWU6c2VjcmV0";

#[tokio::test(flavor = "multi_thread")]
async fn the_challenge_of_the_refused_request_counts_and_all_its_headers_are_read() {
    let tokens = Server::start(|request| {
        let known = request.authorization == BASIC && request.path.contains("repository%3Asome%2Fapp%3Apull");
        match known {
            true => answer("200 OK", &[], br#"{"access_token": "T", "expires_in": 300}"#),
            false => answer("401 Unauthorized", &[], b"SECRET"),
        }
    })
    .await;
    let (image, realm) =
        (image(), format!(r#"Bearer realm="http://127.0.0.1:{}/t",service="s""#, tokens.port));
    let server = Server::start(move |request| {
        if request.path == "/v2/" {
            return answer("200 OK", &[], b"{}");
        }
        if request.authorization == "Bearer T" {
            return give(&image, request);
        }
        let headers = [("WWW-Authenticate", r#"Basic realm="x""#), ("WWW-Authenticate", &realm)];
        answer("401 Unauthorized", &headers, b"SECRET")
    })
    .await;
    pull(&server, Some(&password()), Registries::default()).await.unwrap();
    assert_eq!(tokens.asked("/t").len(), 1, "one token does for all");
    let refused = pull_plain(&server).await.unwrap_err();
    assert!(matches!(refused, Error::Pull { cause: PullCause::AccessDenied { .. }, .. }), "{refused}");
    assert!(!refused.to_string().contains("SECRET"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_and_a_token_that_ran_out_replaced() {
    let tokens = Server::start(|request| {
        let given = request.method == "POST"
            && request.body.contains("grant_type=refresh_token")
            && request.body.contains("refresh_token=ID%2BTOKEN");
        match given {
            true => answer("200 OK", &[], br#"{"token": "T", "access_token": null}"#),
            false => answer("401 Unauthorized", &[], b""),
        }
    })
    .await;
    let (image, realm) =
        (image(), format!(r#"bearer realm="http://127.0.0.1:{}/t", service="s""#, tokens.port));
    let used = Mutex::new(HashMap::new());
    let server = Server::start(move |request| {
        // Each path is refused once.
        let mut used = used.lock().unwrap();
        let times = used.entry(request.path.clone()).or_insert(0);
        *times += 1;
        if request.authorization == "Bearer T" && *times > 1 {
            return give(&image, request);
        }
        answer("401 Unauthorized", &[("WWW-Authenticate", &realm)], b"")
    })
    .await;
    let auth = Auth { identity_token: "ID+TOKEN".into(), username: "me".into(), ..Auth::default() };
    pull(&server, Some(&auth), Registries::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again_and_one_that_stays_busy_is_said_to_be() {
    for status in ["429 Too Many Requests", "503 Service Unavailable", "500 Internal Server Error"] {
        let (image, times) = (image(), Mutex::new(HashMap::new()));
        let server = Server::start(move |request| {
            let mut times = times.lock().unwrap();
            let n = times.entry(request.path.clone()).or_insert(0);
            *n += 1;
            if *n <= 2 {
                return answer(status, &[("Retry-After", "0")], b"SECRET");
            }
            give(&image, request)
        })
        .await;
        pull_plain(&server).await.unwrap();

        let server = Server::start(move |_| answer(status, &[("Retry-After", "0")], b"SECRET")).await;
        let busy = pull_plain(&server).await.unwrap_err().to_string();
        let (code, words) = status.split_once(' ').unwrap();
        assert!(busy.contains(code) && busy.contains(words) && !busy.contains("SECRET"), "{busy}");
        assert_eq!(server.asked("manifests").len(), 5, "a bounded number of times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_be_left_alone_for_long_is_left_alone() {
    let server = Server::start(|_| answer("429 Too Many Requests", &[("Retry-After", "3600")], b"")).await;
    let busy = pull_plain(&server).await.unwrap_err().to_string();
    assert!(busy.contains("429"), "{busy}");
    assert_eq!(server.asked("manifests").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_may_lie_elsewhere_where_no_credentials_are_shown() {
    let held = image();
    let elsewhere = {
        let held = held.clone();
        Server::start(move |request| match request.authorization.as_str() {
            "" => give(&held, request),
            _ => answer("400 Bad Request", &[], b""),
        })
        .await
    };
    let other = elsewhere.port;
    let server = Server::start(move |request| {
        if request.authorization != BASIC {
            return answer("401 Unauthorized", &[("WWW-Authenticate", r#"Basic realm="x""#)], b"");
        }
        if request.path.contains("/blobs/") {
            let location = format!("http://127.0.0.1:{other}{}", request.path);
            return answer("307 Temporary Redirect", &[("Location", &location)], b"");
        }
        give(&held, request)
    })
    .await;
    pull(&server, Some(&password()), Registries::default()).await.unwrap();
    assert_eq!(elsewhere.asked("/blobs/").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_redirect_leads_to_does_not_say_where_credentials_go() {
    let held = image();
    let thief = Server::start(|_| answer("200 OK", &[], br#"{"token": "t"}"#)).await;
    let realm = format!(r#"Bearer realm="http://127.0.0.1:{}/token""#, thief.port);
    let elsewhere =
        Server::start(move |_| answer("401 Unauthorized", &[("WWW-Authenticate", &realm)], b"")).await;
    let other = elsewhere.port;
    let server = Server::start(move |request| {
        if request.authorization != BASIC {
            return answer("401 Unauthorized", &[("WWW-Authenticate", r#"Basic realm="x""#)], b"");
        }
        if request.path.contains("/blobs/") {
            let location = format!("http://127.0.0.1:{other}{}", request.path);
            return answer("307 Temporary Redirect", &[("Location", &location)], b"");
        }
        give(&held, request)
    })
    .await;
    let refused = pull(&server, Some(&password()), Registries::default()).await.unwrap_err().to_string();
    assert!(refused.contains("the host that the registry leads to wants credentials"), "{refused}");
    assert!(thief.log.lock().unwrap().is_empty(), "nobody was shown anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_registry_leads_to_the_links_of_the_node_or_into_the_cluster() {
    // Of the cluster's own range, for which any address will do: here one on which somebody would answer.
    let inside = Server::start(|_| answer("200 OK", &[], b"SECRET")).await;
    let own = format!("http://127.0.0.2:{}/x", inside.port);
    for target in [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://0.0.0.0:1/",
        own.as_str(),
        "file:///etc/passwd",
    ] {
        let headers = [("Location", target.to_owned())];
        let realm = format!(r#"Bearer realm="{target}""#);
        let redirects =
            Server::start(move |_| answer("302 Found", &[("Location", headers[0].1.as_str())], b"")).await;
        let challenges =
            Server::start(move |_| answer("401 Unauthorized", &[("WWW-Authenticate", &realm)], b"")).await;
        for server in [&redirects, &challenges] {
            let own_ranges = vec![Range::parse("127.0.0.2/32").unwrap()];
            let registries = Registries { own_ranges, ..Registries::default() };
            let refused = pull(server, None, registries).await.unwrap_err().to_string();
            assert!(refused.contains("the registry leads to"), "{target}: {refused}");
        }
    }
    assert!(inside.log.lock().unwrap().is_empty(), "nobody was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_goes_round_ends() {
    let server = Server::start(|request| answer("302 Found", &[("Location", &request.path)], b"")).await;
    let error = pull_plain(&server).await.unwrap_err().to_string();
    assert!(error.contains("redirects"), "{error}");
    assert_eq!(server.asked("manifests").len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_is_not_read_on() {
    let endless = |status: &'static str| Answer {
        status,
        headers: Vec::new(),
        body: vec![b' '; 64 << 10],
        endless: true,
    };
    let server = Server::start(move |_| endless("200 OK")).await;
    let error = pull_plain(&server).await.unwrap_err();
    assert!(matches!(error, Error::Pull { cause: PullCause::TooLarge { .. }, .. }), "{error}");
    // An error's body is not read at all.
    let server = Server::start(move |_| endless("403 Forbidden")).await;
    let error = pull_plain(&server).await.unwrap_err();
    assert!(matches!(error, Error::Pull { cause: PullCause::AccessDenied { .. }, .. }), "{error}");
    let tokens = Server::start(move |_| endless("200 OK")).await;
    let realm = format!(r#"Bearer realm="http://127.0.0.1:{}/t""#, tokens.port);
    let server =
        Server::start(move |_| answer("401 Unauthorized", &[("WWW-Authenticate", &realm)], b"")).await;
    let error = pull_plain(&server).await.unwrap_err();
    assert!(error.to_string().contains("exceeds the limit"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_inside_an_index_is_followed_and_one_without_end_is_not() {
    let held = image();
    let index = |of: &[u8], media: &str| {
        let entry = json!({"mediaType": media, "digest": Digest::of(of), "size": of.len()});
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]})).unwrap()
    };
    for (levels, fits) in [(1, true), (4, true), (5, false)] {
        let mut all = (*held).clone();
        let mut top = all.remove("manifests/1").unwrap();
        for _ in 0..levels {
            let above = index(&top, "application/vnd.oci.image.index.v1+json");
            all.insert(format!("manifests/{}", Digest::of(&top)), top);
            top = above;
        }
        all.insert("manifests/1".to_owned(), top);
        let server = Server::start(move |request| give(&all, request)).await;
        assert_eq!(pull_plain(&server).await.is_ok(), fits, "{levels}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_of_a_tag_or_in_an_index_holds() {
    let image = image();
    let manifest = image["manifests/1"].clone();
    let (right, wrong) = (Digest::of(&manifest).to_string(), Digest::of(b"other").to_string());
    for (said, is_right) in [(right.as_str(), true), (wrong.as_str(), false), ("sha512:nonsense", true)] {
        let (held, said) = (image.clone(), said.to_owned());
        let server = Server::start(move |request| {
            let mut answer = give(&held, request);
            answer.headers.push(("Docker-Content-Digest", said.clone()));
            answer
        })
        .await;
        // Blobs are named by their digest: what the header says of them is nothing new.
        let pulled = pull_plain(&server).await;
        let refused = matches!(pulled, Err(Error::Pull { cause: PullCause::WrongDigest { .. }, .. }));
        assert_eq!((pulled.is_ok(), refused), (is_right, !is_right));
    }
    for (more, is_right) in [(0, true), (1, false)] {
        let entry = json!({"digest": Digest::of(&manifest), "size": manifest.len() + more});
        let mut held = HashMap::clone(&image);
        held.insert("manifests/1".to_owned(), serde_json::to_vec(&json!({"manifests": [entry]})).unwrap());
        held.insert(format!("manifests/{right}"), manifest.clone());
        let server = Server::start(move |request| give(&held, request)).await;
        assert_eq!(pull_plain(&server).await.is_ok(), is_right);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_a_schema_version_is_of_the_second() {
    let mut held = HashMap::clone(&image());
    let mut manifest: serde_json::Value = serde_json::from_slice(&held["manifests/1"]).unwrap();
    for (version, is_right) in [(json!(2), true), (json!(1), false), (serde_json::Value::Null, true)] {
        manifest["schemaVersion"] = version;
        if manifest["schemaVersion"].is_null() {
            manifest.as_object_mut().unwrap().remove("schemaVersion");
        }
        held.insert("manifests/1".to_owned(), serde_json::to_vec(&manifest).unwrap());
        let held = held.clone();
        let server = Server::start(move |request| give(&held, request)).await;
        assert_eq!(pull_plain(&server).await.is_ok(), is_right);
    }
}

/// Whom the test of the proxy calls itself by again, with a proxy in its environment.
const PROXIED: &str = "SKIFF_TEST_PROXIED_REGISTRY";

#[test]
fn a_proxy_in_the_cluster_is_gone_through_where_a_registry_leads_elsewhere() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(port) = std::env::var(PROXIED).ok().and_then(|port| port.parse().ok()) {
        let server = Server { port, log: Arc::default() };
        let own_ranges = ["127.0.0.0/8", "::1/128"].map(|text| Range::parse(text).unwrap()).to_vec();
        let pulled = pull(&server, None, Registries { own_ranges, ..Registries::default() });
        return runtime.block_on(pulled).unwrap();
    }
    let held = image();
    let (proxy, server) = runtime.block_on(async {
        let proxied = held.clone();
        let proxy = Server::start(move |request| give(&proxied, request)).await;
        let server = Server::start(move |request| {
            if request.path.contains("/blobs/") {
                let location = format!("http://blobs.example.invalid{}", request.path);
                return answer("307 Temporary Redirect", &[("Location", &location)], b"");
            }
            give(&held, request)
        })
        .await;
        (proxy, server)
    });
    // An environment is a process's own.
    let name = "a_proxy_in_the_cluster_is_gone_through_where_a_registry_leads_elsewhere";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(PROXIED, server.port.to_string())
        .env("http_proxy", format!("http://localhost:{}", proxy.port))
        .env("no_proxy", "127.0.0.1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(proxy.asked("http://blobs.example.invalid/").len(), 2);
}
