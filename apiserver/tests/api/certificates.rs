//! Certificate signing requests: whose they are, what is refused, who approves and who signs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::fixture::{Client, Cluster};

pub(crate) const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
pub(crate) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// `spec.request` for a subject.
fn pem(name: &str, group: &str) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().expect("a key");
    params.serialize_request(&key).and_then(|request| request.pem()).expect("a request")
}

pub(crate) fn request(name: &str, signer: &str, subject: &str, group: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "request": STANDARD.encode(pem(subject, group)), "signerName": signer,
        "usages": ["digital signature", "client auth"], "expirationSeconds": 86400,
    }})
}

async fn made(cluster: &Cluster, name: &str) -> Client {
    let admin = cluster.admin();
    admin.post(REQUESTS, request(name, CLIENT, "jane", "dev")).await.created();
    admin
}

fn condition(type_: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": "Test", "message": "m"})
}

#[tokio::test]
async fn a_request_says_who_made_it_whatever_they_wrote() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut forged = request("r", CLIENT, "jane", "dev");
    forged["spec"]["username"] = "root".into();
    forged["spec"]["uid"] = "0".into();
    forged["spec"]["groups"] = json!(["system:nodes"]);
    forged["spec"]["extra"] = json!({"scopes": ["all"]});
    forged["status"] = json!({"conditions": [condition("Approved")], "certificate": STANDARD.encode("x")});
    let created = admin.post(REQUESTS, forged).await.created();
    let spec = &created["spec"];
    assert_eq!(spec["username"], "admin");
    assert_eq!(spec["groups"], json!(["system:masters", "system:authenticated"]));
    assert!(spec["uid"].is_null() && spec["extra"].is_null(), "{spec}");
    assert_eq!(created["status"], json!({}));
    let changed = admin
        .patch(
            &format!("{REQUESTS}/r"),
            "merge",
            json!({"spec": {"username": "root"}, "metadata": {"labels": {"a": "b"}}}),
        )
        .await
        .ok();
    assert_eq!(changed["spec"], created["spec"], "a request stays as it was made");
    assert_eq!(changed["metadata"]["labels"]["a"], "b");
}

#[tokio::test]
async fn a_malformed_request_is_refused_with_the_field_that_is_wrong() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let refused = |change: fn(&mut Value)| {
        let mut body = request("r", CLIENT, "jane", "dev");
        change(&mut body["spec"]);
        let admin = admin.clone();
        async move { admin.post(REQUESTS, body).await.refused(422, "Invalid") }
    };
    let message = refused(|spec| spec["request"] = STANDARD.encode("no PEM").into()).await;
    assert!(message.contains("PEM block type must be CERTIFICATE REQUEST"), "{message}");
    let message = refused(|spec| {
        // One bit of the signed part is another.
        let pem = STANDARD.decode(spec["request"].as_str().expect("a request")).expect("base64");
        let text = String::from_utf8(pem).expect("text");
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let mut der = STANDARD.decode(body).expect("base64");
        let at = der.windows(4).position(|w| w == b"jane").expect("the name");
        der[at] ^= 1;
        let forged = STANDARD.encode(der);
        let pem =
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{forged}\n-----END CERTIFICATE REQUEST-----\n");
        spec["request"] = STANDARD.encode(pem).into();
    })
    .await;
    assert!(message.contains("the signature of the request is not valid"), "{message}");
    let message = refused(|spec| spec["usages"] = json!(["client auth", "flying"])).await;
    assert!(message.contains("spec.usages[1]: Unsupported value: \"flying\""), "{message}");
    let message = refused(|spec| spec["usages"] = json!(["client auth", "client auth"])).await;
    assert!(message.contains("spec.usages[1]: Duplicate value: \"client auth\""), "{message}");
    let message = refused(|spec| spec["signerName"] = "plain".into()).await;
    assert!(message.contains("must be a fully qualified domain and path"), "{message}");
    let message = refused(|spec| spec["signerName"] = "kubernetes.io/legacy-unknown".into()).await;
    assert!(message.contains("the legacy signerName is not allowed"), "{message}");
    let message = refused(|spec| spec["expirationSeconds"] = 599.into()).await;
    assert!(message.contains("may not specify a duration less than 600 seconds (10 minutes)"), "{message}");
}

#[tokio::test]
async fn nobody_gets_a_certificate_of_an_administrator() {
    let cluster = Cluster::start().await;
    let message = cluster
        .admin()
        .post(REQUESTS, request("r", CLIENT, "jane", "system:masters"))
        .await
        .refused(403, "Forbidden");
    assert_eq!(
        message,
        "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
    );
}

#[tokio::test]
async fn an_approval_changes_nothing_but_conditions() {
    let cluster = Cluster::start().await;
    let admin = made(&cluster, "r").await;
    let patch = json!({
        "spec": {"signerName": "example.com/other"},
        "status": {"conditions": [condition("Approved")], "certificate": STANDARD.encode("x")},
    });
    let approved = admin.patch(&format!("{REQUESTS}/r/approval"), "merge", patch).await.ok();
    assert_eq!(approved["spec"]["signerName"], CLIENT);
    let condition = &approved["status"]["conditions"][0];
    assert_eq!(condition["type"], "Approved");
    assert!(condition["lastUpdateTime"].is_string() && condition["lastTransitionTime"].is_string());
    assert!(approved["status"]["certificate"].is_null());
}

#[tokio::test]
async fn what_was_decided_is_not_taken_back() {
    let cluster = Cluster::start().await;
    let admin = made(&cluster, "r").await;
    let (approval, status) = (format!("{REQUESTS}/r/approval"), format!("{REQUESTS}/r/status"));
    let conditions = |types: &[&str]| json!({"status": {"conditions": types.iter().map(|t| condition(t)).collect::<Vec<_>>()}});
    let message = admin.patch(&approval, "merge", conditions(&["Approved", "Denied"])).await;
    let message = message.refused(422, "Invalid");
    assert!(message.contains("Approved and Denied conditions are mutually exclusive"), "{message}");
    let message = admin.patch(&status, "merge", conditions(&["Approved"])).await.refused(422, "Invalid");
    assert!(message.contains("updates may not add a condition of type \"Approved\""), "{message}");
    let not_true = json!({"status": {"conditions": [{"type": "Approved", "status": "False"}]}});
    let message = admin.patch(&approval, "merge", not_true).await.refused(422, "Invalid");
    assert!(message.contains("status.conditions[0].status: Unsupported value: \"False\""), "{message}");
    admin.patch(&approval, "merge", conditions(&["Approved"])).await.ok();
    let message = admin.patch(&approval, "merge", conditions(&[])).await.refused(422, "Invalid");
    assert!(message.contains("updates may not remove a condition of type \"Approved\""), "{message}");
    let other = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "message": "other"}, condition("Failed")]}});
    let kept = admin.patch(&status, "merge", other).await.ok();
    assert_eq!(kept["status"]["conditions"][0]["message"], "m", "only an approval writes approvals");
    assert_eq!(kept["status"]["conditions"][1]["type"], "Failed");
}

#[tokio::test]
async fn a_certificate_is_written_once_and_well_formed() {
    let cluster = Cluster::start().await;
    let admin = made(&cluster, "r").await;
    let status = format!("{REQUESTS}/r/status");
    let with = |pem: &str| json!({"status": {"certificate": STANDARD.encode(pem)}});
    let issued = cluster.pki.issue("jane", &["dev"]);
    let message = admin.patch(&status, "merge", with("x")).await.refused(422, "Invalid");
    assert!(message.contains("must contain at least one CERTIFICATE PEM block"), "{message}");
    let message = admin.patch(&status, "merge", with(&issued.key_pem)).await.refused(422, "Invalid");
    assert!(message.contains("only CERTIFICATE PEM blocks are allowed, found \"PRIVATE KEY\""), "{message}");
    admin.patch(&status, "merge", with(&issued.certificate_pem)).await.ok();
    let again = cluster.pki.issue("jane", &["dev"]).certificate_pem;
    let message = admin.patch(&status, "merge", with(&again)).await.refused(422, "Invalid");
    assert!(message.contains("updates may not modify existing certificate content"), "{message}");
}

#[tokio::test]
async fn approving_and_signing_need_a_permission_for_the_signer() {
    let cluster = Cluster::start().await;
    let admin = made(&cluster, "r").await;
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let group = "certificates.k8s.io";
    let writes = json!({"verbs": ["patch"], "apiGroups": [group], "resources": ["certificatesigningrequests/approval"]});
    let of = |name: &str| json!({"verbs": ["approve"], "apiGroups": [group], "resources": ["signers"], "resourceNames": [name]});
    let all = "kubernetes.io/*";
    for (name, rules) in [
        ("jane", json!([writes, of(CLIENT)])),
        ("of-domain", json!([writes, of(all)])),
        ("joe", json!([writes, of("example.com/other")])),
        ("signer", json!([of(CLIENT)])),
    ] {
        admin.post(ROLES, json!({"metadata": {"name": name}, "rules": rules})).await.created();
        let binding = json!({
            "metadata": {"name": name}, "subjects": [{"kind": "User", "name": name}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        });
        admin.post(BINDINGS, binding).await.created();
    }
    admin.get(BINDINGS).await.ok();
    let approve = async |user: &str| {
        let approved = json!({"status": {"conditions": [condition("Approved")]}});
        cluster.client(user, &[]).patch(&format!("{REQUESTS}/r/approval"), "merge", approved).await
    };
    let refused = approve("joe").await.refused(403, "Forbidden");
    assert!(
        refused.ends_with(
            "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\""
        ),
        "{refused}"
    );
    // Who may approve for the signer, but not write the subresource.
    approve("signer").await.refused(403, "Forbidden");
    approve("jane").await.ok();
    approve("of-domain").await.ok();
    let controller = "system:serviceaccount:kube-system:certificate-controller";
    let ask = |name: &str, verb: &str| {
        json!({"spec": {"user": controller, "resourceAttributes": {
            "group": group, "resource": "signers", "verb": verb, "name": name}}})
    };
    let url = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    for (name, verb, expected) in [
        (CLIENT, "sign", true),
        (CLIENT, "approve", false),
        ("kubernetes.io/kube-apiserver-client-kubelet", "approve", true),
        ("kubernetes.io/kubelet-serving", "approve", true),
    ] {
        let answer = admin.post(url, ask(name, verb)).await.created();
        assert_eq!(answer["status"]["allowed"], expected, "{verb} {name}");
    }
}
