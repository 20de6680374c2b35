//! Conversion against what upstream's converter sent and made of the same answers: `conversion.jsonl`, which `xtask/webhooks`
//! records.

use crate::server::{Reply, Server};
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_webhook::conversion::Converter;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    review_versions: Vec<String>,
    #[serde(default)]
    list: bool,
    objects: Vec<Value>,
    to: String,
    reply: Reply,
    calls: Vec<Call>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    result: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Call {
    path: String,
    query: String,
    headers: std::collections::BTreeMap<String, String>,
    body: Value,
}

/// Where we say something else, and why.
const KNOWN: &[(&str, &str)] = &[
    // Upstream reads answers that are no JSON as YAML; they are called JSON, so we do not.
    (
        "no JSON",
        "conversion webhook for example.com/v1, Kind=Gadget failed: couldn't get version/kind; json parse error: expected ident \
         at line 1 column 2",
    ),
    // Nothing of a body is repeated in errors.
    ("a converted object has no kind", "Object 'Kind' is missing"),
    (
        "a converted item has no kind",
        "conversion webhook for example.com/v1, Kind=GadgetList returned invalid converted object at index 0: Object 'Kind' is \
         missing",
    ),
    ("403 of text", "conversion webhook for example.com/v1, Kind=Gadget failed: unknown"),
    (
        "500 of text",
        "conversion webhook for example.com/v1, Kind=Gadget failed: an error on the server (\"unknown\") has prevented the \
         request from succeeding",
    ),
];

fn converter(server: &Server, review_versions: &[String]) -> Converter {
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&server.ca_pem);
    let definition = json!({"spec": {
        "group": "example.com",
        "versions": [{"name": "v1"}, {"name": "v2"}],
        "conversion": {"strategy": "Webhook", "webhook": {
            "conversionReviewVersions": review_versions,
            "clientConfig": {"caBundle": bundle, "service": {
                "namespace": "system", "name": "hook", "path": "/convert", "port": 443}},
        }},
    }});
    Converter::new(server.client(), &definition).expect("a converter")
}

async fn convert(case: &Case, converter: &Converter) -> Result<Vec<Value>, String> {
    let converted = if case.list {
        converter.convert_list(("example.com/v1", "GadgetList"), case.objects.clone(), &case.to).await
    } else {
        converter.convert(case.objects[0].clone(), &case.to).await.map(|object| vec![object])
    };
    converted.map_err(|error| error.to_string())
}

#[tokio::test]
async fn conversions_come_to_what_upstream_comes_to() {
    let server = Server::start().await;
    let cases = include_str!("conversion.jsonl").lines();
    let cases: Vec<Case> = cases.map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(cases.len() > 140, "{} cases", cases.len());
    let mut n_known = 0;
    let mut faults = Vec::new();
    for case in cases {
        server.answer([("/convert", case.reply.clone())]);
        let converter = converter(&server, &case.review_versions);
        let found = convert(&case, &converter).await;
        let calls = server.calls();
        let uid = calls.first().map(|call| call.uid.clone()).unwrap_or_default();
        let known = KNOWN.iter().find(|(name, _)| *name == case.name);
        n_known += usize::from(known.is_some());
        let wanted = match (known, case.error.as_str()) {
            (Some((_, error)), _) => Err((*error).to_owned()),
            (None, "") => Ok(case.result.clone()),
            (None, error) => Err(error.replace("$UID", &uid)),
        };
        if found != wanted {
            faults.push(format!("{}:\n   found {found:?}\n  wanted {wanted:?}", case.name));
        }
        // Of ten attempts one is recorded.
        let calls = &calls[..calls.len().min(case.calls.len())];
        assert_eq!(calls.len(), case.calls.len(), "{}", case.name);
        for (call, wanted) in calls.iter().zip(&case.calls) {
            let mut body = call.body.clone();
            body["request"]["uid"] = "$UID".into();
            assert_eq!(
                (&call.path, &call.query, &body),
                (&wanted.path, &wanted.query, &wanted.body),
                "{}",
                case.name
            );
            for (name, value) in &wanted.headers {
                assert_eq!(call.headers.get(name), Some(value), "{}: {name}", case.name);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(n_known, KNOWN.len());
}
