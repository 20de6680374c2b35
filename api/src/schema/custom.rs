//! What the schema of a custom resource says of a value beyond its shape: the parts of an OpenAPI schema that a Go type has in
//! its code, or nowhere.
//!
//! Source: `Structural` of apiextensions-apiserver's `pkg/apiserver/schema`.

use serde_json::Value;

/// Of one value, where it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Custom {
    pub nullable: bool,
    /// `x-kubernetes-preserve-unknown-fields`: fields without a schema stay, here and below, as far as no schema names fields.
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`: an object with `apiVersion`, `kind` and `metadata` of its own.
    pub embedded: bool,
    /// Every resource has the field, although its schema says nothing of it: `apiVersion`, `kind`, `metadata`.
    pub implied: bool,
    /// The `type` that the schema says; none for what may be anything, and mostly for `x-kubernetes-int-or-string`.
    pub type_: Option<Box<str>>,
    pub checks: Checks,
    /// `x-kubernetes-validations`.
    pub rules: Box<[Rule]>,
}

/// What a value must be like. Nothing of it says what shape the value has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checks {
    pub format: Option<Box<str>>,
    pub maximum: Option<Bound>,
    pub minimum: Option<Bound>,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Box<str>>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    /// Empty where the schema says none.
    pub one_of_values: Box<[Value]>,
    pub required: Box<[Box<str>]>,
    pub all_of: Box<[Nested]>,
    pub any_of: Box<[Nested]>,
    pub one_of: Box<[Nested]>,
    pub not: Option<Box<Nested>>,
}

/// A largest or smallest number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    pub value: f64,
    pub is_exclusive: bool,
}

/// A schema below `allOf`, `anyOf`, `oneOf` or `not`, which says nothing of shapes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nested {
    pub checks: Checks,
    pub rules: Box<[Rule]>,
    /// Only in the two patterns that `x-kubernetes-int-or-string` allows.
    pub type_: Option<Box<str>>,
    /// Ordered by name.
    pub fields: Box<[(Box<str>, Nested)]>,
    pub items: Option<Box<Nested>>,
    /// `additionalProperties`.
    pub values: Option<Box<Nested>>,
}

/// One of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub rule: Box<str>,
    pub message: Box<str>,
    pub message_expression: Box<str>,
    pub reason: Option<Box<str>>,
    pub field_path: Box<str>,
    pub optional_old_self: Option<bool>,
}
