//! What nodes ask for in the name of pods: whose pods they are, who answers, and who vouches for a signer's authorities.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::fixture::{Client, Cluster, pod};

const GROUP: &str = "/apis/certificates.k8s.io/v1";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/namespaces/a/podcertificaterequests";
const SIGNER: &str = "example.com/s";

/// A cluster with a pod on each of two nodes, which wants a certificate, and one on the first that does not.
struct Asking {
    cluster: Cluster,
    admin: Client,
    one: Client,
    key: rcgen::KeyPair,
}

impl Asking {
    async fn start() -> Asking {
        let cluster = Cluster::start().await;
        let admin = cluster.namespace("a").await;
        for node in ["one", "two"] {
            admin.post("/api/v1/nodes", json!({"metadata": {"name": node}})).await.created();
            let mut wants = pod(&format!("of-{node}"));
            wants["spec"]["nodeName"] = node.into();
            wants["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [{"podCertificate": {
                "signerName": SIGNER, "keyType": "ECDSAP256", "credentialBundlePath": "all.pem",
            }}]}}]);
            admin.post("/api/v1/namespaces/a/pods", wants).await.created();
        }
        let mut plain = pod("plain");
        plain["spec"]["nodeName"] = "one".into();
        admin.post("/api/v1/namespaces/a/pods", plain).await.created();
        let one = cluster.client("system:node:one", &["system:nodes"]);
        Asking { cluster, admin, one, key: rcgen::KeyPair::generate().expect("a key") }
    }

    async fn uid(&self, url: &str) -> Value {
        self.admin.get(url).await.ok()["metadata"]["uid"].clone()
    }

    /// What a node asks for in the name of a pod that runs there.
    async fn request(&self, name: &str, pod: &str, node: &str) -> Value {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        let stub = params.serialize_request(&self.key).expect("a request");
        json!({"metadata": {"name": name}, "spec": {
            "signerName": SIGNER, "podName": pod, "nodeName": node, "serviceAccountName": "default",
            "podUID": self.uid(&format!("/api/v1/namespaces/a/pods/{pod}")).await,
            "nodeUID": self.uid(&format!("/api/v1/nodes/{node}")).await,
            "serviceAccountUID": self.uid("/api/v1/namespaces/a/serviceaccounts/default").await,
            "maxExpirationSeconds": 86400, "stubPKCS10Request": STANDARD.encode(stub.der()),
        }})
    }

    /// What the node `one` is told whose request for its pod differs.
    async fn refused(&self, pod: &str, change: impl FnOnce(&mut Value), code: u16, reason: &str) -> String {
        let mut request = self.request("r", pod, "one").await;
        change(&mut request["spec"]);
        self.one.post(REQUESTS, request).await.refused(code, reason)
    }
}

fn condition(type_: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": "Test", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// Lets a user do something.
async fn allow(admin: &Client, user: &str, name: &str, rules: Value) {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": name}, "rules": rules});
    admin.post(&format!("{RBAC}/clusterroles"), role).await.created();
    let binding = json!({
        "metadata": {"name": name}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
    });
    admin.post(&format!("{RBAC}/clusterrolebindings"), binding).await.created();
    admin.get(&format!("{RBAC}/clusterrolebindings")).await.ok();
}

#[tokio::test]
async fn a_node_asks_for_its_own_pods_and_reads_what_it_asked() {
    let asking = Asking::start().await;
    let one = &asking.one;
    one.post(REQUESTS, asking.request("mine", "of-one", "one").await).await.created();
    let other = asking.request("other", "of-two", "two").await;
    asking.cluster.client("system:node:two", &["system:nodes"]).post(REQUESTS, other).await.created();
    one.get(&format!("{REQUESTS}/mine")).await.ok();
    let message = one.get(&format!("{REQUESTS}/other")).await.refused(403, "Forbidden");
    assert!(message.ends_with(": no relationship found between node 'one' and this object"), "{message}");
    let selected = "fieldSelector=spec.nodeName%3Done";
    let list = one.get(&format!("{GROUP}/podcertificaterequests?{selected}")).await.ok();
    let names: Vec<&Value> =
        list["items"].as_array().expect("items").iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, ["mine"]);
    let mut events = one.watch(&format!("{REQUESTS}?watch=true&{selected}")).await;
    assert_eq!(events.named().await, ("ADDED".into(), "mine".into()));
    for url in [
        format!("{GROUP}/podcertificaterequests"),
        format!("{REQUESTS}?fieldSelector=spec.nodeName%3Dtwo"),
        format!("{REQUESTS}?watch=true"),
    ] {
        let message = one.get(&url).await.refused(403, "Forbidden");
        let why = ": can only list/watch podcertificaterequests with nodeName field selector";
        assert!(message.ends_with(why), "{url}: {message}");
    }
    let message = one.delete(&format!("{REQUESTS}/mine")).await.refused(403, "Forbidden");
    assert!(message.ends_with(": nodes may not delete podcertificaterequests"), "{message}");
    let denied = json!({"status": {"conditions": [condition("Denied")]}});
    let message =
        one.patch(&format!("{REQUESTS}/mine/status"), "merge", denied).await.refused(403, "Forbidden");
    let why = ": nodes may not access the status subresource of PodCertificateRequests";
    assert!(message.ends_with(why), "{message}");
}

#[tokio::test]
async fn what_a_node_asks_for_is_of_a_pod_that_runs_there() {
    let asking = Asking::start().await;
    let of = |field: &'static str, value: &'static str| move |spec: &mut Value| spec[field] = value.into();
    let message = asking.refused("of-one", of("nodeName", "two"), 403, "Forbidden").await;
    assert_eq!(
        message,
        "podcertificaterequests.certificates.k8s.io \"r\" is forbidden: PodCertificateRequest.Spec.NodeName=\"two\", which is not the requesting node \"one\""
    );
    let message = asking.refused("of-two", |_| {}, 403, "Forbidden").await;
    let why = ": pod \"a/of-two\" is not running on node \"one\" named in the PodCertificateRequest";
    assert!(message.ends_with(why), "{message}");
    // What may only mean that this server is behind is no refusal.
    let message = asking.refused("of-one", of("nodeUID", "x"), 500, "").await;
    let why = "PodCertificateRequest for pod \"a/of-one\" names node UID \"x\", inconsistent with the running node (\"";
    assert!(message.starts_with(why), "{message}");
    let message = asking.refused("of-one", of("podUID", "x"), 500, "").await;
    let why = "PodCertificateRequest for pod \"a/of-one\" contains pod UID (\"x\") which differs from running pod \"";
    assert!(message.starts_with(why), "{message}");
    let message = asking.refused("of-one", of("podName", "none"), 500, "").await;
    assert_eq!(
        message,
        "while retrieving pod \"a/none\" named in the PodCertificateRequest: pod \"none\" not found"
    );
}

#[tokio::test]
async fn what_a_node_asks_for_is_in_the_name_of_the_account_that_its_pod_runs_as() {
    let asking = Asking::start().await;
    let of = |field: &'static str, value: &'static str| move |spec: &mut Value| spec[field] = value.into();
    let message = asking.refused("of-one", of("serviceAccountName", "other"), 403, "Forbidden").await;
    let why = ": PodCertificateRequest for pod \"a/of-one\" contains serviceAccountName (\"other\") that differs from running pod (\"default\")";
    assert!(message.ends_with(why), "{message}");
    let message = asking.refused("of-one", of("serviceAccountUID", "x"), 500, "").await;
    let why = "PodCertificateRequest for pod \"a/of-one\" names service account UID \"x\", which differs from the running service account (\"";
    assert!(message.starts_with(why), "{message}");
    asking.admin.delete("/api/v1/namespaces/a/serviceaccounts/default").await.ok();
    let request = {
        let mut request = json!({"metadata": {"name": "r"}, "spec": {
            "signerName": SIGNER, "podName": "of-one", "nodeName": "one", "serviceAccountName": "default",
            "serviceAccountUID": "x", "maxExpirationSeconds": 86400, "stubPKCS10Request": "AAAA",
        }});
        request["spec"]["podUID"] = asking.uid("/api/v1/namespaces/a/pods/of-one").await;
        request["spec"]["nodeUID"] = asking.uid("/api/v1/nodes/one").await;
        request
    };
    let message = asking.one.post(REQUESTS, request).await.refused(500, "");
    assert_eq!(
        message,
        "while retrieving service account \"a/default\" named in the PodCertificateRequest: serviceaccount \"default\" not found"
    );
}

#[tokio::test]
async fn what_a_node_asks_for_is_what_its_pod_wants_or_a_role_allows() {
    let asking = Asking::start().await;
    let message = asking.refused("plain", |_| {}, 403, "Forbidden").await;
    let why =
        ": pod \"a/plain\" does not mount a podCertificate projected volume for signer \"example.com/s\"";
    assert!(message.ends_with(why), "{message}");
    let other = |spec: &mut Value| spec["signerName"] = "example.com/t".into();
    let message = asking.refused("of-one", other, 403, "Forbidden").await;
    assert!(message.ends_with("projected volume for signer \"example.com/t\""), "{message}");
    let rule = json!([{
        "verbs": ["request-serviceaccounts-podcertificate-signer"], "apiGroups": ["certificates.k8s.io"],
        "resources": ["example.com:s"], "resourceNames": ["default"],
    }]);
    allow(&asking.admin, "system:node:one", "asks", rule).await;
    asking.one.post(REQUESTS, asking.request("r", "plain", "one").await).await.created();
    // A mirror pod, which the node could have made itself, gets none whatever it wants.
    let mark = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
    let mut mirror = pod("mirror");
    mirror["metadata"]["annotations"] = mark["metadata"]["annotations"].clone();
    mirror["spec"]["nodeName"] = "one".into();
    asking.admin.post("/api/v1/namespaces/a/pods", mirror).await.created();
    let message = asking.refused("mirror", |_| {}, 403, "Forbidden").await;
    assert!(message.ends_with(": pod \"a/mirror\" is a mirror pod"), "{message}");
}

#[tokio::test]
async fn a_node_that_may_write_all_of_them_still_only_asks() {
    let asking = Asking::start().await;
    let all = json!([{"verbs": ["*"], "apiGroups": ["certificates.k8s.io"], "resources": ["*"]}]);
    allow(&asking.admin, "system:node:one", "all", all).await;
    asking.one.post(REQUESTS, asking.request("r", "of-one", "one").await).await.created();
    let url = format!("{REQUESTS}/r");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let message = asking.one.patch(&url, "merge", label).await.refused(403, "Forbidden");
    assert!(message.ends_with(": unexpected operation UPDATE"), "{message}");
    let message = asking.one.delete(&url).await.refused(403, "Forbidden");
    assert!(message.ends_with(": unexpected operation DELETE"), "{message}");
}

impl Asking {
    /// What a signer answers with: a certificate of the key that began to hold some seconds ago, for so many hours.
    fn issued(&self, ago_s: i64, hours: i64) -> Value {
        let mut params = rcgen::CertificateParams::new(vec!["p.example.com".to_owned()]).expect("parameters");
        let begins_s = jiff::Timestamp::now().as_second() - ago_s;
        let ends_s = begins_s + hours * 3600;
        let date = |s: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(s.unsigned_abs());
        (params.not_before, params.not_after) = (date(begins_s), date(ends_s));
        let certificate = params.self_signed(&self.key).expect("a certificate");
        let text = |s: i64| jiff::Timestamp::from_second(s).expect("a time").to_string();
        json!({"status": {
            "conditions": [condition("Issued")], "certificateChain": certificate.pem(),
            "notBefore": text(begins_s), "notAfter": text(ends_s), "beginRefreshAt": text(begins_s + 1800),
        }})
    }
}

fn signers(verb: &str, name: &str) -> Value {
    json!({"verbs": [verb], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [name]})
}

#[tokio::test]
async fn a_request_that_its_key_has_not_signed_is_refused() {
    let asking = Asking::start().await;
    let mut request = asking.request("r", "of-one", "one").await;
    let mut der =
        STANDARD.decode(request["spec"]["stubPKCS10Request"].as_str().expect("text")).expect("base64");
    *der.last_mut().expect("bytes") ^= 1;
    request["spec"]["stubPKCS10Request"] = STANDARD.encode(der).into();
    let answer = asking.admin.post(REQUESTS, request).await;
    assert_eq!(
        answer.refused(422, "Invalid"),
        "PodCertificateRequest.certificates.k8s.io \"r\" is invalid: spec.stubPKCS10Request: Invalid value: invalid signature"
    );
    let cause = &answer.json()["details"]["causes"][0];
    assert_eq!(
        (&cause["reason"], &cause["field"]),
        (&json!("FieldValueInvalid"), &json!("spec.stubPKCS10Request"))
    );
}

#[tokio::test]
async fn whoever_answers_a_request_must_be_allowed_to_sign() {
    let asking = Asking::start().await;
    for name in ["r", "s"] {
        asking.one.post(REQUESTS, asking.request(name, "of-one", "one").await).await.created();
    }
    let writes = json!({
        "verbs": ["get", "patch"], "apiGroups": ["certificates.k8s.io"],
        "resources": ["podcertificaterequests", "podcertificaterequests/status"],
    });
    for (user, signer) in [("joe", "example.com/t"), ("jane", SIGNER), ("of-domain", "example.com/*")] {
        allow(&asking.admin, user, user, json!([writes, signers("sign", signer)])).await;
    }
    let answer = async |user: &str, name: &str, status: Value| {
        let user = asking.cluster.client(user, &[]);
        user.patch(&format!("{REQUESTS}/{name}/status"), "merge", status).await
    };
    let issued = asking.issued(0, 2);
    let refused = answer("joe", "r", issued.clone()).await;
    assert_eq!(
        refused.refused(422, "Invalid"),
        "PodCertificateRequest.certificates.k8s.io \"r\" is invalid: spec.signerName: Forbidden: User \"joe\" is not permitted to \"sign\" for signer \"example.com/s\""
    );
    let cause = &refused.json()["details"]["causes"][0];
    let wanted = (&json!("FieldValueForbidden"), &json!("spec.signerName"));
    assert_eq!((&cause["reason"], &cause["field"]), wanted);
    // What changes nothing needs no right, and what is wrong is told first.
    answer("joe", "r", json!({"status": {"conditions": []}})).await.ok();
    let message = answer("joe", "r", json!({"status": {"certificateChain": "x"}})).await;
    let message = message.refused(422, "Invalid");
    assert!(message.contains("status is immutable unless transitioning"), "{message}");
    answer("jane", "r", issued).await.ok();
    answer("of-domain", "s", json!({"status": {"conditions": [condition("Denied")]}})).await.ok();
}

#[tokio::test]
async fn a_certificate_that_is_issued_begins_to_hold_now() {
    let asking = Asking::start().await;
    asking.one.post(REQUESTS, asking.request("r", "of-one", "one").await).await.created();
    let url = format!("{REQUESTS}/r/status");
    let early = asking.issued(360, 2);
    let message = asking.admin.patch(&url, "merge", early).await.refused(422, "Invalid");
    let why = ": must be set to within 5 minutes of kube-apiserver's current time";
    assert!(message.contains("status.notBefore: Invalid value: \"") && message.ends_with(why), "{message}");
    let short = asking.issued(0, 0);
    let message = asking.admin.patch(&url, "merge", short).await.refused(422, "Invalid");
    let why = "status.certificateChain: Invalid value: 0: leaf certificate lifetime must be >= 1 hour";
    assert!(message.ends_with(why), "{message}");
    let recent = asking.issued(240, 2);
    asking.admin.patch(&url, "merge", recent).await.ok();
}

const BUNDLES: &str = "/apis/certificates.k8s.io/v1/clustertrustbundles";

#[tokio::test]
async fn whoever_writes_the_authorities_of_a_signer_must_be_allowed_to_attest() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let writes = json!({
        "verbs": ["create", "patch"], "apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"],
    });
    for (user, signer) in [("joe", "example.com/t"), ("jane", SIGNER), ("of-domain", "example.com/*")] {
        allow(&admin, user, user, json!([writes, signers("attest", signer)])).await;
    }
    let bundle = |name: &str, signer: Option<&str>| {
        let mut bundle = json!({"metadata": {"name": name}, "spec": {"trustBundle": cluster.pki.ca_pem()}});
        if let Some(signer) = signer {
            bundle["spec"]["signerName"] = signer.into();
        }
        bundle
    };
    let joe = cluster.client("joe", &[]);
    let message = joe.post(BUNDLES, bundle("example.com:s:x", Some(SIGNER))).await.refused(403, "Forbidden");
    let why = "clustertrustbundles.certificates.k8s.io \"example.com:s:x\" is forbidden: user not permitted to attest for signerName \"example.com/s\"";
    assert_eq!(message, why);
    joe.post(BUNDLES, bundle("of-nobody", None)).await.created();
    cluster.client("jane", &[]).post(BUNDLES, bundle("example.com:s:x", Some(SIGNER))).await.created();
    let of_domain = cluster.client("of-domain", &[]);
    of_domain.post(BUNDLES, bundle("example.com:s:y", Some(SIGNER))).await.created();

    let url = format!("{BUNDLES}/example.com:s:x");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(joe.patch(&url, "merge", label.clone()).await.refused(403, "Forbidden"), why);
    of_domain.patch(&url, "merge", label).await.ok();
    let collects = json!({"metadata": {"finalizers": ["example.com/f"]}});
    joe.patch(&url, "merge", collects).await.ok();
    joe.patch(&url, "merge", json!({"metadata": {"finalizers": null}})).await.ok();
}
