//! What webhooks cost that take their time, and what is kept of those that say too much. The clock stands until a webhook has been
//! asked, and then runs as fast as everybody waits.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_api::Status;
use skiff_webhook::admission::{
    Attributes, CallEnd, Caller, GroupVersionKind, GroupVersionResource, MAX_WARNINGS, Operation, Phase,
    Record, Reinvocation, UserInfo, Webhooks,
};
use tokio::time::Instant;

use crate::host::Gadgets;
use crate::server::{Reply, Server};

fn hook(server: &Server, name: &str, changes: Value) -> Value {
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&server.ca_pem);
    let mut hook = json!({
        "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": 10,
        "namespaceSelector": {}, "objectSelector": {}, "matchPolicy": "Equivalent",
        "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"]}],
        "clientConfig": {"caBundle": bundle, "service": {"namespace": "system", "name": "hook", "path": format!("/{name}")}},
    });
    for (field, value) in changes.as_object().expect("an object") {
        hook[field] = value.clone();
    }
    hook
}

fn allowed(more: &str) -> Reply {
    Reply::json(format!(
        "{{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\",\"response\":{{\"uid\":\"$UID\",\"allowed\":true{more}}}}}"
    ))
}

fn stalls() -> Reply {
    Reply { stalls: true, ..Reply::default() }
}

/// An update of a gadget through these webhooks, given up after `within`.
async fn admit(
    server: &Server,
    phase: Phase,
    hooks: Vec<Value>,
    within: Option<Duration>,
) -> (Result<(), Status>, Record) {
    admit_by(&Gadgets::default(), server, phase, hooks, within).await
}

async fn admit_by(
    host: &Gadgets,
    server: &Server,
    phase: Phase,
    hooks: Vec<Value>,
    within: Option<Duration>,
) -> (Result<(), Status>, Record) {
    let object =
        json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {}});
    let (kind, resource) = (
        GroupVersionKind::new("example.com/v1", "Gadget"),
        GroupVersionResource::new("example.com/v1", "gadgets"),
    );
    let user = UserInfo::default();
    let attributes = Attributes {
        operation: Operation::Update,
        kind: &kind,
        resource: &resource,
        subresource: "",
        namespace: "",
        name: "g",
        user: &user,
        dry_run: false,
        object: Some(&object),
        old_object: Some(&object),
        options: None,
        namespace_object: None,
        authorizer: None,
        deadline: within.map(|within| Instant::now() + within),
    };
    let client = server.client();
    let caller = Caller { client: &client, host };
    let configuration = json!({"metadata": {"name": "one"}, "webhooks": hooks});
    let webhooks = Webhooks::compile(phase, [&configuration], None);
    let mut record = Record::default();
    let result = match phase {
        Phase::Validating => sent(webhooks.validate(caller, &attributes, &mut record)).await,
        Phase::Mutating => {
            let object = Some(object.clone());
            let mut reinvocation = Reinvocation::default();
            sent(webhooks.mutate(caller, &attributes, object, &mut reinvocation, &mut record)).await.map(drop)
        }
    };
    (result, record)
}

/// A host runs it on whatever thread is free.
fn sent<F: Future + Send>(future: F) -> F {
    future
}

/// Lets time pass once so many webhooks have been asked. Never ends.
async fn hurry(server: &Server, n_calls: usize) {
    for _ in 0..n_calls {
        server.called().await;
    }
    tokio::time::pause();
    std::future::pending::<()>().await
}

/// What comes of a request once the webhooks that are asked at once have been, and how long it took.
async fn waited(
    server: &Server,
    n_calls: usize,
    request: impl Future<Output = (Result<(), Status>, Record)>,
) -> (Result<(), Status>, Record, Duration) {
    let start = Instant::now();
    let (result, record) = tokio::select! {
        found = request => found,
        () = hurry(server, n_calls) => unreachable!(),
    };
    let took = start.elapsed();
    tokio::time::resume();
    (result, record, took)
}

#[tokio::test]
async fn a_slow_webhook_is_given_up_after_its_own_time() {
    for (policy, phase) in [
        ("Fail", Phase::Validating),
        ("Fail", Phase::Mutating),
        ("Ignore", Phase::Validating),
        ("Ignore", Phase::Mutating),
    ] {
        let server = Server::start().await;
        server.answer([("/a", stalls())]);
        let hooks = vec![hook(&server, "a", json!({"failurePolicy": policy, "timeoutSeconds": 3}))];
        let (result, record, took) = waited(&server, 1, admit(&server, phase, hooks, None)).await;
        assert!((Duration::from_secs(3)..Duration::from_secs(5)).contains(&took), "{took:?}");
        match policy {
            "Ignore" => {
                assert_eq!(result, Ok(()));
                assert!(record.annotations.keys().any(|key| key.starts_with("failed-open.")), "{record:?}");
            }
            _ => assert_eq!(
                result.expect_err("no answer").message,
                "Internal error occurred: failed calling webhook \"a\": failed to call webhook: Post \
                 \"https://hook.system.svc:443/a?timeout=3s\": context deadline exceeded"
            ),
        }
    }
}

#[tokio::test]
async fn validating_webhooks_are_waited_for_at_once() {
    let server = Server::start().await;
    let names = ["a", "b", "c", "d"];
    server.answer(["/a", "/b", "/c", "/d"].map(|path| (path, stalls())));
    let hooks = names.iter().map(|name| hook(&server, name, json!({}))).collect();
    let (result, _, took) = waited(&server, 1, admit(&server, Phase::Validating, hooks, None)).await;
    assert!((Duration::from_secs(10)..Duration::from_secs(15)).contains(&took), "{took:?}");
    let told = result.expect_err("no answer").message;
    assert!(told.contains("failed calling webhook \"a\""), "{told}");
}

#[tokio::test]
async fn the_first_denial_in_order_is_told_however_late_it_comes() {
    let server = Server::start().await;
    let denied = |who: &str| {
        Reply::json(format!(
            "{{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\",\"response\":{{\"uid\":\"$UID\",\"status\":{{\"message\":\"{who}\"}}}}}}"
        ))
    };
    let late =
        Reply { status: 503, headers: [("Retry-After".into(), "1".into())].into(), ..Reply::default() };
    server.answer([("/a", Reply { then: vec![denied("late")], ..late }), ("/b", denied("early"))]);
    let hooks = ["a", "b"].iter().map(|name| hook(&server, name, json!({}))).collect();
    let (result, _, _) = waited(&server, 2, admit(&server, Phase::Validating, hooks, None)).await;
    assert_eq!(result.expect_err("a denial").message, "admission webhook \"a\" denied the request: late");
}

#[tokio::test]
async fn a_request_that_is_over_waits_for_no_webhook() {
    let soon = Some(Duration::from_secs(2));
    // As the request's own time is less than the webhook's, that is what the webhook is told.
    let server = Server::start().await;
    server.answer([("/a", stalls()), ("/b", allowed(""))]);
    let hooks = || {
        ["a", "b"]
            .iter()
            .map(|name| hook(&server, name, json!({"failurePolicy": "Ignore"})))
            .collect::<Vec<_>>()
    };
    let (result, _, took) = waited(&server, 1, admit(&server, Phase::Mutating, hooks(), soon)).await;
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "{took:?}");
    let status = result.expect_err("the end of the request");
    assert_eq!(
        (status.code, status.reason, status.message.as_str()),
        (504, "Timeout", "Timeout: request did not complete within requested timeout")
    );
    let queries: Vec<String> = server.calls().into_iter().map(|call| call.query).collect();
    assert_eq!(queries, ["timeout=2s"]);
    let server = Server::start().await;
    let hooks = vec![hook(&server, "a", json!({}))];
    let (result, _) = admit(&server, Phase::Validating, hooks, Some(Duration::ZERO)).await;
    assert_eq!(result.expect_err("the end of the request").code, 504);
    assert_eq!(server.calls(), []);
}

#[tokio::test]
async fn of_what_a_webhook_says_so_much_is_kept() {
    let server = Server::start().await;
    let long = "x".repeat(1 << 20);
    let many: Vec<String> = (0..5000).map(|n| format!("w{n}")).collect();
    let annotations: serde_json::Map<String, Value> =
        many.iter().map(|key| (key.clone(), "v".into())).collect();
    let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {
        "uid": "$UID", "allowed": false, "warnings": many, "auditAnnotations": annotations,
        "status": {"message": long, "reason": long, "details": {"causes": vec![json!({"message": "c"}); 5000]}},
    }});
    server.answer([("/a", Reply::json(body.to_string()))]);
    let hooks = vec![hook(&server, "a", json!({}))];
    let (result, record) = admit(&server, Phase::Validating, hooks, None).await;
    assert_eq!(record.warnings.len(), MAX_WARNINGS);
    assert!(record.annotations.len() <= 1000);
    let sent = result.expect_err("a denial").to_json().to_string();
    assert!(sent.len() < 200_000, "{}", sent.len());
    assert!(sent.starts_with("{\"apiVersion\":\"v1\",\"code\":400,"), "{}", &sent[..100]);
}

#[tokio::test]
async fn a_patch_that_nests_without_end_fails_the_request_alone() {
    use base64::Engine as _;
    let server = Server::start().await;
    let deep = |depth: usize| {
        let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let patch = format!("[{{\"op\":\"add\",\"path\":\"/spec/x\",\"value\":{value}}}]");
        let patch = base64::engine::general_purpose::STANDARD.encode(patch);
        allowed(&format!(",\"patchType\":\"JSONPatch\",\"patch\":\"{patch}\""))
    };
    for (depth, is_fine) in [(100, true), (119, false), (100_000, false)] {
        server.answer([("/a", deep(depth))]);
        let hooks = vec![hook(&server, "a", json!({}))];
        let (result, _) = admit(&server, Phase::Mutating, hooks, None).await;
        assert_eq!(result.is_ok(), is_fine, "{depth}: {result:?}");
    }
}

#[tokio::test]
async fn every_call_is_told_the_host_with_what_came_of_it() {
    let server = Server::start().await;
    let body = |response: &str| {
        let review = "\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"";
        Reply::json(format!("{{{review},\"response\":{{\"uid\":\"$UID\",{response}}}}}"))
    };
    let denied = body("\"allowed\":false,\"status\":{\"code\":418}");
    let broken = body("\"allowed\":true,\"patchType\":\"JSONPatch\",\"patch\":\"W3sib3AiOiJ4In1d\"");
    let failed = Reply { status: 500, ..Reply::default() };
    for (reply, policy, wanted) in [
        (allowed(""), "Fail", (CallEnd::Allowed, 200)),
        (denied, "Ignore", (CallEnd::Denied, 418)),
        (failed.clone(), "Fail", (CallEnd::Failed, 500)),
        (failed, "Ignore", (CallEnd::FailedOpen, 500)),
        (Reply::json("{}"), "Fail", (CallEnd::Failed, 503)),
        (broken, "Ignore", (CallEnd::Internal, 0)),
    ] {
        server.answer([("/a", reply)]);
        let hooks = vec![hook(&server, "a", json!({"failurePolicy": policy}))];
        let host = Gadgets::default();
        _ = admit_by(&host, &server, Phase::Mutating, hooks, None).await;
        assert_eq!(host.calls.into_inner(), [("a".to_owned(), wanted.0, wanted.1)]);
    }
}
