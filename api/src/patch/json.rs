//! JSON patch, RFC 6902, in upstream's dialect.
//!
//! # Guarantees
//! - The cost of a patch is bounded by its own length and that of the document: copies by [`MAX_COPIED_BYTES`], what
//!   insertions into long lists shift and what is measured of moved values by [`MAX_WORK`].
//! - No document deeper than [`MAX_DEPTH`] is ever made, so that what walks one may recurse.
//! - Nothing is undone: a patch that fails leaves its working copy to be thrown away.
//!
//! # The dialect
//! `replace` of a missing field adds it, `copy` of one sets a null, an index may be negative, what stands before a path's first slash is
//! not looked at, and only `replace` and `test` may name the whole document.
//!
//! Source: `gopkg.in/evanphx/json-patch.v4`, `patch.go`; `JSONPatchMaxCopyBytes` of apiserver.

use std::borrow::Cow;
use std::io;

use serde_json::{Map, Value};

use crate::depth::{self, MAX_DEPTH, TooDeep};

/// How much longer copies may make a document, as upstream.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// Values that one patch may shift in lists and measure, beside what its own length costs: about 0.1 s. Ten thousand
/// insertions in front of a list of six thousand items pass.
const MAX_WORK: usize = 64 << 20;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("unexpected kind: {0}")]
    Kind(String),
    #[error("{kind} operation: {field} is missing or no string")]
    NoPointer { kind: String, field: &'static str },
    #[error("{kind} operation does not apply: doc is missing path: {pointer:?}")]
    MissingPath { kind: &'static str, pointer: String },
    #[error("{kind} operation does not apply: doc is missing key: {pointer:?}")]
    MissingKey { kind: &'static str, pointer: String },
    #[error("{kind} operation does not apply: invalid index referenced: {pointer:?}")]
    Index { kind: &'static str, pointer: String },
    #[error("replace operation value must be object or array")]
    NoDocument,
    #[error("testing value {pointer} failed")]
    Test { pointer: String },
    #[error(
        "unable to complete the copy, the accumulated size increase exceeds the limit {MAX_COPIED_BYTES}"
    )]
    Copied,
    #[error("the patch shifts or moves more than {MAX_WORK} values; send it in parts")]
    Work,
    #[error("the result of the patch {0}")]
    TooDeep(#[from] TooDeep),
}

/// Applies operations in their order. After an error the document is of no use.
pub(super) fn apply(document: &mut Value, operations: &[Value]) -> Result<(), Error> {
    let depth = depth::levels(document, MAX_DEPTH)?;
    let mut editor = Editor { document, spent: Spent { copied_bytes: 0, work: 0, depth } };
    operations.iter().try_for_each(|operation| editor.operation(operation))
}

/// What a patch has used up.
struct Spent {
    copied_bytes: usize,
    work: usize,
    /// At least as many levels as the document has.
    depth: usize,
}

impl Spent {
    fn work(&mut self, values: usize) -> Result<(), Error> {
        self.work += values;
        if self.work > MAX_WORK { Err(Error::Work) } else { Ok(()) }
    }

    /// A value of `levels` is put into a container at `level`, the document being at 1.
    fn put(&mut self, level: usize, levels: usize) -> Result<(), Error> {
        if level + levels > MAX_DEPTH {
            return Err(TooDeep.into());
        }
        self.depth = self.depth.max(level + levels);
        Ok(())
    }

    /// A value that came out of a container at level `from` is put into one at level `to`. It is only measured where what
    /// is known of the document does not say that it fits.
    fn put_moved(&mut self, value: &Value, from: usize, to: usize) -> Result<(), Error> {
        let at_most = self.depth.saturating_sub(from);
        if to + at_most <= MAX_DEPTH {
            return self.put(to, at_most);
        }
        self.work(count(value))?;
        let levels = depth::levels(value, MAX_DEPTH)?;
        self.put(to, levels)
    }

    fn copy(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_null() {
            return Ok(());
        }
        let mut counter = Counter { left: MAX_COPIED_BYTES - self.copied_bytes };
        serde_json::to_writer(&mut counter, value).map_err(|_| Error::Copied)?;
        self.copied_bytes = MAX_COPIED_BYTES - counter.left;
        Ok(())
    }
}

/// How many values one is made of. Recursion is bounded by [`MAX_DEPTH`].
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// Counts bytes as Go writes them, with `<`, `>` and `&` as six each; fails when there are too many.
struct Counter {
    left: usize,
}

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let escaped = bytes.iter().filter(|byte| matches!(byte, b'<' | b'>' | b'&')).count();
        self.left = self
            .left
            .checked_sub(bytes.len() + 5 * escaped)
            .ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Editor<'d> {
    document: &'d mut Value,
    spent: Spent,
}

/// A place in a container: an object's field, which need not be there, or a list's item.
struct Place<'v, 'p> {
    container: &'v mut Value,
    key: Cow<'p, str>,
    /// Of the container; the document is at 1.
    level: usize,
}

/// What of an error a person sees of a path as long as a body.
fn shown(pointer: &str) -> String {
    pointer.chars().take(200).collect()
}

fn unescaped(step: &str) -> Cow<'_, str> {
    if step.contains('~') { step.replace("~1", "/").replace("~0", "~").into() } else { step.into() }
}

/// The place of an item in a list of `len`, from its end where negative.
fn index(step: &str, len: usize) -> Option<usize> {
    let index: i64 = step.parse().ok()?;
    let len = i64::try_from(len).ok()?;
    let index = if index < 0 { index + len } else { index };
    (0..len).contains(&index).then_some(index as usize)
}

/// The place that a pointer names, if all but its last step is there.
fn find<'v, 'p>(document: &'v mut Value, pointer: &'p str) -> Option<Place<'v, 'p>> {
    let (_, steps) = pointer.split_once('/')?;
    let (parents, key) = match steps.rsplit_once('/') {
        Some((parents, key)) => (Some(parents), key),
        None => (None, steps),
    };
    let (mut container, mut level) = (document, 1);
    for step in parents.into_iter().flat_map(|parents| parents.split('/')) {
        let step = unescaped(step);
        container = match container {
            Value::Object(map) => map.get_mut(&*step)?,
            Value::Array(items) => {
                let at = index(&step, items.len())?;
                &mut items[at]
            }
            _ => return None,
        };
        level += 1;
    }
    let is_container = container.is_object() || container.is_array();
    is_container.then(|| Place { container, key: unescaped(key), level })
}

impl Place<'_, '_> {
    /// `None` where there is no such item; a field that is not there is null.
    fn get(&self) -> Option<&Value> {
        match &*self.container {
            Value::Object(map) => Some(map.get(&*self.key).unwrap_or(&Value::Null)),
            Value::Array(items) => items.get(index(&self.key, items.len())?),
            _ => None,
        }
    }

    fn remove(self, spent: &mut Spent) -> Result<Option<Value>, Error> {
        Ok(match self.container {
            Value::Object(map) => map.remove(&*self.key),
            Value::Array(items) => {
                let Some(at) = index(&self.key, items.len()) else { return Ok(None) };
                spent.work(items.len() - at)?;
                Some(items.remove(at))
            }
            _ => None,
        })
    }

    /// Sets a field or inserts an item. `false` where the list has no such place.
    fn add(self, value: Value, spent: &mut Spent) -> Result<bool, Error> {
        match self.container {
            Value::Object(map) => {
                map.insert(self.key.into_owned(), value);
            }
            Value::Array(items) if self.key == "-" => items.push(value),
            Value::Array(items) => {
                let Some(at) = index(&self.key, items.len() + 1) else { return Ok(false) };
                spent.work(items.len() - at)?;
                items.insert(at, value);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Editor<'_> {
    fn operation(&mut self, operation: &Value) -> Result<(), Error> {
        let none = Map::new();
        let operation = operation.as_object().unwrap_or(&none);
        let kind = operation.get("op").and_then(Value::as_str).unwrap_or("unknown");
        let pointer = |field: &'static str| {
            let pointer = operation.get(field).and_then(Value::as_str);
            pointer.ok_or_else(|| Error::NoPointer { kind: kind.to_owned(), field })
        };
        let value = operation.get("value");
        match kind {
            "add" => self.add(pointer("path")?, value),
            "remove" => self.remove(pointer("path")?),
            "replace" => self.replace(pointer("path")?, value),
            "move" => self.move_(pointer("from")?, pointer("path")?),
            "test" => self.test(pointer("path")?, value),
            "copy" => self.copy(pointer("from")?, pointer("path")?),
            other => Err(Error::Kind(shown(other))),
        }
    }

    fn add(&mut self, pointer: &str, value: Option<&Value>) -> Result<(), Error> {
        let place = find(self.document, pointer)
            .ok_or_else(|| Error::MissingPath { kind: "add", pointer: shown(pointer) })?;
        let value = value.unwrap_or(&Value::Null);
        self.spent.put(place.level, depth::levels(value, MAX_DEPTH)?)?;
        let added = place.add(value.clone(), &mut self.spent)?;
        if added { Ok(()) } else { Err(Error::Index { kind: "add", pointer: shown(pointer) }) }
    }

    fn remove(&mut self, pointer: &str) -> Result<(), Error> {
        let place = find(self.document, pointer)
            .ok_or_else(|| Error::MissingPath { kind: "remove", pointer: shown(pointer) })?;
        let removed = place.remove(&mut self.spent)?;
        removed.map(drop).ok_or_else(|| Error::MissingKey { kind: "remove", pointer: shown(pointer) })
    }

    fn replace(&mut self, pointer: &str, value: Option<&Value>) -> Result<(), Error> {
        let value = value.unwrap_or(&Value::Null);
        let levels = depth::levels(value, MAX_DEPTH)?;
        if pointer.is_empty() {
            if levels == 0 {
                return Err(Error::NoDocument);
            }
            *self.document = value.clone();
            self.spent.depth = levels;
            return Ok(());
        }
        let place = find(self.document, pointer)
            .ok_or_else(|| Error::MissingPath { kind: "replace", pointer: shown(pointer) })?;
        self.spent.put(place.level, levels)?;
        match place.container {
            Value::Array(items) => {
                let at = index(&place.key, items.len())
                    .ok_or_else(|| Error::MissingKey { kind: "replace", pointer: shown(pointer) })?;
                items[at] = value.clone();
            }
            Value::Object(map) => _ = map.insert(place.key.into_owned(), value.clone()),
            _ => {}
        }
        Ok(())
    }

    fn move_(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let place = find(self.document, from)
            .ok_or_else(|| Error::MissingPath { kind: "move", pointer: shown(from) })?;
        let level = place.level;
        let value = place
            .remove(&mut self.spent)?
            .ok_or_else(|| Error::MissingKey { kind: "move", pointer: shown(from) })?;
        let place =
            find(self.document, to).ok_or_else(|| Error::MissingPath { kind: "move", pointer: shown(to) })?;
        self.spent.put_moved(&value, level, place.level)?;
        let added = place.add(value, &mut self.spent)?;
        if added { Ok(()) } else { Err(Error::Index { kind: "move", pointer: shown(to) }) }
    }

    fn copy(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let place = find(self.document, from)
            .ok_or_else(|| Error::MissingPath { kind: "copy", pointer: shown(from) })?;
        let value = place.get().ok_or_else(|| Error::MissingKey { kind: "copy", pointer: shown(from) })?;
        // What it costs and how deep it is first, and only then the copy itself.
        self.spent.copy(value)?;
        let (levels, value) = (depth::levels(value, MAX_DEPTH)?, value.clone());
        let place =
            find(self.document, to).ok_or_else(|| Error::MissingPath { kind: "copy", pointer: shown(to) })?;
        self.spent.put(place.level, levels)?;
        let added = place.add(value, &mut self.spent)?;
        if added { Ok(()) } else { Err(Error::Index { kind: "copy", pointer: shown(to) }) }
    }

    /// A value that is not there is null, on both sides.
    fn test(&mut self, pointer: &str, value: Option<&Value>) -> Result<(), Error> {
        let value = value.unwrap_or(&Value::Null);
        let holds = if pointer.is_empty() {
            *self.document == *value
        } else {
            let place = find(self.document, pointer)
                .ok_or_else(|| Error::MissingPath { kind: "test", pointer: shown(pointer) })?;
            let found =
                place.get().ok_or_else(|| Error::MissingKey { kind: "test", pointer: shown(pointer) })?;
            found == value
        };
        if holds { Ok(()) } else { Err(Error::Test { pointer: shown(pointer) }) }
    }
}
