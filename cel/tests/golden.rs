//! What upstream's cel-go said to `cases.txt` in Kubernetes' environment is what this crate says.
//!
//! `tests/peers/cel` records the answers. What differs is listed in `known.txt`, each case with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::sync::Arc;

use serde_json::Value as Json;
use skiff_cel::{
    Authorizer, Check, Decision, Environment, Fault, Key, Library, List, Map, Range, Run, Scalar, Sizes,
    Subject, Type, Types, Value,
};

const CASES: &str = include_str!("cases.txt");
const RECORDED: &[u8] = include_bytes!("recorded.jsonl.gz");
const KNOWN: &str = include_str!("known.txt");

const OBJECT: &str = r#"{"metadata":{"name":"web","namespace":"default","labels":{"app":"web","tier":"front"},"annotations":{}},
"spec":{"replicas":3,"ratio":0.5,"paused":false,"items":["x","y","z"],"nothing":null,
"containers":[{"name":"a","image":"nginx:1","ports":[80,443]},{"name":"b","image":"redis"}]}}"#;
const SELF: &str = r#"{"name":"web","replicas":2,"tags":["a","bb"],"labels":{"app":"web"},"x-y":1,"if":2,"namespace":"ns",
"spec":{"image":"nginx","ratio":1.5}}"#;

/// The objects that `self` is made of.
struct Pods;

impl Types for Pods {
    fn field(&self, object: &str, field: &str) -> Option<Type> {
        Some(match (object, field) {
            ("Pod", "name" | "missing" | "__namespace__") | ("PodSpec", "image") => Type::String,
            ("Pod", "replicas" | "x__dash__y" | "__if__") => Type::Int,
            ("Pod", "tags") => Type::list(Type::String),
            ("Pod", "labels") => Type::map(Type::String, Type::String),
            ("Pod", "spec") => Type::object("PodSpec"),
            ("PodSpec", "ratio") => Type::Double,
            _ => return None,
        })
    }

    fn exists(&self, object: &str) -> bool {
        matches!(object, "Pod" | "PodSpec")
    }
}

/// What the recording says of sizes.
struct Known;

impl Sizes for Known {
    fn size(&self, path: &[Arc<str>], _: &Type) -> Option<Range> {
        let (min, max) = match path.join(".").as_str() {
            "s" => (0, 100),
            "l" => (1, 10),
            "ls" | "self.tags" => (0, 10),
            "ls.@items" | "self.tags.@items" => (0, 20),
            "self.name" => (1, 63),
            "self.labels" => (0, 5),
            "self.labels.@keys" => (0, 30),
            "self.labels.@values" => (0, 40),
            "self.spec.image" => (3, 200),
            _ => return None,
        };
        Some(Range { min, max })
    }
}

/// Lets those who get pass, and fails where it is told to.
struct Gate;

impl Authorizer for Gate {
    fn check(&self, check: &Check, verb: &str) -> Decision {
        let what = match check.path.as_str() {
            "" => [&check.group, &check.resource, &check.subresource, &check.namespace, &check.name]
                .map(String::as_str)
                .join("|"),
            path => path.to_string(),
        };
        let who = match &check.subject {
            Subject::Requester => String::new(),
            Subject::ServiceAccount { namespace, name } => {
                format!("system:serviceaccount:{namespace}:{name} ")
            }
        };
        match verb {
            "get" => Decision { is_allowed: true, reason: format!("{who}may {what}"), error: None },
            "error" => Decision { error: Some("no answer".to_string()), ..Decision::default() },
            _ => Decision { reason: format!("{who}may not {what}"), ..Decision::default() },
        }
    }
}

fn environment(version: u8) -> Environment {
    // What is more than a hundred has what device selectors have.
    let environment = match version {
        100.. => Environment::default().version(version - 100).bindings(),
        version => Environment::default().version(version),
    };
    let environment = environment
        .types(Pods)
        .variable("object", Type::Dyn)
        .variable("self", Type::object("Pod"))
        .variable("i", Type::Int)
        .variable("u", Type::Uint)
        .variable("d", Type::Double)
        .variable("s", Type::String)
        .variable("by", Type::Bytes)
        .variable("l", Type::list(Type::Int))
        .variable("ls", Type::list(Type::String))
        .variable("m", Type::map(Type::String, Type::Int))
        .variable("x", Type::Dyn)
        .variable("t", Type::Timestamp)
        .variable("dur", Type::Duration)
        .variable("e", Type::list(Type::Int))
        .variable("n", Type::Dyn);
    match version {
        27.. => environment.variable("authorizer", Type::object("kubernetes.authorization.Authorizer")),
        _ => environment,
    }
}

/// The variables as JSON; those that JSON has no values for are made of it by their types.
fn given() -> BTreeMap<&'static str, (Json, Type)> {
    let json = |text: &str| serde_json::from_str(text).expect("json");
    BTreeMap::from([
        ("object", (json(OBJECT), Type::Dyn)),
        ("self", (json(SELF), Type::object("Pod"))),
        ("i", (json("7"), Type::Int)),
        ("d", (json("2.5"), Type::Double)),
        ("s", (json("\"hello world\""), Type::String)),
        ("by", (json("\"Ynl0ZXM=\""), Type::Bytes)),
        ("l", (json("[3,1,2]"), Type::list(Type::Int))),
        ("ls", (json(r#"["b","a","c"]"#), Type::list(Type::String))),
        ("m", (json(r#"{"one":1,"two":2}"#), Type::map(Type::String, Type::Int))),
        ("x", (json("5"), Type::Dyn)),
        ("t", (json("\"2024-03-09T22:05:06.789Z\""), Type::Timestamp)),
        ("dur", (json("\"1h30m1.5s\""), Type::Duration)),
        ("e", (json("[]"), Type::list(Type::Int))),
        ("n", (json("null"), Type::Dyn)),
    ])
}

/// A value as text that says its type, too.
fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => format!("{value}u"),
        Value::Double(value) if value.is_nan() => "double NaN".to_string(),
        Value::Double(value) => format!("double {:016x}", value.to_bits()),
        Value::Text(text) => format!("'{}'", &**text),
        Value::Bytes(bytes) => bytes.iter().fold("bytes ".to_string(), |mut out, byte| {
            _ = write!(out, "{byte:02x}");
            out
        }),
        Value::Duration(nanos) => format!("duration {nanos}"),
        Value::Timestamp(time) => {
            format!(
                "timestamp {}.{:09}",
                time.nanos.div_euclid(1_000_000_000),
                time.nanos.rem_euclid(1_000_000_000)
            )
        }
        Value::Optional(None) => "none".to_string(),
        Value::Optional(Some(inner)) => format!("some {}", shown(inner)),
        Value::Type(type_) => format!("type {}", type_.name()),
        Value::List(list) => list_shown(list),
        Value::Map(map) => map_shown(map),
        Value::Library(library) => library_shown(library),
        Value::Fault(fault) => format!("fault {fault}"),
    }
}

fn list_shown(list: &List<'_>) -> String {
    format!("[{}]", list.iter().map(|item| shown(&item)).collect::<Vec<_>>().join(", "))
}

fn map_shown(map: &Map<'_>) -> String {
    let mut entries: Vec<String> =
        map.iter().map(|(key, value)| format!("{}: {}", shown(&key), shown(&value))).collect();
    entries.sort();
    format!("{{{}}}", entries.join(", "))
}

fn library_shown(library: &Library) -> String {
    match library {
        Library::Ip(ip) => format!("ip {ip}"),
        Library::Cidr(cidr) => format!("cidr {cidr}"),
        Library::Quantity(quantity) => format!("quantity {}", quantity.nanos()),
        other => format!("a {}", other.type_of().name()),
    }
}

/// The answer to one case, in the shape of the recording.
fn answer(version: u8, expression: &str) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    let mut tell = |name: &str, text: String| _ = told.insert(name.to_string(), text);
    let program = match environment(version).compile(expression) {
        Ok(program) => program,
        Err(rejected) => {
            tell("rejected", compared(&rejected.to_string()));
            return told;
        }
    };
    tell("type", program.output().to_string());
    let estimate = program.estimate(&Known);
    tell("min", estimate.min.to_string());
    tell("max", estimate.max.to_string());
    let given = given();
    let mut run = Run::default().authorizer(&Gate).variable("u", Value::Uint(9));
    for (name, (json, type_)) in &given {
        run = run.variable(name, Value::from_json(json, type_));
    }
    run = run.variable("authorizer", Value::authorizer());
    let outcome = program.run(run);
    tell("cost", outcome.cost.to_string());
    match outcome.result {
        Ok(value) => tell("result", shown(&value)),
        Err(fault) => tell("fault", fault.to_string()),
    }
    told
}

/// What was recorded, in the same shape.
fn recorded() -> Vec<(u8, String, BTreeMap<String, String>)> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(RECORDED).read_to_string(&mut text).expect("gzip");
    text.lines()
        .map(|line| {
            let json: Json = serde_json::from_str(line).expect("json");
            let text = |name: &str| json[name].as_str().map(str::to_string);
            let mut told = BTreeMap::new();
            if let Some(rejected) = text("rejected") {
                told.insert("rejected".to_string(), compared(&rejected));
            } else {
                for name in ["min", "max", "cost"] {
                    told.insert(name.to_string(), json[name].to_string());
                }
                for name in ["type", "result", "fault"] {
                    told.extend(text(name).map(|text| (name.to_string(), text)));
                }
            }
            let version = json["version"].as_u64().expect("version") as u8;
            (version, text("expression").expect("expression"), told)
        })
        .collect()
}

/// What is compared of a refusal: all of it, but of what a parser generator words only the first.
fn compared(rejected: &str) -> String {
    match rejected.find("Syntax error: ") {
        Some(at) => {
            let start = rejected[..at].rfind('\n').map_or(0, |end| end + 1);
            rejected[start..].lines().next().unwrap_or_default().to_string()
        }
        None => rejected.to_string(),
    }
}

/// The cases that are known to differ, with what of them does: `version field … expression`, each below its reason.
fn known() -> BTreeMap<(u8, String), BTreeSet<String>> {
    let lines = KNOWN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (version, rest) = line.split_once(' ').expect("a version");
            let (fields, expression) = rest.split_once(' ').expect("fields");
            let fields = fields.split(',').map(str::to_string).collect();
            ((version.parse().expect("a version"), expression.to_string()), fields)
        })
        .collect()
}

#[test]
fn upstreams_answers_are_given() {
    let (mut faults, mut met) = (String::new(), BTreeSet::new());
    let known = known();
    let mut n_faults = 0;
    for (version, expression, wanted) in recorded() {
        let found = answer(version, &expression);
        let names: BTreeSet<&String> = wanted.keys().chain(found.keys()).collect();
        let differs: BTreeSet<String> =
            names.into_iter().filter(|name| wanted.get(*name) != found.get(*name)).cloned().collect();
        let case = (version, expression);
        match known.get(&case) {
            Some(fields) if *fields == differs => _ = met.insert(case),
            _ if differs.is_empty() => {}
            _ => {
                n_faults += 1;
                _ = writeln!(
                    faults,
                    "{} {} {}",
                    case.0,
                    Vec::from_iter(differs.iter().cloned()).join(","),
                    case.1
                );
                for name in &differs {
                    _ = writeln!(
                        faults,
                        "    {name}: {:?}\n    wanted {:?}",
                        found.get(name),
                        wanted.get(name)
                    );
                }
            }
        }
    }
    for case in known.keys().filter(|case| !met.contains(*case)) {
        n_faults += 1;
        _ = writeln!(faults, "no longer differs so: {} {}", case.0, case.1);
    }
    assert!(faults.is_empty(), "{n_faults} differ\n{faults}");
}

#[test]
fn all_cases_are_recorded() {
    let mut version = 36;
    let mut cases = Vec::new();
    for line in CASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('@').and_then(|digits| digits.parse().ok()) {
            Some(number) => version = number,
            None => cases.push((version, line.to_string())),
        }
    }
    let recorded: Vec<(u8, String)> =
        recorded().into_iter().map(|(version, text, _)| (version, text)).collect();
    assert_eq!(recorded, cases);
    assert!(cases.len() > 1500);
}

#[test]
fn a_field_is_read_as_its_type_says() {
    struct Spans;
    impl Types for Spans {
        fn field(&self, object: &str, field: &str) -> Option<Type> {
            Some(match (object, field) {
                ("Span", "start") => Type::Timestamp,
                ("Span", "length") => Type::Duration,
                ("Span", "ratio") => Type::Double,
                ("Span", "raw") => Type::Bytes,
                ("Span", "starts") => Type::list(Type::Timestamp),
                ("Span", "__if__" | "a__dot__b") => Type::Int,
                ("Span", "inner") => Type::object("Span"),
                ("Span", "by_name") => Type::map(Type::String, Type::object("Span")),
                _ => return None,
            })
        }
    }
    let json: Json = serde_json::from_str(
        r#"{"start":"2024-01-01T00:00:00Z","length":"1m","ratio":2,"raw":"YQ==","if":1,"a.b":2,
            "starts":["2024-01-02T00:00:00Z"],"inner":{"length":"1s"},"by_name":{"x":{"ratio":1}}}"#,
    )
    .expect("json");
    let environment = Environment::default().types(Spans).variable("self", Type::object("Span"));
    for expression in [
        "self.start + self.length == timestamp('2024-01-01T00:01:00Z')",
        "self.ratio / 4.0 == 0.5",
        "self.raw == b'a'",
        "self.starts[0].getDate() == 2",
        "self.starts.all(start, start > self.start)",
        "self.__if__ + self.a__dot__b == 3",
        "has(self.__if__) && has(self.a__dot__b)",
        "self.inner.length == duration('1s')",
        "self.?inner.?length.orValue(duration('0')) == duration('1s')",
        "self.by_name['x'].ratio == 1.0",
        "self.by_name.all(name, span, span.ratio == 1.0)",
        "!has(self.inner.start)",
    ] {
        let program = environment.compile(expression).expect(expression);
        let outcome =
            program.run(Run::default().variable("self", Value::from_json(&json, &Type::object("Span"))));
        assert!(matches!(outcome.result, Ok(Value::Bool(true))), "{expression}: {outcome:?}");
    }
}

#[test]
fn a_map_is_asked_by_key() {
    let json: Json = serde_json::from_str(r#"{"a":1}"#).expect("json");
    let Value::Map(map) = Value::from_json(&json, &Type::Dyn) else { panic!("no map") };
    assert_eq!(map.get(&Key::Scalar(Scalar::Int(1))).map(|value| shown(&value)), None);
    assert!(matches!(map.iter().next(), Some((Value::Text(_), Value::Int(1)))));
}

#[test]
fn a_run_ends_where_its_limit_is() {
    let program = environment(36)
        .compile("lists.range(1000).all(a, lists.range(1000).all(b, a + b >= 0))")
        .expect("expression");
    let outcome = program.run(Run::default());
    assert_eq!(outcome.result.expect_err("too much"), Fault::CostLimit);
    let outcome = program.run(Run::default().interrupt(&|| true));
    assert_eq!(outcome.result.expect_err("interrupted"), Fault::Interrupted);
    assert!(outcome.cost < 10_000);
}
