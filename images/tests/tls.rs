//! Whose certificates are checked how.
#![allow(clippy::unwrap_used)] // a helper of a test may panic as a test may

use std::sync::Arc;

use serde_json::json;
use skiff_images::{Digest, Error, Images, Registries, fixture};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

type Answer = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

/// Serves with a certificate that nobody knows; one request a connection. Returns the port.
async fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> u16 {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
    let config =
        ServerConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let (acceptor, answer): (_, Answer) = (TlsAcceptor::from(Arc::new(config)), Arc::new(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                // Who does not believe the certificate goes away.
                let mut stream = acceptor.accept(connection).await.ok()?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.ok()?);
                }
                stream.write_all(&answer(&String::from_utf8_lossy(&head))).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    port
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    [format!("HTTP/1.1 {head}Connection: close\r\nContent-Length: {length}\r\n\r\n").as_bytes(), body]
        .concat()
}

/// A registry that wants a token of `realm`.
async fn registry(realm: String) -> u16 {
    let layer = fixture::Layer::default().file("f", 0o644, b"hello").unwrap().finish().unwrap();
    let config = serde_json::to_vec(&json!({"rootfs": {"diff_ids": [Digest::of(&layer)]}})).unwrap();
    let described = |bytes: &[u8]| json!({"digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "config": described(&config), "layers": [described(&layer)]});
    let manifest = serde_json::to_vec(&manifest).unwrap();
    serve(move |request| {
        if !request.to_lowercase().contains("authorization: bearer t") {
            let head = format!("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{realm}\"\r\n");
            return answer(&head, b"");
        }
        let blob = [&config, &layer].into_iter().find(|blob| request.contains(&Digest::of(blob).to_string()));
        answer("200 OK\r\n", blob.unwrap_or(&manifest))
    })
    .await
}

async fn pull(port: u16, yaml: &str) -> Result<(), Error> {
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(root.path(), Registries::parse(yaml).unwrap()).unwrap();
    images.pull(&format!("localhost:{port}/app:1"), None, None).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_check_a_registry_still_checks_its_token_server_on_another_host() {
    let tokens = serve(|_| answer("200 OK\r\n", br#"{"token": "t"}"#)).await;
    let skipped = |host: &str| format!("\"{host}\": {{tls: {{insecure_skip_verify: true}}}}");
    let elsewhere = registry(format!("https://127.0.0.1:{tokens}/token")).await;
    let own = skipped(&format!("localhost:{elsewhere}"));
    let refused = pull(elsewhere, &format!("configs: {{{own}}}")).await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    // Its own settings count for it.
    let both = format!("configs: {{{own}, {}}}", skipped(&format!("127.0.0.1:{tokens}")));
    pull(elsewhere, &both).await.unwrap();
    // On another port of the registry's own host the registry's do.
    let beside = registry(format!("https://localhost:{tokens}/token")).await;
    pull(beside, &format!("configs: {{{}}}", skipped(&format!("localhost:{beside}")))).await.unwrap();
}
