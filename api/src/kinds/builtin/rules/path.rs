//! Where a value lies, and what is wrong there.

use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use crate::Cause;

/// A field's path, which costs nothing until something is wrong.
#[derive(Clone, Copy)]
pub(in crate::kinds) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Child(&'p str),
    Index(usize),
    Key(&'p str),
}

impl<'p> Path<'p> {
    /// The root of an object: its children have no prefix.
    pub(in crate::kinds) const ROOT: Path<'static> = Path { parent: None, step: Step::Child("") };

    pub(in crate::kinds) fn child(&'p self, name: &'p str) -> Path<'p> {
        Path { parent: Some(self), step: Step::Child(name) }
    }

    pub(in crate::kinds) fn index(&'p self, index: usize) -> Path<'p> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    pub(in crate::kinds) fn key(&'p self, key: &'p str) -> Path<'p> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    /// The path of what holds this value.
    pub(in crate::kinds) fn parent(&self) -> Path<'p> {
        self.parent.copied().unwrap_or(Path::ROOT)
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (mut steps, mut at) = (Vec::new(), Some(self));
        while let Some(path) = at {
            steps.push(path.step);
            at = path.parent;
        }
        let mut is_first = true;
        for step in steps.into_iter().rev() {
            match step {
                Step::Child("") => continue,
                Step::Child(name) if is_first => f.write_str(name)?,
                Step::Child(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "[{key}]")?,
            }
            is_first = false;
        }
        Ok(())
    }
}

pub(in crate::kinds) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// The causes found so far. Past a limit the rest is not collected: nobody reads it, and a client that makes many mistakes
/// should not make a large answer of them.
#[derive(Default)]
pub(in crate::kinds) struct Faults {
    pub(in crate::kinds) causes: Vec<Cause>,
}

const MAX_CAUSES: usize = 1000;

impl Faults {
    pub(in crate::kinds) fn is_empty(&self) -> bool {
        self.causes.is_empty()
    }

    pub(in crate::kinds) fn push(&mut self, cause: Cause) {
        if self.causes.len() < MAX_CAUSES {
            self.causes.push(cause);
        }
    }

    fn is_full(&self) -> bool {
        self.causes.len() >= MAX_CAUSES
    }

    pub(in crate::kinds) fn required(&mut self, path: &Path<'_>, detail: &str) {
        if !self.is_full() {
            self.push(Cause::required(path.to_string(), detail));
        }
    }

    pub(in crate::kinds) fn invalid(&mut self, path: &Path<'_>, value: &Value, detail: &str) {
        if !self.is_full() {
            self.push(Cause::invalid(path.to_string(), value, detail));
        }
    }

    /// Of what is not shown.
    pub(in crate::kinds) fn invalid_unshown(&mut self, path: &Path<'_>, detail: &str) {
        if !self.is_full() {
            self.push(Cause::invalid_together(path.to_string(), detail));
        }
    }

    pub(in crate::kinds) fn forbidden(&mut self, path: &Path<'_>, detail: &str) {
        if !self.is_full() {
            self.push(Cause::forbidden(path.to_string(), detail));
        }
    }

    pub(in crate::kinds) fn duplicate(&mut self, path: &Path<'_>, value: &Value) {
        if !self.is_full() {
            self.push(Cause::duplicate(path.to_string(), value));
        }
    }

    pub(in crate::kinds) fn not_found(&mut self, path: &Path<'_>, value: &Value) {
        if !self.is_full() {
            self.push(Cause::not_found(path.to_string(), value));
        }
    }

    pub(in crate::kinds) fn not_supported(&mut self, path: &Path<'_>, value: &Value, supported: &[&str]) {
        if !self.is_full() {
            let value = if value.is_null() { json!("") } else { value.clone() };
            self.push(Cause::not_supported(path.to_string(), &value, supported));
        }
    }

    pub(in crate::kinds) fn too_long(&mut self, path: &Path<'_>, max_bytes: usize) {
        if !self.is_full() {
            self.push(Cause::too_long(path.to_string(), max_bytes));
        }
    }

    pub(in crate::kinds) fn too_many(&mut self, path: &Path<'_>, n: usize, most: usize) {
        if !self.is_full() {
            self.push(Cause::too_many(path.to_string(), n, most));
        }
    }

    pub(in crate::kinds) fn not_negative(&mut self, path: &Path<'_>, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.invalid(path, value, NOT_NEGATIVE);
        }
    }
}

/// A field's text; `""` where there is none.
pub(in crate::kinds) fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(in crate::kinds) fn number(object: &Value, field: &str) -> i64 {
    object.get(field).and_then(Value::as_i64).unwrap_or_default()
}

pub(in crate::kinds) fn list<'v>(object: &'v Value, field: &str) -> &'v [Value] {
    object.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The entries of a map.
pub(in crate::kinds) fn entries<'v>(
    object: &'v Value,
    field: &str,
) -> impl Iterator<Item = (&'v String, &'v Value)> {
    object.get(field).and_then(Value::as_object).into_iter().flatten()
}

/// Whether a field is there: not absent, not `null`.
pub(in crate::kinds) fn has(object: &Value, field: &str) -> bool {
    object.get(field).is_some_and(|value| !value.is_null())
}

pub(in crate::kinds) fn is_true(object: &Value, field: &str) -> bool {
    object.get(field) == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_upstream_writes_it() {
        let spec = Path::ROOT.child("spec");
        let (list, map) = (spec.child("a"), spec.child("limits"));
        assert_eq!(list.index(2).child("b").to_string(), "spec.a[2].b");
        assert_eq!(map.key("cpu").to_string(), "spec.limits[cpu]");
    }

    #[test]
    fn many_faults_make_no_endless_answer() {
        let mut faults = Faults::default();
        (0..5000).for_each(|n| faults.required(&Path::ROOT.index(n), ""));
        assert_eq!(faults.causes.len(), MAX_CAUSES);
    }
}
