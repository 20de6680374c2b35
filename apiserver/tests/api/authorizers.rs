//! Authorizers that ask somebody: webhooks, and the configuration that names them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::IntoResponse as _;
use axum::routing::post;
use base64::Engine as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_apiserver::{AuthorizationModes, AuthorizationOptions};
use tokio::sync::watch;

use crate::certificates::request;
use crate::fixture::{Client, Cluster, Pki, config_map, pod};
use crate::metrics::{page, sample};
use crate::proxy::tls_of;
use crate::rbac::{binding, role, settle, user};

/// A webhook, and what it was asked: the `spec` of each review.
struct Judge {
    port: u16,
    ca: String,
    asked: Arc<Mutex<Vec<Value>>>,
    authorizations: Arc<Mutex<Vec<String>>>,
}

type Answering = BoxFuture<'static, Response<Body>>;

/// An answer with this `status`.
fn says(status: Value) -> Response<Body> {
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status});
    axum::Json(review).into_response()
}

fn allowed_if(is_allowed: bool) -> Value {
    json!({"allowed": is_allowed, "reason": if is_allowed { "fine" } else { "not for you" }})
}

impl Judge {
    /// `answer` is given the `spec` of a review.
    async fn start(pki: &Pki, answer: impl Fn(Value) -> Answering + Send + Sync + 'static) -> Judge {
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let authorizations: Arc<Mutex<Vec<String>>> = Arc::default();
        let (noted, shown, answer) = (asked.clone(), authorizations.clone(), Arc::new(answer));
        let handler = move |headers: HeaderMap, body: Bytes| {
            let review: Value = serde_json::from_slice(&body).expect("a review");
            assert_eq!(review["kind"], "SubjectAccessReview");
            noted.lock().push(review["spec"].clone());
            let credentials = headers.get("authorization").and_then(|value| value.to_str().ok());
            shown.lock().extend(credentials.map(str::to_owned));
            answer(review["spec"].clone())
        };
        let app = Router::new().fallback(post(handler));
        let pair = pki.issue("judge", &[]);
        let acceptor = tls_of(&pair.certificate_pem, &pair.key_pem);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(app);
                    let io = hyper_util::rt::TokioIo::new(stream);
                    _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Judge { port, ca: pki.ca_pem(), asked, authorizations }
    }

    /// One that answers at once.
    async fn saying(pki: &Pki, status: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Judge {
        Judge::start(pki, move |spec| Box::pin(std::future::ready(says(status(&spec))))).await
    }

    /// Its kubeconfig, in a folder.
    fn kubeconfig(&self, folder: &Path) -> std::path::PathBuf {
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        let server = format!("https://127.0.0.1:{}/authorize", self.port);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "judge", "cluster": {"server": server, "certificate-authority-data": ca}}],
            "users": [{"name": "api", "user": {"token": "secret"}}],
            "contexts": [{"name": "c", "context": {"cluster": "judge", "user": "api"}}],
        });
        let path = folder.join("judge.kubeconfig");
        std::fs::write(&path, config.to_string()).expect("a file");
        path
    }

    /// A configuration of a file: built-in types, and this webhook where `null` stands.
    fn configuration(&self, folder: &Path, order: &[Option<&str>], more: &Value) -> Value {
        let mut webhook = json!({
            "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "NoOpinion",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": self.kubeconfig(folder)},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            webhook[field] = value.clone();
        }
        let authorizers = order.iter().map(|type_| match type_ {
            Some(type_) => json!({"type": type_, "name": type_.to_ascii_lowercase()}),
            None => json!({"type": "Webhook", "name": "judge", "webhook": webhook}),
        });
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": authorizers.collect::<Vec<_>>(),
        })
    }

    /// The verb and the resource or path of each question.
    fn questions(&self) -> Vec<String> {
        let asked = self.asked.lock();
        let shown = asked.iter().map(|spec| {
            let text = |part: &str, field: &str| spec[part][field].as_str().unwrap_or_default().to_owned();
            let (verb, path) = (text("nonResourceAttributes", "verb"), text("nonResourceAttributes", "path"));
            let resource = ["verb", "resource", "subresource", "name"];
            let resource: Vec<String> = resource
                .iter()
                .map(|field| text("resourceAttributes", field))
                .filter(|text| !text.is_empty())
                .collect();
            if path.is_empty() { resource.join(" ") } else { format!("{verb} {path}") }
        });
        shown.collect()
    }
}

/// A server with nodes, roles, and then the webhook that a flag names.
async fn with_judge(pki: Pki, judge: &Judge) -> Cluster {
    Cluster::authorizing(pki, |folder| {
        AuthorizationOptions::Modes(AuthorizationModes {
            modes: ["Node", "RBAC", "Webhook"].map(str::to_owned).to_vec(),
            webhook_config: Some(judge.kubeconfig(folder)),
            webhook_version: "v1".to_owned(),
            ..AuthorizationModes::default()
        })
    })
    .await
}

/// A server by a file of a configuration.
async fn with_file(pki: Pki, configuration: impl FnOnce(&Path) -> Value) -> (Cluster, std::path::PathBuf) {
    let mut file = std::path::PathBuf::new();
    let cluster = Cluster::authorizing(pki, |folder| {
        file = folder.join("authorization.yaml");
        std::fs::write(&file, configuration(folder).to_string()).expect("a file");
        AuthorizationOptions::File(file.clone())
    })
    .await;
    (cluster, file)
}

const PODS: &str = "/api/v1/namespaces/a/pods";

#[tokio::test]
async fn a_webhook_decides_about_what_nodes_and_roles_have_no_opinion_of() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |spec| match spec["resourceAttributes"]["verb"].as_str() {
        Some("list") => json!({"allowed": true}),
        Some("get") => json!({"denied": true, "reason": "never"}),
        _ => json!({"reason": "who knows"}),
    })
    .await;
    let cluster = with_judge(pki, &judge).await;
    cluster.namespace("a").await;
    let ann = cluster.client("ann", &["devs"]);
    ann.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn&labelSelector=app%20in%20(x,y)")).await.ok();
    let refused = ann.get(&format!("{PODS}/p")).await.refused(403, "Forbidden");
    let wanted = "pods \"p\" is forbidden: User \"ann\" cannot get resource \"pods\" in API group \"\" in the namespace \"a\": never";
    assert_eq!(refused, wanted);
    let refused = ann.delete(&format!("{PODS}/p")).await.refused(403, "Forbidden");
    assert!(refused.ends_with("in the namespace \"a\": default: who knows"), "{refused}");
    let path = ann.get("/metrics").await.refused(403, "Forbidden");
    assert_eq!(path, "forbidden: User \"ann\" cannot get path \"/metrics\": default: who knows");
    let asked = judge.asked.lock().clone();
    assert_eq!(
        asked[0],
        json!({
            "user": "ann", "groups": ["devs", "system:authenticated"],
            "resourceAttributes": {
                "namespace": "a", "verb": "list", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]},
                "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["x", "y"]}]},
            },
        })
    );
    assert_eq!(
        asked.last().expect("one")["nonResourceAttributes"],
        json!({"path": "/metrics", "verb": "get"})
    );
    assert!(judge.authorizations.lock().iter().all(|shown| shown == "Bearer secret"));

    let page = page(&cluster.admin()).await;
    let decided = |decision| {
        let labels = [("type", "Webhook"), ("name", "default"), ("decision", decision)];
        sample(&page, "apiserver_authorization_decisions_total", &labels)
    };
    assert_eq!((decided("allowed"), decided("denied")), (Some(1.0), Some(1.0)));
    let evaluated = [("name", "default"), ("result", "success")];
    assert_eq!(sample(&page, "apiserver_authorization_webhook_evaluations_total", &evaluated), Some(4.0));
    assert_eq!(
        sample(&page, "apiserver_authorization_webhook_duration_seconds_count", &evaluated),
        Some(4.0)
    );
}

#[tokio::test]
async fn administrators_nodes_and_roles_do_not_wait_for_a_webhook() {
    let pki = Pki::new();
    let (open, gate) = watch::channel(false);
    let judge = Judge::start(&pki, move |_| {
        let mut gate = gate.clone();
        Box::pin(async move {
            _ = gate.wait_for(|is_open| *is_open).await;
            says(json!({"allowed": true}))
        })
    })
    .await;
    let cluster = with_judge(pki, &judge).await;
    let admin = cluster.namespace("a").await;
    let ann = cluster.client("ann", &[]);
    let waiting = tokio::spawn(async move { ann.get(PODS).await.code });
    let watching = cluster.client("eve", &[]);
    let watching = tokio::spawn(async move { watching.watch(&format!("{PODS}?watch=1")).await.code });
    let reads = json!([{"verbs": ["list", "watch"], "apiGroups": [""], "resources": ["pods"]}]);
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
    admin.post(&format!("{roles}/roles"), role("reader", &reads)).await.created();
    let bound = binding("reader", "Role", "reader", &user("bob"));
    admin.post(&format!("{roles}/rolebindings"), bound).await.created();
    settle(&admin).await;
    // As many as may begin a watch at once, and more, are not held up by one that waits.
    for _ in 0..8 {
        cluster.client("bob", &[]).get(PODS).await.ok();
        assert_eq!(cluster.client("bob", &[]).watch(&format!("{PODS}?watch=1")).await.code, 200);
    }
    let node = cluster.client("system:node:n", &["system:nodes"]);
    node.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await.created();
    assert!(!waiting.is_finished() && !watching.is_finished());
    open.send_replace(true);
    assert_eq!((waiting.await.expect("an answer"), watching.await.expect("an answer")), (200, 200));
    // Nobody but those two was asked about.
    assert!(judge.asked.lock().iter().all(|spec| spec["user"] == "ann" || spec["user"] == "eve"));
}

#[tokio::test]
async fn what_a_webhook_has_said_is_remembered_unless_it_was_asked_in_very_many_words() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |spec| allowed_if(spec["user"] == "ann")).await;
    let cluster = with_judge(pki, &judge).await;
    cluster.namespace("a").await;
    let (ann, bob) = (cluster.client("ann", &[]), cluster.client("bob", &[]));
    for _ in 0..3 {
        ann.get(PODS).await.ok();
        bob.get(PODS).await.refused(403, "Forbidden");
    }
    assert_eq!(judge.questions(), ["list pods", "list pods"]);
    let path = format!("/{}", "x".repeat(10_000));
    for _ in 0..2 {
        ann.get(&path).await.refused(404, "NotFound");
    }
    assert_eq!(judge.asked.lock().len(), 4);
}

#[tokio::test]
async fn every_check_of_rights_asks_the_webhook() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |spec| allowed_if(spec["user"] == "ann")).await;
    let cluster = with_judge(pki, &judge).await;
    let admin = cluster.namespace("a").await;
    let (ann, bob) = (cluster.client("ann", &[]), cluster.client("bob", &[]));
    let as_eve = [("impersonate-user", "eve")];
    let refused = ann.send(Method::GET, PODS, &as_eve, Body::empty()).await.refused(403, "Forbidden");
    assert!(refused.contains("User \"eve\" cannot list resource \"pods\""), "{refused}");
    let refused = bob.send(Method::GET, PODS, &as_eve, Body::empty()).await.refused(403, "Forbidden");
    assert!(refused.contains("User \"bob\" cannot impersonate resource \"users\""), "{refused}");
    assert_eq!(judge.questions(), ["impersonate users eve", "list pods", "impersonate users eve"]);

    // Roles list what they allow; a webhook is asked for the verb that makes that needless.
    judge.asked.lock().clear();
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]);
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles";
    ann.post(roles, role("r", &rules)).await.created();
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings";
    ann.post(bindings, binding("b", "Role", "r", &user("eve"))).await.created();
    assert_eq!(judge.questions(), ["create roles", "escalate roles", "create rolebindings", "bind roles r"]);

    judge.asked.lock().clear();
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let mut csr = request("csr", "example.com/signer", "eve", "devs");
    ann.post(requests, csr.clone()).await.created();
    csr = ann.get(&format!("{requests}/csr")).await.ok();
    csr["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r"}]});
    ann.put(&format!("{requests}/csr/approval"), csr).await.ok();
    let questions = judge.questions();
    assert_eq!(questions[2], "update certificatesigningrequests approval csr", "{questions:?}");
    assert!(questions[3].starts_with("approve signers "), "{questions:?}");

    judge.asked.lock().clear();
    let bundles = "/apis/certificates.k8s.io/v1/clustertrustbundles";
    let bundle = json!({
        "metadata": {"name": "example.com:s:b"},
        "spec": {"signerName": "example.com/s", "trustBundle": cluster.pki.ca_pem()},
    });
    ann.post(bundles, bundle).await.created();
    assert_eq!(judge.questions(), ["create clustertrustbundles", "attest signers example.com/s"]);

    judge.asked.lock().clear();
    let policy = json!({
        "metadata": {"name": "p"},
        "spec": {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": "true"}],
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]},
            ]}},
    });
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    ann.post(policies, policy).await.created();
    assert_eq!(judge.questions(), ["create validatingadmissionpolicies", "get configmaps *"]);
    admin.delete(&format!("{policies}/p")).await.ok();
}

#[tokio::test]
async fn reviews_and_rules_tell_what_a_webhook_says() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |spec| match spec["user"].as_str() {
        Some("ann") => json!({"allowed": true, "reason": "fine"}),
        Some("bob") => json!({"denied": true, "reason": "never"}),
        Some("both") => json!({"denied": true, "allowed": true}),
        _ => json!({"allowed": "perhaps"}),
    })
    .await;
    let cluster = with_judge(pki, &judge).await;
    let admin = cluster.namespace("a").await;
    let group = "/apis/authorization.k8s.io/v1";
    let what = json!({"verb": "get", "resource": "pods", "namespace": "a"});
    let review = async |user: &str, what: &Value| {
        let spec = json!({"user": user, "resourceAttributes": what});
        let answer = admin.post(&format!("{group}/subjectaccessreviews"), json!({"spec": spec})).await;
        answer.created()["status"].clone()
    };
    assert_eq!(review("ann", &what).await, json!({"allowed": true, "reason": "fine"}));
    assert_eq!(review("bob", &what).await, json!({"allowed": false, "denied": true, "reason": "never"}));
    let both = "webhook subject access review returned both allow and deny response";
    assert_eq!(
        review("both", &what).await,
        json!({"allowed": false, "denied": true, "evaluationError": both})
    );
    let failed = review("eve", &what).await;
    assert_eq!((&failed["allowed"], failed.get("denied")), (&false.into(), None));
    assert!(failed["evaluationError"].as_str().is_some_and(|why| why.starts_with("json: cannot unmarshal")));
    let mut narrowed = what.clone();
    narrowed["labelSelector"] = json!({"rawSelector": "a in (b"});
    let status = review("ann", &narrowed).await;
    let why = "spec.resourceAttributes.labelSelector ignored due to parse error";
    assert_eq!(status, json!({"allowed": true, "reason": "fine", "evaluationError": why}));

    let local = json!({"spec": {"user": "ann", "resourceAttributes": what}});
    let local = admin.post(&format!("{group}/namespaces/a/localsubjectaccessreviews"), local).await;
    assert_eq!(local.created()["status"]["allowed"], true);
    let own = json!({"spec": {"nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    let own = cluster.client("ann", &[]).post(&format!("{group}/selfsubjectaccessreviews"), own).await;
    assert_eq!(own.created()["status"]["allowed"], true);
    let rules = json!({"spec": {"namespace": "a"}});
    let rules = cluster.client("ann", &[]).post(&format!("{group}/selfsubjectrulesreviews"), rules).await;
    let status = rules.created()["status"].clone();
    assert_eq!(status["incomplete"], true);
    assert_eq!(status["evaluationError"], "webhook authorizer does not support user rule resolution");
}

#[tokio::test]
async fn policies_ask_a_webhook_about_rights_and_once_a_request() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |spec| {
        let verb = spec["resourceAttributes"]["verb"].as_str().unwrap_or_default();
        json!({"allowed": spec["user"] == "ann" || verb == "create", "reason": "by the judge"})
    })
    .await;
    let configuration = |folder: &Path, judge: &Judge| {
        let unremembered = json!({"cacheAuthorizedRequests": false, "cacheUnauthorizedRequests": false});
        judge.configuration(folder, &[Some("Node"), Some("RBAC"), None], &unremembered)
    };
    let (cluster, _) = with_file(pki, |folder| configuration(folder, &judge)).await;
    let admin = cluster.namespace("a").await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let check = "authorizer.group('').resource('secrets').namespace('a')";
    let policy = json!({
        "metadata": {"name": "p"},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]},
            ]},
            "matchConditions": [{"name": "c", "expression": format!("!{check}.check('watch').allowed() || true")}],
            "validations": [
                {"expression": format!("{check}.check('get').allowed()"),
                    "messageExpression": "'no secrets'"},
                {"expression": format!("{check}.check('get').reason() == 'by the judge'")},
            ],
        },
    });
    admin.post(&format!("{group}/validatingadmissionpolicies"), policy).await.created();
    let bound =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    admin.post(&format!("{group}/validatingadmissionpolicybindings"), bound).await.created();
    let maps = "/api/v1/namespaces/a/configmaps";
    cluster.client("ann", &[]).post(maps, config_map("m", "v")).await.created();
    assert_eq!(judge.questions(), ["create configmaps", "watch secrets", "get secrets"]);
    let refused = cluster.client("bob", &[]).post(maps, config_map("n", "v")).await.refused(422, "Invalid");
    assert!(refused.ends_with("denied request: no secrets"), "{refused}");
}

#[tokio::test]
async fn a_webhook_that_fails_is_passed_over_or_denies_as_its_failure_policy_says() {
    for (policy, role_counts) in [("NoOpinion", true), ("Deny", false)] {
        let pki = Pki::new();
        let judge = Judge::start(&pki, |_| {
            Box::pin(std::future::ready((StatusCode::BAD_REQUEST, "no").into_response()))
        })
        .await;
        let more = json!({"failurePolicy": policy});
        let order = [None, Some("RBAC")];
        let (cluster, _) = with_file(pki, |folder| judge.configuration(folder, &order, &more)).await;
        let admin = cluster.namespace("a").await;
        let reads = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
        let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
        admin.post(&format!("{roles}/roles"), role("reader", &reads)).await.created();
        let bound = binding("reader", "Role", "reader", &user("bob"));
        admin.post(&format!("{roles}/rolebindings"), bound).await.created();
        settle(&admin).await;
        let bob = cluster.client("bob", &[]);
        let answer = bob.get(PODS).await;
        let why = "Internal error occurred: the server rejected our request for an unknown reason";
        if role_counts {
            answer.ok();
        } else {
            assert_eq!(answer.refused(500, "InternalError"), why);
        }
        assert_eq!(bob.get(&format!("{PODS}/p")).await.refused(500, "InternalError"), why);
        assert_eq!(judge.asked.lock().len(), 2, "what will not pass is not tried again");
        let page = page(&admin).await;
        let labels = [("name", "judge"), ("result", "error")];
        let open = sample(&page, "apiserver_authorization_webhook_evaluations_fail_open_total", &labels);
        assert_eq!(open, role_counts.then_some(2.0));
        assert_eq!(sample(&page, "apiserver_authorization_webhook_evaluations_total", &labels), Some(2.0));
        assert!(sample(&page, "authorization_attempts_total", &[("result", "error")]).is_some());
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_redirects_lead_nowhere() {
    let pki = Pki::new();
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let judge = Judge::start(&pki, move |spec| {
        *counted.lock() += 1;
        let answer = match (spec["user"].as_str(), *counted.lock()) {
            (Some("bob"), _) => {
                let to = [("location", "/elsewhere")];
                (StatusCode::TEMPORARY_REDIRECT, to, "").into_response()
            }
            (_, 1) => (StatusCode::INTERNAL_SERVER_ERROR, "").into_response(),
            _ => says(json!({"allowed": true})),
        };
        Box::pin(std::future::ready(answer))
    })
    .await;
    let cluster = with_judge(pki, &judge).await;
    cluster.namespace("a").await;
    cluster.client("ann", &[]).get(PODS).await.ok();
    assert_eq!(judge.questions(), ["list pods", "list pods"]);
    cluster.client("bob", &[]).get(PODS).await.refused(500, "InternalError");
    assert_eq!(judge.asked.lock().len(), 3);
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_in_time_has_failed() {
    let pki = Pki::new();
    let judge = Judge::start(&pki, |_| Box::pin(std::future::pending())).await;
    let more = json!({"timeout": "100ms"});
    let order = [Some("Node"), Some("RBAC"), None];
    let (cluster, _) = with_file(pki, |folder| judge.configuration(folder, &order, &more)).await;
    cluster.namespace("a").await;
    let why = cluster.client("ann", &[]).get(PODS).await.refused(500, "InternalError");
    assert!(why.ends_with(": context deadline exceeded"), "{why}");
    let page = page(&cluster.admin()).await;
    let labels = [("name", "judge"), ("result", "timeout")];
    assert_eq!(sample(&page, "apiserver_authorization_webhook_evaluations_total", &labels), Some(1.0));
}

#[tokio::test]
async fn match_conditions_keep_questions_from_a_webhook() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |_| json!({"allowed": true})).await;
    let more = json!({
        "matchConditionSubjectAccessReviewVersion": "v1",
        "matchConditions": [
            {"expression": "!('system:serviceaccounts' in request.groups)"},
            {"expression": "request.resourceAttributes.namespace != 'b'"},
        ],
    });
    let order = [Some("Node"), Some("RBAC"), None];
    let (cluster, _) = with_file(pki, |folder| judge.configuration(folder, &order, &more)).await;
    cluster.namespace("a").await;
    cluster.namespace("b").await;
    let ann = cluster.client("ann", &[]);
    ann.get(PODS).await.ok();
    ann.get("/api/v1/namespaces/b/pods").await.refused(403, "Forbidden");
    cluster.client("robot", &["system:serviceaccounts"]).get(PODS).await.refused(403, "Forbidden");
    let failed = ann.get("/nowhere").await.refused(500, "InternalError");
    assert!(
        failed.contains("cel evaluation error: expression 'request.resourceAttributes.namespace != 'b''")
    );
    assert_eq!(judge.questions(), ["list pods"]);
    let page = page(&cluster.admin()).await;
    let labels = [("type", "Webhook"), ("name", "judge")];
    let of = |name: &str| sample(&page, &format!("apiserver_authorization_match_condition_{name}"), &labels);
    assert_eq!(of("exclusions_total"), Some(2.0));
    assert_eq!(of("evaluation_errors_total"), Some(1.0));
    assert_eq!(of("evaluation_seconds_count"), Some(4.0));
}

/// Asks until the answer is that, for as long as a test may take.
async fn until<T: PartialEq>(wanted: T, ask: impl AsyncFn() -> T) {
    let asking = async {
        while ask().await != wanted {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.expect("it comes to that");
}

#[tokio::test]
async fn a_changed_configuration_counts_and_one_that_is_wrong_changes_nothing() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |_| json!({"allowed": true})).await;
    let built_in = [Some("Node"), Some("RBAC")];
    let mut folder_of = std::path::PathBuf::new();
    let (cluster, file) = with_file(pki, |folder| {
        folder_of = folder.to_owned();
        judge.configuration(folder, &built_in, &Value::Null)
    })
    .await;
    let admin = cluster.namespace("a").await;
    let ann = cluster.client("ann", &[]);
    ann.get(PODS).await.refused(403, "Forbidden");
    let reloads = async |admin: &Client, status: &str| {
        let name = "apiserver_authorization_config_controller_automatic_reloads_total";
        sample(&page(admin).await, name, &[("status", status)])
    };
    let hash = async |admin: &Client| {
        let page = page(admin).await;
        let info = "apiserver_authorization_config_controller_last_config_info{";
        let lines: Vec<&str> = page.lines().filter(|line| line.starts_with(info)).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].to_owned()
    };
    let first = hash(&admin).await;

    // A whole file in the place of the last, as a ConfigMap's volume does it.
    let put = |document: String| {
        let new = folder_of.join("new");
        std::fs::write(&new, document).expect("a file");
        std::fs::rename(&new, &file).expect("in its place");
    };
    put(judge.configuration(&folder_of, &[Some("RBAC"), None], &Value::Null).to_string());
    until(Some(1.0), async || reloads(&admin, "failure").await).await;
    ann.get(PODS).await.refused(403, "Forbidden");
    assert_eq!(hash(&admin).await, first);

    put(judge.configuration(&folder_of, &[Some("Node"), Some("RBAC"), None], &Value::Null).to_string());
    until(200, async || ann.get(PODS).await.code).await;
    until(Some(1.0), async || reloads(&admin, "success").await).await;
    assert_ne!(hash(&admin).await, first);
    let stamp = "apiserver_authorization_config_controller_automatic_reload_last_timestamp_seconds";
    assert!(sample(&page(&admin).await, stamp, &[("status", "success")]).is_some_and(|at| at > 1e9));

    put("no such thing".to_owned());
    until(Some(2.0), async || reloads(&admin, "failure").await).await;
    ann.get(PODS).await.ok();
}

#[tokio::test]
async fn modes_that_always_say_the_same_say_it_to_all_but_administrators() {
    for (mode, code) in [("AlwaysAllow", 200), ("AlwaysDeny", 403)] {
        let cluster = Cluster::authorizing(Pki::new(), |_| {
            let modes = vec![mode.to_owned()];
            AuthorizationOptions::Modes(AuthorizationModes { modes, ..AuthorizationModes::default() })
        })
        .await;
        let admin = cluster.namespace("a").await;
        admin.get(PODS).await.ok();
        let answer = cluster.client("ann", &[]).get(PODS).await;
        assert_eq!(answer.code, code);
        if code == 403 {
            let why = answer.refused(403, "Forbidden");
            assert!(why.ends_with(": alwaysdeny: Everything is forbidden."), "{why}");
        }
    }
}

#[tokio::test]
async fn an_exec_that_begins_as_reading_asks_for_more() {
    let pki = Pki::new();
    let judge = Judge::saying(&pki, |spec| allowed_if(spec["resourceAttributes"]["verb"] == "get")).await;
    let cluster = with_judge(pki, &judge).await;
    let admin = cluster.namespace("a").await;
    admin.post(PODS, pod("p")).await.created();
    let ann = cluster.client("ann", &[]);
    let refused = ann.get(&format!("{PODS}/p/exec?command=sh")).await.refused(403, "Forbidden");
    assert!(refused.contains("cannot create resource \"pods/exec\""), "{refused}");
    assert_eq!(judge.questions(), ["get pods exec p", "create pods exec p"]);
}
