use k8s_openapi::ByteString;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn secret(name: &str, fields: &[(&str, &str)]) -> Secret {
    let mut data = BTreeMap::new();
    let defaults = [
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-signing", "true"),
        ("expiration", "2030-01-01T00:00:00Z"),
    ];
    for (key, value) in defaults.iter().chain(fields) {
        data.insert((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
    }
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    Secret { metadata, data: Some(data), ..Secret::default() }
}

#[test]
fn a_signature_is_the_one_that_kubeadm_computes() {
    // The content, token and signature of upstream's own test of its JWS package.
    let signature = detached_signature(
        "Hello from the other side. I must have called a thousand times.",
        "joshua",
        "my voice is my passcode",
    )
    .unwrap();
    assert_eq!(
        signature,
        "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
    );
}

#[test]
fn only_good_tokens_that_may_sign_do() {
    let now = at("2029-01-01T00:00:00Z");
    let good = secret("bootstrap-token-abcdef", &[]);
    assert_eq!(signing_token(&good, now), Some(("abcdef".into(), "0123456789abcdef".into())));
    for (what, other) in [
        ("another name", secret("bootstrap-token-fedcba", &[])),
        ("no use", secret("bootstrap-token-abcdef", &[("usage-bootstrap-signing", "false")])),
        ("expired", secret("bootstrap-token-abcdef", &[("expiration", "2028-12-31T00:00:00Z")])),
        ("no time", secret("bootstrap-token-abcdef", &[("expiration", "soon")])),
        ("no secret", secret("bootstrap-token-abcdef", &[("token-secret", "")])),
    ] {
        assert_eq!(signing_token(&other, now), None, "{what}");
    }
    assert_eq!(time_left(&good, at("2029-12-31T23:59:50Z")), Some(Duration::from_secs(10)));
    assert!(has_expired(&good, at("2030-01-01T00:00:00Z")));
    assert!(!has_expired(&secret("x", &[("expiration", "")]), now), "what has no end does not end");
}

#[test]
fn signatures_of_tokens_that_are_gone_are_taken_away_and_other_keys_stay() {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let wanted = map(&[("kubeconfig", "k"), ("jws-kubeconfig-abcdef", "1")]);
    let found = map(&[("kubeconfig", "k"), ("jws-kubeconfig-fedcba", "2"), ("other", "3")]);
    let expected = json!({"jws-kubeconfig-fedcba": null, "jws-kubeconfig-abcdef": "1"});
    assert_eq!(changes(&found, &wanted), Some(expected));
    assert_eq!(changes(&wanted, &wanted), None);
}

#[test]
fn cluster_info_is_a_kubeconfig_with_the_server_and_its_authority() {
    assert_eq!(
        kubeconfig("https://192.0.2.1:6443", "PEM"),
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: UEVN\n    server: https://192.0.2.1:6443\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n"
    );
}
