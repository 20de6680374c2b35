//! One walk over an object beside its schema: at each value the rules of its type's fields, then what depends on several.

use serde_json::Value;

use super::path::{Faults, Path};
use super::pod::Pod;
use super::{hooks, table};
use crate::schema::{Schema, Shape, TypeId};

/// Deeper than any built-in type that has rules; decoding bounds the rest.
const MAX_DEPTH: usize = 40;

/// What a function of a type says about the walk below.
pub(super) enum Below {
    All,
    /// All fields but these.
    But(Vec<&'static str>),
    Nothing,
}

/// The walk as it stands.
pub(super) struct Walk<'v> {
    schema: &'static Schema,
    pub(super) faults: Faults,
    /// The pod spec around the present value.
    pub(super) pod: Option<Pod<'v>>,
    /// The whole object, and what it was before an update.
    pub(super) root: &'v Value,
    pub(super) old: Option<&'v Value>,
    pub(super) is_pod: bool,
}

impl<'v> Walk<'v> {
    pub(super) fn new(root: &'v Value, old: Option<&'v Value>, is_pod: bool) -> Walk<'v> {
        Walk { schema: Schema::builtin(), faults: Faults::default(), pod: None, root, old, is_pod }
    }

    /// Checks the root, whose `metadata` and `status` are not for these rules.
    pub(super) fn root(&mut self, id: TypeId) {
        let skip = vec!["metadata", "status"];
        self.fields(id, self.root, &Path::ROOT, 0, skip);
    }

    /// Checks a value of a named type that lies somewhere.
    pub(super) fn value(&mut self, type_: &str, value: &'v Value, path: &Path<'_>) {
        if let Some(id) = self.schema.find(&format!("io.k8s.api.{type_}")) {
            self.fields(id, value, path, 0, Vec::new());
        }
    }

    fn fields(
        &mut self,
        id: TypeId,
        value: &'v Value,
        path: &Path<'_>,
        depth: usize,
        mut skip: Vec<&'static str>,
    ) {
        let schema = self.schema;
        let type_ = schema.get(id);
        let name = type_.name.strip_prefix("io.k8s.api.").unwrap_or(&type_.name);
        let is_spec = name == "core.v1.PodSpec";
        let outer = self.pod.take();
        self.pod = if is_spec { Some(Pod::of(value)) } else { outer.clone() };
        match hooks::run(name, self, value, path) {
            Below::All => {}
            Below::But(fields) => skip.extend(fields),
            Below::Nothing => {
                self.pod = outer;
                return;
            }
        }
        for (field, checks) in table::fields(id).into_iter().flatten() {
            if !skip.contains(field) {
                let value = value.get(*field).unwrap_or(&Value::Null);
                table::run(checks, value, &path.child(field), &mut self.faults);
            }
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            if let Some(field) = type_.field(key)
                && !skip.contains(&key.as_str())
            {
                self.shape(&field.node.shape, value, &path.child(&field.name), depth + 1);
            }
        }
        self.pod = outer;
    }

    fn shape(&mut self, shape: &Shape, value: &'v Value, path: &Path<'_>, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        match (shape, value) {
            (Shape::Object(id), Value::Object(_)) => self.fields(*id, value, path, depth, Vec::new()),
            (Shape::List(inner), Value::Array(items)) if is_deep(&inner.shape) => {
                for (at, item) in items.iter().enumerate() {
                    self.shape(&inner.shape, item, &path.index(at), depth + 1);
                }
            }
            (Shape::Map(inner), Value::Object(map)) if is_deep(&inner.shape) => {
                for (key, item) in map {
                    self.shape(&inner.shape, item, &path.key(key), depth + 1);
                }
            }
            _ => {}
        }
    }
}

/// Whether there is something to check below.
fn is_deep(shape: &Shape) -> bool {
    matches!(shape, Shape::Object(_) | Shape::List(_) | Shape::Map(_))
}
