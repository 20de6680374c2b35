//! What is wrong with a schema.
//!
//! Source: `validation.go` of apiextensions-apiserver's `pkg/apis/apiextensions/validation`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::faults::{invalid, invalid_shown, invalid_text, not_supported};
use super::fields::{Notation, resolve};
use super::options::Options;
use super::shown;
use super::structural::{self, has_fields};
use super::view::at;
use super::{defaults, lists};
use crate::Cause;
use crate::kinds::builtin::rules::path::{Faults, Path, entries, has, is_true, list, text};
use crate::schema::Schema;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Of what is said beside the schema's types, what remains where `status` is checked by itself.
const AT_ROOT_WITH_STATUS: [&str; 22] = [
    "Description",
    "Type",
    "Format",
    "Title",
    "Maximum",
    "ExclusiveMaximum",
    "Minimum",
    "ExclusiveMinimum",
    "MaxLength",
    "MinLength",
    "Pattern",
    "MaxItems",
    "MinItems",
    "UniqueItems",
    "MultipleOf",
    "Required",
    "Items",
    "Properties",
    "ExternalDocs",
    "Example",
    "XPreserveUnknownFields",
    "XValidations",
];

/// Checks the `schema` of a version, or what all versions have of it.
pub(super) fn check(
    faults: &mut Faults,
    validation: &Value,
    has_status: bool,
    options: &Options<'_>,
    path: &Path<'_>,
) {
    let schema = at(validation, "openAPIV3Schema");
    if schema.is_null() {
        return;
    }
    let path = path.child("openAPIV3Schema");
    let mut own = Faults::default();
    if has_status {
        root_with_status(&mut own, schema, &path);
    }
    if is_true(schema, "nullable") {
        own.forbidden(&path.child("nullable"), "nullable cannot be true at the root");
    }
    let mut is_sound = false;
    let mut unread = None;
    if options.structural {
        match structural::read(schema) {
            Err(why) => unread = Some(why),
            Ok(()) => {
                let mut causes = structural::check(schema, &path);
                if causes.is_empty() {
                    causes = defaults::check(schema, options, &path);
                }
                is_sound = causes.is_empty();
                causes.into_iter().for_each(|cause| own.push(cause));
            }
        }
    }
    let before = own.causes.len();
    walk(&mut own, schema, Place::of_root(options), options, &path);
    let mut of_rules = Vec::new();
    if is_sound {
        of_rules = rules(schema, &own.causes[before..], options, &path);
    }
    if let Some(why) = unread.filter(|_| own.is_empty()) {
        invalid_text(&mut own, &path, "", &why);
    }
    own.causes.into_iter().chain(of_rules).for_each(|cause| faults.push(cause));
}

/// What is wrong with expressions. Upstream looks at those of a part as soon as nothing else is wrong in it.
fn rules(schema: &Value, faults: &[Cause], options: &Options<'_>, path: &Path<'_>) -> Vec<Cause> {
    const DEAR: [&str; 2] = ["estimated rule cost exceeds", "estimated messageExpression cost exceeds"];
    // Whether a schema can be kept shows where the kind is made of it.
    let Ok(schema) = Schema::of_custom(schema) else { return Vec::new() };
    let wrong = Wrong::of(faults);
    let mut causes = crate::structural::check_rules(&schema, &path.to_string());
    causes.retain(|cause| {
        let part = cause.field.split(".x-kubernetes-validations").next().unwrap_or_default();
        let is_allowed = options.dear_rules && DEAR.iter().any(|dear| cause.message.contains(dear));
        !is_allowed && !wrong.is_within(part)
    });
    causes
}

/// The places of faults, in order.
struct Wrong<'c>(Vec<&'c str>);

impl<'c> Wrong<'c> {
    fn of(faults: &'c [Cause]) -> Wrong<'c> {
        let mut fields: Vec<&str> = faults.iter().map(|cause| &*cause.field).collect();
        fields.sort_unstable();
        Wrong(fields)
    }

    /// Whether there is a fault in a part.
    fn is_within(&self, part: &str) -> bool {
        let first = self.0.partition_point(|field| *field < part);
        // What only starts alike may come first, such as `items2` before `items.type`: each way to go on is looked for.
        let goes_on = |with: &str| {
            let start = format!("{part}{with}");
            let at = self.0.partition_point(|field| *field < &*start);
            self.0.get(at).is_some_and(|field| field.starts_with(&start))
        };
        self.0.get(first).is_some_and(|field| *field == part) || goes_on(".") || goes_on("[")
    }
}

fn root_with_status(faults: &mut Faults, schema: &Value, path: &Path<'_>) {
    for (go_name, name, go) in shown::fields() {
        if !shown::is_said(schema, name, go) {
            continue;
        }
        if go_name == "Type" {
            if text(schema, "type") == "object" {
                continue;
            }
            let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            return invalid_text(faults, &path.child("type"), text(schema, "type"), why);
        }
        if !AT_ROOT_WITH_STATUS.contains(&go_name) {
            let why = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                AT_ROOT_WITH_STATUS.join(" ")
            );
            return invalid_shown(faults, path, &shown::schema(schema), &why);
        }
    }
}

/// What is known of a schema by where it stands.
#[derive(Clone, Copy)]
struct Place<'p> {
    is_root: bool,
    types: bool,
    /// Why there may be no default; some of the reasons name a field.
    no_default: Option<(&'static str, &'p str)>,
    in_metadata: bool,
}

impl Place<'_> {
    fn of_root(options: &Options<'_>) -> Place<'static> {
        Place { is_root: true, types: options.types, no_default: None, in_metadata: false }
    }

    fn inner(self) -> Self {
        Place { is_root: false, ..self }
    }
}

fn walk(faults: &mut Faults, schema: &Value, place: Place<'_>, options: &Options<'_>, path: &Path<'_>) {
    if !schema.is_object() {
        return;
    }
    standards(faults, schema, place, path);
    if is_true(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        faults.forbidden(&path.child("uniqueItems"), why);
    }
    parts(faults, schema, place, options, path);
    if at(schema, "x-kubernetes-preserve-unknown-fields") == &Value::Bool(false) {
        let field = path.child("x-kubernetes-preserve-unknown-fields");
        invalid(faults, &field, &Value::Bool(false), "must be true or undefined");
    }
    lists::check(faults, schema, options, path);
    let field = path.child("x-kubernetes-validations");
    for (index, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        rule_words(faults, schema, rule, &field.index(index));
    }
}

fn parts(faults: &mut Faults, schema: &Value, place: Place<'_>, options: &Options<'_>, path: &Path<'_>) {
    let inner = place.inner();
    let values = at(schema, "additionalProperties");
    if !values.is_null() {
        let field = path.child("additionalProperties");
        if has_fields(schema) && values != &Value::Bool(true) {
            faults.forbidden(&field, "additionalProperties and properties are mutual exclusive");
        }
        let no_default = ("inside additionalProperties applying to object metadata", "");
        let of_values =
            if place.in_metadata { Place { no_default: Some(no_default), ..inner } } else { inner };
        walk(faults, values, of_values, options, &field);
    }
    let properties = path.child("properties");
    let is_resource = place.is_root || is_true(schema, "x-kubernetes-embedded-resource");
    for (name, field) in entries(schema, "properties") {
        let mut of_field = inner;
        if is_resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            of_field.in_metadata = true;
            if place.is_root {
                of_field.no_default = Some(("in top-level", name));
            }
        }
        walk(faults, field, of_field, options, &properties.key(name));
    }
    walk(faults, at(schema, "not"), inner, options, &path.child("not"));
    for name in ["allOf", "oneOf", "anyOf"] {
        let field = path.child(name);
        for (index, part) in list(schema, name).iter().enumerate() {
            walk(faults, part, inner, options, &field.index(index));
        }
    }
    named(faults, schema, "definitions", inner, options, path);
    let field = path.child("items");
    match at(schema, "items") {
        Value::Array(items) => {
            for (index, items) in items.iter().enumerate() {
                walk(faults, items, inner, options, &field.index(index));
            }
        }
        items => walk(faults, items, inner, options, &field),
    }
    named(faults, schema, "dependencies", inner, options, path);
}

fn named(
    faults: &mut Faults,
    schema: &Value,
    name: &str,
    place: Place<'_>,
    options: &Options<'_>,
    path: &Path<'_>,
) {
    let field = path.child(name);
    for (name, part) in entries(schema, name) {
        walk(faults, part, place, options, &field.key(name));
    }
}

/// What the schemas of definitions may not say, whatever else they say.
fn standards(faults: &mut Faults, schema: &Value, place: Place<'_>, path: &Path<'_>) {
    let type_ = text(schema, "type");
    if place.types && !type_.is_empty() && !TYPES.contains(&type_) {
        not_supported(faults, &path.child("type"), type_, &TYPES);
    }
    if let Some((reason, field)) = place.no_default.filter(|_| has(schema, "default")) {
        let space = if field.is_empty() { "" } else { " " };
        faults.forbidden(&path.child("default"), &format!("must not be set {reason}{space}{field}"));
    }
    let mut unsupported = |name: &str, is_said: bool| {
        if is_said {
            faults.forbidden(&path.child(name), &format!("{name} is not supported"));
        }
    };
    let is_named = |name: &str| at(schema, name).as_object().is_some_and(|map| !map.is_empty());
    unsupported("id", !text(schema, "id").is_empty());
    unsupported("additionalItems", has(schema, "additionalItems"));
    unsupported("patternProperties", is_named("patternProperties"));
    unsupported("definitions", is_named("definitions"));
    unsupported("dependencies", has(schema, "dependencies"));
    unsupported("$ref", has(schema, "$ref"));
    if type_ == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        faults.forbidden(&path.child("type"), why);
    }
    if !list(schema, "items").is_empty() {
        faults.forbidden(&path.child("items"), "items must be a schema object and not an array");
    }
    if place.in_metadata && is_true(schema, "x-kubernetes-embedded-resource") {
        faults.forbidden(
            &path.child("x-kubernetes-embedded-resource"),
            "must not be used inside of resource meta",
        );
    }
}

/// A rule, but for what its expressions say.
fn rule_words(faults: &mut Faults, schema: &Value, rule: &Value, path: &Path<'_>) {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let breaks = |text: &str| text.contains(['\n', '\r']);
    let expression = text(rule, "rule").trim();
    let (message, trimmed) = (text(rule, "message"), text(rule, "message").trim());
    let message_at = path.child("message");
    if expression.is_empty() {
        faults.required(&path.child("rule"), "rule is not specified");
    } else if !message.is_empty() && trimmed.is_empty() {
        invalid_text(faults, &message_at, message, "must be non-empty if specified");
    } else if breaks(trimmed) {
        invalid_text(faults, &message_at, message, "must not contain line breaks");
    } else if breaks(expression) && trimmed.is_empty() {
        faults.required(&message_at, "message must be specified if rule contains line breaks");
    }
    let told = text(rule, "messageExpression");
    if !told.is_empty() && told.trim().is_empty() {
        faults.required(&path.child("messageExpression"), "messageExpression must be non-empty if specified");
    }
    if let Some(reason) = at(rule, "reason").as_str().filter(|reason| !REASONS.contains(reason)) {
        not_supported(faults, &path.child("reason"), reason, &REASONS);
    }
    let (field_path, field) = (text(rule, "fieldPath"), path.child("fieldPath"));
    if field_path.is_empty() {
        return;
    }
    if field_path.trim().is_empty() {
        invalid_text(faults, &field, field_path, "must be non-empty if specified");
    }
    if breaks(field_path) {
        invalid_text(faults, &field, field_path, "must not contain line breaks");
    }
    if structural::read(schema).is_ok() && resolve(field_path, schema, Notation::Any).is_err() {
        invalid_text(faults, &field, field_path, "must be a valid path");
    }
}

/// Whether a stored schema has a type that OpenAPI does not know.
pub(super) fn has_odd_type(schema: &Value) -> bool {
    let type_ = text(schema, "type");
    !type_.is_empty() && !TYPES.contains(&type_)
}

/// Whether it is a set whose items have owners for their parts.
pub(super) fn is_set_of_parts(schema: &Value) -> bool {
    let items = at(schema, "items");
    text(schema, "x-kubernetes-list-type") == "set"
        && match text(items, "type") {
            "array" => {
                has(items, "x-kubernetes-list-type") && text(items, "x-kubernetes-list-type") != "atomic"
            }
            "object" => text(items, "x-kubernetes-map-type") != "atomic",
            _ => false,
        }
}

/// Whether the keys of a list may be missing or null.
pub(super) fn has_odd_keys(schema: &Value) -> bool {
    let mut faults = Faults::default();
    lists::keys(&mut faults, schema, &Path::ROOT);
    !faults.is_empty()
}

/// What schemas say that has no effect.
#[derive(Default)]
pub(super) struct Unheeded {
    /// Formats of which upstream does not know what they are, in order.
    pub(super) formats: Vec<String>,
    /// Types of items, `array` or `object`, of which there is a set.
    pub(super) sets_of: BTreeSet<&'static str>,
}

impl Unheeded {
    pub(super) fn look_at(&mut self, schema: &Value) {
        super::view::any_schema(schema, &mut |schema| {
            let format = text(schema, "format");
            if !format.is_empty() && !is_known_format(text(schema, "type"), format) {
                self.formats.push(format.to_owned());
            }
            if text(schema, "x-kubernetes-list-type") == "set" {
                let of = text(&schema["items"], "type");
                self.sets_of.extend(["array", "object"].into_iter().find(|type_| *type_ == of));
            }
            false
        });
    }
}

fn is_known_format(type_: &str, format: &str) -> bool {
    const OF_STRINGS: [&str; 27] = [
        "bsonobjectid",
        "byte",
        "cidr",
        "creditcard",
        "date",
        "datetime",
        "duration",
        "email",
        "hexcolor",
        "hostname",
        "ipv4",
        "ipv6",
        "isbn",
        "isbn10",
        "isbn13",
        "k8slongname",
        "k8sshortname",
        "mac",
        "password",
        "rgbcolor",
        "ssn",
        "uri",
        "uuid",
        "uuid3",
        "uuid4",
        "uuid5",
        "",
    ];
    match type_ {
        "" | "string" => OF_STRINGS.contains(&&*format.replace('-', "")),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// The value that upstream shows of a field that is a pointer to a text.
pub(super) fn pointer(schema: &Value, name: &str) -> String {
    shown::json(&at(schema, name).as_str().map_or(Value::Null, |text| json!(text)))
}
