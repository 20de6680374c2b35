//! What becomes of a call whose webhook is away, slow, somebody else or a liar. Conversion is what calls here: the way is the same
//! for admission.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_webhook::conversion::Converter;
use skiff_webhook::{Client, ConfigError, DialError, Resolver, Stream};

use crate::server::{Always, NAME, Reply, Server};

const CALLING: &str = "conversion webhook for example.com/v1, Kind=Gadget failed: ";
const POST: &str = "Post \"https://hook.system.svc:443/convert?timeout=30s\": ";

fn object(version: &str) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Gadget", "metadata": {"name": "a"}})
}

fn good() -> Reply {
    Reply::json(
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
            "uid": "$UID", "result": {"status": "Success"}, "convertedObjects": [object("v2")]}})
        .to_string(),
    )
}

fn service(name: &str) -> Value {
    json!({"service": {"namespace": "system", "name": name, "path": "/convert"}})
}

fn converter(client: Arc<Client>, mut target: Value, ca_pem: &str) -> Result<Converter, ConfigError> {
    use base64::Engine as _;
    target["caBundle"] = base64::engine::general_purpose::STANDARD.encode(ca_pem).into();
    let definition = json!({"spec": {
        "group": "example.com", "versions": [{"name": "v1"}, {"name": "v2"}],
        "conversion": {"webhook": {"conversionReviewVersions": ["v1"], "clientConfig": target}},
    }});
    Converter::new(client, &definition)
}

async fn convert(converter: &Converter) -> Result<Value, String> {
    converter.convert(object("v1"), "example.com/v2").await.map_err(|error| error.to_string())
}

/// What comes of one call of a Service that answers so.
async fn converted(server: &Server, reply: Reply) -> Result<Value, String> {
    server.answer([("/convert", reply)]);
    convert(&converter(server.client(), service("hook"), &server.ca_pem).expect("a converter")).await
}

#[track_caller]
fn assert_failed(found: Result<Value, String>, wanted: &str) {
    let found = found.expect_err(wanted);
    assert_eq!(found, format!("{CALLING}{wanted}"));
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::start().await;
    server.answer([("/convert", good())]);
    let client = server.client();
    let converter = converter(client, service("hook"), &server.ca_pem).expect("a converter");
    for _ in 0..5 {
        assert_eq!(convert(&converter).await, Ok(object("v2")));
    }
    assert_eq!((server.calls().len(), server.n_connections()), (5, 1));
}

#[tokio::test]
async fn webhooks_of_one_service_share_its_connections() {
    let server = Server::start().await;
    server.answer([("/convert", good()), ("/other", good())]);
    let client = server.client();
    for path in ["/convert", "/other"] {
        let mut target = service("hook");
        target["service"]["path"] = path.into();
        let converter = converter(client.clone(), target, &server.ca_pem).expect("a converter");
        assert_eq!(convert(&converter).await, Ok(object("v2")));
    }
    let paths: Vec<String> = server.calls().into_iter().map(|call| call.path).collect();
    assert_eq!((paths, server.n_connections()), (vec!["/convert".into(), "/other".into()], 1));
}

#[tokio::test]
async fn a_url_is_dialled_by_its_name_or_address() {
    struct OnlyHosts;
    #[async_trait::async_trait]
    impl Resolver for OnlyHosts {
        async fn dial_service(&self, _: &str, _: &str, _: u16) -> Result<Box<dyn Stream>, DialError> {
            Err(DialError::Unresolved("there are no services".into()))
        }
    }
    for name in ["localhost", "127.0.0.1"] {
        let (certificate, key) = own_authority(name, 2000, 4000);
        let server = Server::start_with(certificate.der().clone(), &key, certificate.pem()).await;
        server.answer([("/convert", good())]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = Arc::new(Client::new(Arc::new(OnlyHosts), provider));
        let url = format!("https://{name}:{}/convert", server.address.port());
        let converter = converter(client, json!({ "url": url }), &server.ca_pem).expect("a converter");
        assert_eq!(convert(&converter).await, Ok(object("v2")), "{name}");
    }
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let server = Server::start().await;
    server.answer([("/convert", good())]);
    let converter = converter(server.client(), service("hook"), &server.ca_pem).expect("a converter");
    let calls = (0..100).map(|_| convert(&converter));
    assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
    assert!(server.n_connections() <= 100);
}

#[tokio::test]
async fn a_webhook_that_is_away_is_told() {
    let server = Server::start().await;
    let converter = |name| converter(server.client(), service(name), &server.ca_pem).expect("a converter");
    assert_failed(
        convert(&converter("missing")).await,
        "Post \"https://missing.system.svc:443/convert?timeout=30s\": service \"missing\" not found",
    );
    let nobody = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = Arc::new(Client::new(Arc::new(Always(nobody)), provider));
    let away = self::converter(client, service("hook"), &server.ca_pem).expect("a converter");
    assert_failed(convert(&away).await, &format!("{POST}dial tcp {nobody}: connect: connection refused"));
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_is_given_up() {
    for (stalls, wanted) in [
        (Reply { stalls: true, ..good() }, format!("{POST}context deadline exceeded")),
        (
            Reply { stalls_in_body: true, ..good() },
            "unexpected error when reading response body. Please retry. Original error: context deadline exceeded".into(),
        ),
    ] {
        let server = Arc::new(Server::start().await);
        server.answer([("/convert", stalls)]);
        let converter = converter(server.client(), service("hook"), &server.ca_pem).expect("a converter");
        let call = convert(&converter);
        // The clock stands until the webhook has the call, and then runs as far as somebody waits.
        let given_up = async {
            server.called().await;
            tokio::time::pause();
            std::future::pending::<()>().await
        };
        let found = tokio::select! {
            found = call => found,
            () = given_up => unreachable!(),
        };
        tokio::time::resume();
        assert_failed(found, &wanted);
    }
}

#[tokio::test]
async fn a_webhook_that_asks_to_be_left_alone_for_longer_than_there_is_time_is_given_up() {
    let server = Server::start().await;
    let busy =
        Reply { status: 503, headers: [("Retry-After".into(), "3600".into())].into(), ..Reply::default() };
    server.answer([("/convert", busy)]);
    let converter = converter(server.client(), service("hook"), &server.ca_pem).expect("a converter");
    let given_up = async {
        server.called().await;
        // Only what has come back from the webhook waits for the clock.
        tokio::time::pause();
        std::future::pending::<()>().await
    };
    let found = tokio::select! {
        found = convert(&converter) => found,
        () = given_up => unreachable!(),
    };
    assert_failed(found, &format!("{POST}context deadline exceeded"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::start().await;
    for status in [301, 302, 303, 307, 308] {
        let headers = [("Location".to_owned(), "https://hook.system.svc:443/elsewhere".to_owned())].into();
        let found = converted(&server, Reply { status, headers, ..Reply::default() }).await;
        assert_failed(
            found,
            &format!(
                "the server responded with the status code {status} but did not return more information"
            ),
        );
        assert_eq!(server.calls().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read() {
    let server = Server::start().await;
    let huge = Reply::json(" ".repeat(9 << 20));
    assert_failed(
        converted(&server, huge).await,
        "unexpected error when reading response body. Please retry. Original error: the response is larger than 8388608 bytes",
    );
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_told_without_its_text() {
    let server = Server::start().await;
    for raw in ["SECRET\r\n\r\n", "HTTP/1.1 banana SECRET\r\n\r\n", "\0\0\0SECRET"] {
        let reply = Reply { raw: Some(raw.into()), ..Reply::default() };
        let found = converted(&server, reply).await.expect_err(raw);
        assert!(found.starts_with(&format!("{CALLING}{POST}")), "{found}");
        assert!(!found.contains("SECRET"), "{found}");
    }
}

#[tokio::test]
async fn nothing_of_an_error_is_repeated_but_the_message_of_a_status() {
    let server = Server::start().await;
    for status in [200, 400, 403, 406, 415, 500, 503] {
        let headers = [("Content-Type".to_owned(), "text/plain".to_owned())].into();
        let found =
            converted(&server, Reply { status, headers, body: "SECRET".into(), ..Reply::default() }).await;
        let found = found.expect_err("an error");
        assert!(!found.contains("SECRET"), "{status}: {found}");
    }
}

#[tokio::test]
async fn an_answer_that_nests_without_end_is_refused() {
    let server = Server::start().await;
    for depth in [121, 100_000] {
        let nested = format!("{{\"response\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let found = converted(&server, Reply::json(nested)).await.expect_err("an error");
        assert!(
            found.starts_with(&format!("{CALLING}couldn't get version/kind; json parse error: ")),
            "{found}"
        );
    }
}

#[tokio::test]
async fn a_stranger_is_not_talked_to() {
    let (server, other) = (Server::start().await, Server::start().await);
    server.answer([("/convert", good())]);
    let converter = |target, ca: &str| converter(server.client(), target, ca);
    let stranger = converter(service("hook"), &other.ca_pem).expect("a converter");
    assert_failed(
        convert(&stranger).await,
        &format!("{POST}tls: failed to verify certificate: x509: certificate signed by unknown authority"),
    );
    let misnamed = converter(service("other"), &server.ca_pem).expect("a converter");
    assert_failed(
        convert(&misnamed).await,
        &format!(
            "Post \"https://other.system.svc:443/convert?timeout=30s\": tls: failed to verify certificate: x509: certificate is \
             valid for {NAME}, not other.system.svc"
        ),
    );
    let by_url = converter(json!({"url": format!("https://{NAME}/convert")}), &server.ca_pem);
    assert_eq!(convert(&by_url.expect("a converter")).await, Ok(object("v2")));
    let unknown = converter(service("hook"), "").expect("a converter");
    let found = convert(&unknown).await.expect_err("no authority");
    assert!(found.contains("set caBundle"), "{found}");
    let nonsense = converter(service("hook"), "nonsense").expect("a converter");
    assert_failed(
        convert(&nonsense).await,
        "unable to load root certificates: unable to parse bytes as PEM block",
    );
    assert_eq!(server.calls().len(), 1);
}

/// The certificate of an authority that a server shows as its own, valid from one year to another.
fn own_authority(name: &str, from: i32, to: i32) -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(to, 1, 1);
    (params.self_signed(&key).expect("a certificate"), key)
}

#[tokio::test]
async fn a_certificate_made_by_hand_is_taken_if_it_is_the_bundle_itself() {
    for (name, from, to, wanted) in [
        (NAME, 2000, 4000, ""),
        ("other.system.svc", 2000, 4000, "certificate is valid for other.system.svc, not hook.system.svc"),
        (NAME, 2000, 2001, "certificate has expired or is not yet valid"),
        (NAME, 3000, 3001, "certificate has expired or is not yet valid"),
    ] {
        let (certificate, key) = own_authority(name, from, to);
        let server = Server::start_with(certificate.der().clone(), &key, certificate.pem()).await;
        let found = converted(&server, good()).await;
        match wanted {
            "" => assert_eq!(found, Ok(object("v2"))),
            wanted => {
                let found = found.expect_err(wanted);
                assert!(found.contains(wanted), "{found}");
            }
        }
        let (other, _) = own_authority(name, from, to);
        let stranger = converter(server.client(), service("hook"), &other.pem()).expect("a converter");
        assert!(convert(&stranger).await.is_err(), "{name} {from}");
    }
}

#[tokio::test]
async fn whoever_speaks_no_tls_is_told() {
    use tokio::io::AsyncWriteExt as _;
    let server = Server::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = Arc::new(Client::new(Arc::new(Always(address)), provider));
    let converter = converter(client, service("hook"), &server.ca_pem).expect("a converter");
    assert_failed(
        convert(&converter).await,
        &format!("{POST}tls: first record does not look like a TLS handshake"),
    );
}

#[tokio::test]
async fn a_connection_that_the_webhook_has_closed_is_not_used_again() {
    let server = Server::start().await;
    let client = server.client();
    let converter = converter(client, service("hook"), &server.ca_pem).expect("a converter");
    server.answer([("/convert", good())]);
    assert_eq!(convert(&converter).await, Ok(object("v2")));
    server.answer([("/convert", Reply { hangup: true, ..Reply::default() })]);
    assert_failed(convert(&converter).await, &format!("{POST}EOF"));
    server.answer([("/convert", good())]);
    assert_eq!(convert(&converter).await, Ok(object("v2")));
}

#[tokio::test]
async fn whoever_accepts_and_says_nothing_is_given_up() {
    let server = Server::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = Arc::new(Client::new(Arc::new(Always(address)), provider));
    let converter = converter(client, service("hook"), &server.ca_pem).expect("a converter");
    let silent = async {
        let _held = listener.accept().await.expect("a connection");
        tokio::time::pause();
        std::future::pending::<()>().await
    };
    let found = tokio::select! {
        found = convert(&converter) => found,
        () = silent => unreachable!(),
    };
    assert_failed(found, &format!("{POST}net/http: TLS handshake timeout"));
}
