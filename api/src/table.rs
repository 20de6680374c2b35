//! Tables, as `kubectl get` asks for them.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::{Kind, Object};

pub(crate) mod cell;
mod described;
mod json_path;

pub use json_path::{JsonPath, PathError};

/// One printer column.
#[derive(Clone)]
pub struct Column {
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `date`, …
    pub kind: Cow<'static, str>,
    pub format: Cow<'static, str>,
    /// `None`: what the name says wherever it occurs.
    pub description: Option<Box<str>>,
    /// 0 is always shown, others with `-o wide`.
    pub priority: i64,
    pub cell: Cell,
}

/// How a column's cell is read from an object. The second argument is seconds since the epoch, for ages.
#[derive(Clone)]
pub enum Cell {
    Of(fn(&Object, i64) -> Value),
    /// Of a column that is declared while the server runs.
    Read(Arc<Read>),
}

type Read = dyn Fn(&Object, i64) -> Value + Send + Sync;

impl Column {
    pub(crate) fn new(name: &'static str, kind: &'static str, cell: fn(&Object, i64) -> Value) -> Self {
        let (name, kind, format) = (name.into(), kind.into(), "".into());
        Column { name, kind, format, description: None, priority: 0, cell: Cell::Of(cell) }
    }

    /// A column of `-o wide` only.
    pub(crate) fn wide(self) -> Self {
        Column { priority: 1, ..self }
    }

    pub(crate) fn name() -> Self {
        let column = Column::new("Name", "string", |o, _| cell::text(o, "/metadata/name"));
        Column { format: "name".into(), ..column }
    }

    pub(crate) fn age() -> Self {
        Column::new("Age", "string", |o, now| cell::since(o, "/metadata/creationTimestamp", now))
    }

    /// The moment of creation itself, which some kinds show instead of an age.
    pub(crate) fn created_at() -> Self {
        Column::new("Created At", "date", |o, _| cell::text(o, "/metadata/creationTimestamp"))
    }
}

/// What goes into each row's `object`: the `includeObject` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

/// The `columnDefinitions` of a kind's table.
pub fn column_definitions(kind: &Kind) -> Value {
    kind.columns
        .iter()
        .map(|c| {
            let description = c.description.as_deref().unwrap_or_else(|| described::description(&c.name));
            json!({
                "name": c.name, "type": c.kind, "format": c.format,
                "description": description, "priority": c.priority,
            })
        })
        .collect()
}

/// One row. The caller assembles `{kind: Table, apiVersion: meta.k8s.io/v1, metadata, columnDefinitions, rows}`.
///
/// The cells are of `printed`, an object of `kind`; the row carries `sent`, the same in the version of the request.
pub fn row(kind: &Kind, printed: &Object, sent: &Object, include: IncludeObject, now_s: i64) -> Value {
    let cells: Vec<Value> = kind
        .columns
        .iter()
        .map(|column| match &column.cell {
            Cell::Of(cell) => cell(printed, now_s),
            Cell::Read(cell) => cell(printed, now_s),
        })
        .collect();
    let mut row = json!({"cells": cells});
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            row["object"] = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": sent["metadata"],
            });
        }
        IncludeObject::Object => row["object"] = sent.clone(),
    }
    row
}

/// The name of the one of a list's objects that counts as the default of its kind, where there is such: the newest of those that are
/// marked, and of several the first by name.
pub fn default_of(kind: &Kind, objects: impl Iterator<Item = Object>) -> Option<String> {
    let marks = kind.traits.default_marks;
    if marks.is_empty() {
        return None;
    }
    let is_marked =
        |object: &Object| marks.iter().any(|mark| object["metadata"]["annotations"][*mark] == "true");
    let text = |object: &Object, field: &str| cell::str_at(object, field).to_owned();
    let marked = objects.filter(is_marked);
    let named =
        marked.map(|o| (Reverse(text(&o, "/metadata/creationTimestamp")), text(&o, "/metadata/name")));
    named.min().map(|(_, name)| name)
}

/// Says of a row that its object is the one.
pub fn mark_default(row: &mut Value) {
    if let Some(name) = row.pointer_mut("/cells/0")
        && let Some(text) = name.as_str()
    {
        *name = format!("{text} (default)").into();
    }
}

#[cfg(test)]
mod tests;
