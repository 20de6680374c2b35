//! Whatever is written, reading, checking and running it ends without a panic.

use std::time::{Duration, Instant};

use skiff_cel::{Environment, Run, Type, Value};

/// Words that expressions are made of.
const WORDS: &[&str] = &[
    "1",
    "-1",
    "0",
    "9223372036854775807",
    "2u",
    "1.5",
    "'a'",
    "'é'",
    "\"b\"",
    "b'c'",
    "r'\\d'",
    "true",
    "false",
    "null",
    "a",
    "b",
    "l",
    "m",
    "x",
    "y",
    "object",
    "in",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "(",
    ")",
    ",",
    ".",
    ".?",
    "[?",
    "{?",
    ":",
    "?",
    "+",
    "-",
    "*",
    "/",
    "%",
    "<",
    "<=",
    ">",
    ">=",
    "==",
    "!=",
    "&&",
    "||",
    "!",
    "has(",
    ".all(x,",
    ".exists(x,",
    ".map(x,",
    ".filter(x,",
    ".exists_one(x,",
    ".all(x, y,",
    ".transformMap(x, y,",
    ".transformList(x, y,",
    ".transformMapEntry(x, y,",
    ".optMap(x,",
    ".optFlatMap(x,",
    ".sortBy(x,",
    ".size()",
    "size(",
    "int(",
    "string(",
    "duration(",
    "timestamp('2024-01-02T03:04:05Z')",
    "quantity('1Gi')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "url('https://a.b')",
    "semver('1.2.3')",
    ".matches(",
    ".find(",
    ".findAll(",
    ".replace(",
    ".split(",
    ".join(",
    ".substring(",
    ".lastIndexOf(",
    ".format([",
    "])",
    "%s",
    "'%d %s'",
    "optional.of(",
    "optional.none()",
    ".orValue(",
    ".or(",
    ".sum()",
    ".max()",
    ".sort()",
    ".flatten(",
    ".slice(",
    ".distinct()",
    ".reverse()",
    "lists.range(",
    "sets.contains(",
    "dyn(",
    "type(",
    "google.protobuf.Timestamp",
    "//",
    "\n",
    "@",
    "`a`",
    "cel.bind(v,",
    "__result__",
    "format.uuid().validate(",
    ".isSorted()",
    ".getHours(",
    "if",
];

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn environment() -> Environment {
    Environment::default()
        .bindings()
        .variable("object", Type::Dyn)
        .variable("a", Type::Int)
        .variable("b", Type::String)
        .variable("l", Type::list(Type::Int))
        .variable("m", Type::map(Type::String, Type::Dyn))
}

/// Reads, checks, estimates and runs a text; whether it was one that runs.
fn tried(environment: &Environment, text: &str) -> bool {
    let json = serde_json::json!({"a": 3, "b": "text", "l": [1, 2, 3], "m": {"k": [1, "x", null]}, "object": {"x": {"y": 1}}});
    let Ok(program) = environment.compile(text) else { return false };
    program.estimate(&());
    let mut run = Run::default().limit(20_000);
    for name in ["a", "b", "l", "m", "object"] {
        run = run.variable(name, Value::from_json(&json[name], &Type::Dyn));
    }
    let outcome = program.run(run);
    assert!(outcome.result.is_err() || outcome.cost <= 20_000, "{text}");
    true
}

#[test]
fn no_text_makes_a_panic_or_takes_long() {
    let (environment, mut dice, mut n_run) = (environment(), Dice(0x5eed_cafe_f00d_1234), 0);
    for _ in 0..20_000 {
        let n_words = 1 + dice.below(24);
        let words: Vec<&str> = (0..n_words).map(|_| WORDS[dice.below(WORDS.len())]).collect();
        let separator = if dice.below(2) == 0 { "" } else { " " };
        let text = words.join(separator);
        let started = Instant::now();
        n_run += usize::from(tried(&environment, &text));
        assert!(started.elapsed() < Duration::from_secs(2), "{text}");
    }
    assert!(n_run > 100, "only {n_run} of the texts were expressions");
}

/// Expressions of the recorded cases, cut and put together anew.
#[test]
fn no_mixture_of_expressions_makes_a_panic() {
    let cases: Vec<&str> = include_str!("cases.txt").lines().filter(|line| line.is_ascii()).collect();
    let (environment, mut dice, mut n_run) = (environment(), Dice(0x0dd_ba11), 0);
    for _ in 0..20_000 {
        let (a, b) = (cases[dice.below(cases.len())], cases[dice.below(cases.len())]);
        let text = format!("{}{}", &a[..dice.below(a.len() + 1)], &b[dice.below(b.len() + 1)..]);
        n_run += usize::from(tried(&environment, &text));
    }
    assert!(n_run > 500, "only {n_run} of the texts were expressions");
}

#[test]
fn the_deepest_expression_is_run_on_a_small_stack() {
    let deep: Vec<String> =
        [("(", "1", ")"), ("[", "1", "]"), ("{1: ", "1", "}"), ("-(", "a", ")"), ("true ? (", "1", ") : 1")]
            .into_iter()
            .chain([
                ("[1].map(y, ", "1", ")"),
                ("optional.of(1).optMap(y, ", "1", ")"),
                ("size([", "1", "])"),
            ])
            .chain([("[[1]].sortBy(y, ", "1", ")"), ("l[", "0", "]"), ("cel.bind(y, a, ", "1", ")")])
            .flat_map(|(open, middle, close)| {
                [30, 60, 90, 124, 200, 249].map(|n| format!("{}{middle}{}", open.repeat(n), close.repeat(n)))
            })
            .chain([format!("object{}", ".x".repeat(249)), format!("1{}", " + 1".repeat(249))])
            .collect();
    // As small as the threads of servers are.
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let environment = environment();
        for text in &deep {
            tried(&environment, text);
        }
    });
    thread.expect("a thread").join().expect("no overflow");
}

#[test]
fn a_long_chain_of_logic_is_flat() {
    let environment = environment();
    for sign in [" && ", " || "] {
        assert!(tried(&environment, &vec!["a == 3"; 8_000].join(sign)));
    }
    let sum = vec!["a"; 300].join(" + ");
    let rejected = environment.compile(&sum).err().expect("too deep").to_string();
    assert_eq!(rejected, "ERROR: <input>:-1:0: expression recursion limit exceeded: 250");
    let long = format!("'{}'", "x".repeat(100_000));
    let rejected = environment.compile(&long).err().expect("too long").to_string();
    assert_eq!(
        rejected,
        "ERROR: <input>:-1:0: expression code point size exceeds limit: size: 100002, limit 100000"
    );
}

#[test]
fn what_doubles_is_bounded() {
    let environment = environment();
    let doubled = |n: usize| {
        let mut text = "l".to_string();
        for at in 0..n {
            text = format!("cel.bind(v{at}, {text}, v{at} + v{at})");
        }
        text
    };
    assert!(tried(&environment, &doubled(80)));
    let chained = format!("optional.of(1){}", ".optMap(v, v + 1)".repeat(60));
    let rejected = environment.compile(&chained).err().expect("too large");
    assert!(rejected.to_string().contains("parts"), "{rejected}");
    let mut types = "a".to_string();
    for at in 0..60 {
        types = format!("cel.bind(v{at}, {types}, {{v{at}: v{at}}})");
    }
    let rejected = environment.compile(&types).err().expect("too large");
    assert!(rejected.to_string().contains("too complex"), "{rejected}");
    let mut both = "[1].map(z, z)".to_string();
    for at in 0..60 {
        both = format!("cel.bind(v{at}, {both}, [{{1: v{at}}}, {{1: v{at}}}])");
    }
    tried(&environment, &both);
}

/// Runs an expression over a long text and a long list, and gives its fault.
fn fault_of(expression: &str) -> String {
    let json = serde_json::json!({"b": "a".repeat(1_000_000), "l": (0..20_000).collect::<Vec<i64>>()});
    let environment = environment();
    let program = environment.compile(expression).expect(expression);
    let run = Run::default()
        .variable("b", Value::from_json(&json["b"], &Type::String))
        .variable("l", Value::from_json(&json["l"], &Type::list(Type::Int)));
    program.run(run).result.expect_err(expression).to_string()
}

#[test]
fn what_would_be_large_is_not_made() {
    const TEXT: &str = "text has more than 33554432 bytes";
    const LIST: &str = "list has more than 1000000 items";
    for (expression, fault) in [
        ("b.replace('a', b).size() == 1", TEXT),
        ("lists.range(100).map(x, b).join('')", TEXT),
        ("lists.range(100).map(x, '').join(b)", TEXT),
        ("'%s'.format([lists.range(100).map(x, b)])", TEXT),
        ("lists.range(100).map(x, l).flatten()", LIST),
        ("cel.bind(c, l + l + l + l, cel.bind(d, c + c + c + c, d + d + d + d))", LIST),
        // Upstream has a bound of its own here.
        ("lists.range(2000000)", "lists.range: size 2000000 exceeds maximum allowed (1000000)"),
    ] {
        assert_eq!(fault_of(expression), fault, "{expression}");
    }
}

#[test]
fn what_would_take_long_is_not_begun() {
    const LIMIT: &str = "operation cancelled: actual cost limit exceeded";
    for expression in
        ["l.distinct()", "sets.contains(l, l)", "sets.equivalent(l, l)", "sets.intersects(l, l)"]
    {
        let started = Instant::now();
        assert_eq!(fault_of(expression), LIMIT, "{expression}");
        assert!(started.elapsed() < Duration::from_secs(1), "{expression}");
    }
}

#[test]
fn a_fault_does_not_repeat_a_long_text() {
    assert!(fault_of("{'x': 1}[b]").len() < 2_000);
}

#[test]
fn a_large_type_is_shown_in_part() {
    let mut text = "a".to_string();
    for at in 0..16 {
        text = format!("cel.bind(v{at}, {text}, {{v{at}: v{at}}})");
    }
    let rejected = environment().compile(&format!("{text} && true")).err().expect("no bool").to_string();
    assert!(rejected.contains("expected type 'bool' but found 'map(map("), "{}", &rejected[..200]);
    assert!(rejected.len() < 20_000, "{}", rejected.len());
}
