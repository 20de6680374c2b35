//! Tables, as `kubectl get` asks for them.

use serde_json::{Value, json};

use crate::{Kind, Object};

pub(crate) mod cell;
mod described;

/// One printer column.
#[derive(Clone)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub kind: &'static str,
    pub format: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: u8,
    /// The cell of an object. `now_s` is seconds since the epoch, for ages.
    pub cell: fn(&Object, i64) -> Value,
}

impl Column {
    pub(crate) const fn new(name: &'static str, kind: &'static str, cell: fn(&Object, i64) -> Value) -> Self {
        Column { name, kind, format: "", priority: 0, cell }
    }

    /// A column of `-o wide` only.
    pub(crate) const fn wide(self) -> Self {
        Column { priority: 1, ..self }
    }

    pub(crate) const fn name() -> Self {
        let column = Column::new("Name", "string", |o, _| cell::text(o, "/metadata/name"));
        Column { format: "name", ..column }
    }

    pub(crate) const fn age() -> Self {
        Column::new("Age", "string", |o, now| cell::since(o, "/metadata/creationTimestamp", now))
    }

    /// The moment of creation itself, which some kinds show instead of an age.
    pub(crate) const fn created_at() -> Self {
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
            json!({
                "name": c.name, "type": c.kind, "format": c.format,
                "description": described::description(c.name), "priority": c.priority,
            })
        })
        .collect()
}

/// One row. The caller assembles `{kind: Table, apiVersion: meta.k8s.io/v1, metadata, columnDefinitions, rows}`.
///
/// The cells are of `printed`, an object of `kind`; the row carries `sent`, the same in the version of the request.
pub fn row(kind: &Kind, printed: &Object, sent: &Object, include: IncludeObject, now_s: i64) -> Value {
    let cells: Vec<Value> = kind.columns.iter().map(|c| (c.cell)(printed, now_s)).collect();
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

#[cfg(test)]
mod tests;
