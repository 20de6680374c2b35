//! Changes of an object, field by field, guided by its schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use skiff_api::schema::{Schema, Shape};

use crate::case::{Case, Edit, OPERATIONS, Operation, Scope, Step};
use crate::objects::Subject;

/// SplitMix64: the same numbers for the same seed on every machine and in every version.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}

const TEXTS: [&str; 40] = [
    "",
    " ",
    "a",
    "abc",
    "A_b",
    "-a",
    "a-",
    "a..b",
    "UPPER",
    "a/b",
    "/a",
    "../x",
    "a/../b",
    "é",
    "1",
    "true",
    "a b",
    "127.0.0.1",
    "169.254.169.254",
    "10.0.0.300",
    "010.0.0.1",
    "0.0.0.0",
    "fe80::1",
    "::1",
    "2001:DB8::1",
    "::ffff:1.2.3.4",
    "224.0.0.1",
    "10.0.0.0/33",
    "10.0.0.1/24",
    "192.0.2.0/24",
    "http://x",
    "a\nb",
    "*",
    "*.a.b",
    "a.example.com",
    "example.com/a",
    "kubernetes.io/a",
    "k8s.io/x",
    "$(A)",
    "a:b",
];
const NUMBERS: [i64; 16] = [
    -1,
    0,
    1,
    2,
    3,
    10,
    100,
    101,
    1000,
    65_535,
    65_536,
    100_000,
    2_147_483_647,
    2_147_483_648,
    -2_147_483_649,
    1 << 40,
];
const QUANTITIES: [&str; 18] = [
    "0",
    "-1",
    "1",
    "1.5",
    "100m",
    "0.5m",
    "1e3",
    "abc",
    "",
    "1Gi",
    "1000Mi",
    "0.1",
    "1n",
    "1.0000000001",
    "100E",
    "3Ki",
    "1024",
    "5Zi",
];
const PORTS: [&str; 12] =
    ["0", "1", "50%", "0%", "101%", "-5%", "http", "", "a--b", "A", "a_b", "toolongforaportname"];
const TIMES: [&str; 5] =
    ["2020-01-01T00:00:00Z", "nonsense", "", "9999-12-31T23:59:59Z", "2020-01-01T00:00:00.123456+02:00"];
const MAX_DEPTH: usize = 24;

/// All texts that stand in the objects: what is right in one place is wrong in another.
#[derive(Default)]
pub struct Corpus(Vec<String>);

impl Corpus {
    pub fn of(subjects: &[Subject]) -> Corpus {
        let mut texts = BTreeSet::new();
        let mut rest: Vec<&Value> = subjects.iter().map(|subject| &subject.object).collect();
        while let Some(value) = rest.pop() {
            match value {
                Value::String(text) if text.len() < 80 => _ = texts.insert(text.clone()),
                Value::Array(list) => rest.extend(list),
                Value::Object(map) => rest.extend(map.values()),
                _ => {}
            }
        }
        Corpus(texts.into_iter().collect())
    }
}

/// So many cases of these subjects, each kind in its turn.
pub fn cases(subjects: &[Subject], corpus: &Corpus, seed: u64, count: usize) -> Vec<Case> {
    let mut random = Random::new(seed);
    let mut kinds: Vec<Vec<Case>> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for subject in subjects {
        let walk = Walk { schema: &subject.kind.schema.schema, corpus };
        let mut edits = Vec::new();
        let shape = Shape::Object(subject.kind.schema.id);
        walk.edits(&shape, &subject.object, &mut Vec::new(), &mut random, &mut edits);
        let all: Vec<Case> = edits
            .iter()
            .enumerate()
            .map(|(n, edit)| {
                let mut together = vec![edit.clone()];
                if n % 8 == 7 {
                    together.push(random.of(&edits).clone());
                }
                // Half of all are creates: they show the rules, the others what may change.
                // A dry run is not told that a new object has no version.
                let is_version = |edit: &Edit| edit.at.last() == Some(&Step::Key("resourceVersion".into()));
                together.retain(|edit| !is_version(edit) || edit.at.len() > 2);
                let operation =
                    if random.below(2) == 0 { Operation::Create } else { *random.of(&OPERATIONS[1..]) };
                Case { subject: subject.id.clone(), operation, edits: together, scope: Scope::Main }
            })
            .collect();
        match names.iter().position(|name| *name == subject.kind.kind) {
            Some(at) => kinds[at].extend(all),
            None => {
                names.push(&subject.kind.kind);
                kinds.push(all);
            }
        }
    }
    kinds.iter_mut().for_each(|cases| random.shuffle(cases));
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count && kinds.iter().any(|cases| !cases.is_empty()) {
        for (cases, name) in kinds.iter_mut().zip(&names) {
            // A pod's rules are those of all workloads, and more than all others' together.
            let share = if *name == "Pod" { 8 } else { 1 };
            for _ in 0..share {
                if chosen.len() < count {
                    chosen.extend(cases.pop());
                }
            }
        }
    }
    chosen
}

pub(crate) struct Walk<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) corpus: &'a Corpus,
}

impl Walk<'_> {
    pub(crate) fn edits(
        &self,
        shape: &Shape,
        value: &Value,
        at: &mut Vec<Step>,
        random: &mut Random,
        edits: &mut Vec<Edit>,
    ) {
        if at.len() > MAX_DEPTH {
            return;
        }
        if !at.is_empty() {
            let mut set = |value: Value| edits.push(Edit { at: at.clone(), set: Some(value) });
            self.values(shape, value, random).into_iter().for_each(&mut set);
            set(Value::Null);
            edits.push(Edit { at: at.clone(), set: None });
        }
        match (shape, value) {
            (Shape::Object(id), Value::Object(map)) => {
                for field in &self.schema.get(*id).fields {
                    if at.is_empty()
                        && matches!(&*field.name, "apiVersion" | "kind" | "status")
                        && random.below(4) > 0
                    {
                        continue;
                    }
                    at.push(Step::Key(field.name.to_string()));
                    match map.get(&*field.name) {
                        Some(value) => self.edits(&field.node.shape, value, at, random, edits),
                        None => {
                            for _ in 0..2 {
                                let value = self.some(&field.node.shape, random, 0);
                                edits.push(Edit { at: at.clone(), set: Some(value) });
                            }
                        }
                    }
                    at.pop();
                }
                at.push(Step::Key("unknownField".into()));
                edits.push(Edit { at: at.clone(), set: Some(json!("x")) });
                at.pop();
            }
            (Shape::List(inner), Value::Array(list)) => {
                for (index, value) in list.iter().enumerate() {
                    at.push(Step::Index(index));
                    self.edits(&inner.shape, value, at, random, edits);
                    at.pop();
                }
            }
            (Shape::Map(inner), Value::Object(map)) => {
                for (key, value) in map {
                    at.push(Step::Key(key.clone()));
                    self.edits(&inner.shape, value, at, random, edits);
                    at.pop();
                }
            }
            _ => {}
        }
    }

    /// Other values of one that is there: of the wrong type, at the edges, and beyond.
    fn values(&self, shape: &Shape, value: &Value, random: &mut Random) -> Vec<Value> {
        match shape {
            Shape::String | Shape::Bytes => {
                let mut all = vec![json!(""), json!(5), json!("x".repeat(*random.of(&[16, 64, 254, 300])))];
                for _ in 0..3 {
                    all.push(json!(random.of(&TEXTS)));
                    all.push(self.text(random));
                }
                all
            }
            Shape::Int32 | Shape::Int64 | Shape::Double => {
                let mut all = vec![json!(-1), json!(0), json!("x"), json!(1.5)];
                (0..3).for_each(|_| all.push(json!(random.of(&NUMBERS))));
                all
            }
            Shape::Bool => vec![json!(value != &json!(true)), json!("true")],
            Shape::Quantity => {
                let mut all = vec![json!(-1), json!({}), json!("-1")];
                (0..3).for_each(|_| all.push(json!(random.of(&QUANTITIES))));
                all
            }
            Shape::IntOrString => {
                let mut all = vec![json!(-1), json!(0), json!(65_536), json!(true)];
                (0..3).for_each(|_| all.push(json!(random.of(&PORTS))));
                all
            }
            Shape::Time | Shape::MicroTime => vec![json!(random.of(&TIMES)), json!(5)],
            Shape::Duration => vec![json!("1m"), json!(5)],
            Shape::Any | Shape::SchemaOr(..) => vec![json!("x"), json!([1]), json!({})],
            Shape::Object(_) => vec![json!({}), json!([]), json!("x")],
            Shape::List(inner) => self.lists(&inner.shape, value, random),
            Shape::Map(inner) => {
                let mut all = vec![json!({}), json!([])];
                for _ in 0..3 {
                    let mut more = value.as_object().cloned().unwrap_or_default();
                    let key = match random.below(3) {
                        0 => (*random.of(&TEXTS)).to_owned(),
                        1 => "k".repeat(*random.of(&[63, 64, 253, 254])),
                        _ => random.of(&self.corpus.0).clone(),
                    };
                    more.insert(key, self.some(&inner.shape, random, 0));
                    all.push(Value::Object(more));
                }
                all
            }
        }
    }

    fn lists(&self, inner: &Shape, value: &Value, random: &mut Random) -> Vec<Value> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let with = |more: Value| Value::Array(list.iter().cloned().chain([more]).collect());
        let mut all = vec![json!([]), json!({}), with(Value::Null), with(self.some(inner, random, 0))];
        if let Some(first) = list.first() {
            all.push(with(first.clone()));
            let mut reversed = list.to_vec();
            reversed.reverse();
            all.push(reversed.into());
            all.push(list[1..].to_vec().into());
            // The same entry with one field another: it may be equal by its key.
            if let (Value::Object(map), Some(last)) = (first, list.last())
                && !map.is_empty()
            {
                let mut other = map.clone();
                let keys: Vec<String> = other.keys().cloned().collect();
                let key = random.of(&keys).clone();
                if let Some(theirs) = last.get(&key) {
                    other.insert(key, theirs.clone());
                }
                all.push(with(Value::Object(other)));
            }
        }
        all
    }

    fn text(&self, random: &mut Random) -> Value {
        json!(random.of(&self.corpus.0))
    }

    /// Some value of a shape, mostly a sound one.
    pub(crate) fn some(&self, shape: &Shape, random: &mut Random, depth: usize) -> Value {
        match shape {
            Shape::String => match random.below(3) {
                0 => json!(random.of(&TEXTS)),
                1 => json!("a"),
                _ => self.text(random),
            },
            Shape::Bytes => json!("YQ=="),
            Shape::Int32 | Shape::Int64 | Shape::Double => json!(random.of(&NUMBERS)),
            Shape::Bool => json!(random.below(2) == 0),
            Shape::Quantity => json!(random.of(&QUANTITIES)),
            Shape::IntOrString if random.below(2) == 0 => json!(random.of(&NUMBERS[..10])),
            Shape::IntOrString => json!(random.of(&PORTS)),
            Shape::Time | Shape::MicroTime => json!(random.of(&TIMES)),
            Shape::Duration => json!("1m"),
            Shape::Any | Shape::SchemaOr(..) => json!({"a": 1}),
            Shape::List(inner) => {
                (0..1 + random.below(2)).map(|_| self.some(&inner.shape, random, depth + 1)).collect()
            }
            Shape::Map(inner) => json!({"a": self.some(&inner.shape, random, depth + 1)}),
            Shape::Object(id) => {
                let mut map = Map::new();
                for field in &self.schema.get(*id).fields {
                    let wanted = field.required || random.below(3 + 2 * depth) == 0;
                    if wanted && depth < 5 {
                        map.insert(field.name.to_string(), self.some(&field.node.shape, random, depth + 1));
                    }
                }
                Value::Object(map)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects;

    #[test]
    fn a_seed_makes_the_same_cases_and_another_seed_others() {
        let subjects = objects::all().unwrap();
        let corpus = Corpus::of(&subjects);
        let of = |seed| cases(&subjects, &corpus, seed, 500);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_eq!(of(3).len(), 500);
    }
}
