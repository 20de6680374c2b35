//! Whether values are as their schema says.
//!
//! ```text
//! part, value ─ type · allOf, anyOf, oneOf, not · text · format · number · items · enum · fields ─▶ Found
//! ```
//!
//! Source: `SchemaValidator` of kube-openapi's `pkg/validation/validate`, and apiextensions-apiserver's
//! `pkg/apiserver/validation/ratcheting.go`. Of fields upstream goes through them in any order; here it is that of their names.

use serde_json::{Map, Value};

use super::fault::{Fault, Found};
use super::format;
use super::number;
use super::old::{self, Old};
use super::part::Part;
use super::place::Place;
use super::words;
use crate::schema::{Nested, Schema};

pub(super) struct Checker<'s> {
    pub(super) schema: &'s Schema,
}

impl<'s> Checker<'s> {
    /// What is wrong with the value. Whatever is as it was in `old` is not wrong.
    pub(super) fn value(
        &self,
        part: Part<'s>,
        value: &Value,
        old: Option<&Old<'_>>,
        place: &Place<'_>,
    ) -> Found {
        let mut found = self.whole(part, value, old, place);
        let Some(old) = old else {
            // Whether it differs from anything nobody knows.
            found.differs = true;
            return found;
        };
        if found.is_valid() {
            return found;
        }
        if !found.differs && old::is_same(value, old) {
            return Found { n_matches: found.n_matches, ..Found::default() };
        }
        found.differs = true;
        found
    }

    fn whole(&self, part: Part<'s>, value: &Value, old: Option<&Old<'_>>, place: &Place<'_>) -> Found {
        let format = format::supported(part);
        let mut found = Found::default();
        if value.is_null() {
            found.merge(type_of(part, value, format, place));
            if let Some(fault) = not_one_of(part, value, place) {
                found.add(fault);
            }
            return found;
        }
        if !part.types().is_empty() || format.is_some() {
            found.merge(type_of(part, value, format, place));
            found.n_matches += 1;
        }
        found.merge(self.logic(part, value, place));
        found.n_matches += 1;
        match value {
            Value::String(text) => {
                if let Some(fault) = self.text(part, text, place) {
                    found.add(fault);
                }
                found.n_matches += 1;
                if let Some(format) = format.filter(|name| format::is_known(name)) {
                    if !format::matches(format, text) {
                        found.add(Fault::wrong_type(place, format, text));
                    }
                    found.n_matches += 1;
                }
            }
            Value::Number(number) => {
                found.merge(number::check(part, number, place, format));
                found.n_matches += 1;
            }
            Value::Array(items) => {
                let inner = self.items(part, items, old, place);
                found.differs |= inner.differs;
                found.merge(inner);
                found.n_matches += 1;
            }
            _ => {}
        }
        if let Some(fault) = not_one_of(part, value, place) {
            found.add(fault);
        }
        found.n_matches += 1;
        if let Value::Object(map) = value {
            let inner = self.fields(part, map, old, place);
            found.differs |= inner.differs;
            found.merge(inner);
            found.n_matches += 1;
        }
        found.n_matches += 1;
        found
    }

    fn text(&self, part: Part<'s>, text: &str, place: &Place<'_>) -> Option<Fault> {
        let checks = part.checks();
        let n_chars = text.chars().count() as i64;
        if let Some(most) = checks.max_length.filter(|most| n_chars > *most) {
            return Some(Fault::too_long(place, most));
        }
        if let Some(least) = checks.min_length.filter(|least| n_chars < *least) {
            let why = format!("should be at least {least} chars long");
            return Some(Fault::invalid(place, words::quoted(text), &why));
        }
        let pattern = checks.pattern.as_deref()?;
        let why = match self.schema.compiled().pattern(pattern) {
            Ok(regex) if regex.is_match(text) => return None,
            Ok(_) => format!("should match '{pattern}'"),
            Err(error) => format!("should match '{pattern}, but pattern is invalid: {error}'"),
        };
        Some(Fault::invalid(place, words::quoted(text), &why))
    }

    fn items(&self, part: Part<'s>, items: &[Value], old: Option<&Old<'_>>, place: &Place<'_>) -> Found {
        let mut found = Found::default();
        let n_items = items.len() as i64;
        if let Some(of_item) = part.items() {
            for (at, item) in items.iter().enumerate() {
                let old = old.and_then(|old| old.item(item));
                let inner = self.value(of_item, item, old.as_ref(), &Place::Item(place, at));
                // Of an element that has no old one only the whole list can tell.
                found.differs |= old.is_some() && inner.differs;
                found.merge(inner);
            }
        }
        let checks = part.checks();
        if let Some(least) = checks.min_items.filter(|least| n_items < *least) {
            let why = format!("should have at least {least} items");
            found.add(Fault::invalid(place, n_items.to_string(), &why));
        }
        if let Some(most) = checks.max_items.filter(|most| n_items > *most) {
            found.add(Fault::too_many(place, n_items, most, "items"));
        }
        if checks.unique_items && super::lists::has_twice(items) {
            found.add(Fault::invalid(place, "\"\"".into(), "shouldn't contain duplicates"));
        }
        found.n_matches += 1;
        found
    }

    fn fields(
        &self,
        part: Part<'s>,
        map: &Map<String, Value>,
        old: Option<&Old<'_>>,
        place: &Place<'_>,
    ) -> Found {
        let mut found = Found::default();
        let checks = part.checks();
        let n_fields = map.len() as i64;
        if let Some(least) = checks.min_properties.filter(|least| n_fields < *least) {
            let why = format!("should have at least {least} properties");
            found.add(Fault::invalid(place, n_fields.to_string(), &why));
        }
        if let Some(most) = checks.max_properties.filter(|most| n_fields > *most) {
            found.add(Fault::too_many(place, n_fields, most, "properties"));
        }
        let values = part.values();
        for (name, value) in map {
            let (of_field, inside) = match (part.field(name), values) {
                (Some(field), _) => (field, Place::Field(place, name)),
                (None, Some(values)) => (values, Place::Key(place, name)),
                (None, None) => continue,
            };
            // What every object is of is not seen as its author wrote it.
            let is_type = matches!(place, Place::Root) && matches!(name.as_str(), "apiVersion" | "kind");
            let old = if is_type { None } else { old.and_then(|old| old.field(name)) };
            let inner = self.value(of_field, value, old.as_ref(), &inside);
            found.differs |= old.is_some() && inner.differs;
            found.merge(inner);
        }
        for name in checks.required.iter().filter(|name| !map.contains_key(&***name)) {
            found.add(Fault::required(place, name));
        }
        found
    }

    fn nested(&self, nested: &'s Nested, value: &Value, place: &Place<'_>) -> Found {
        self.value(Part::Nested(nested), value, None, place)
    }

    fn logic(&self, part: Part<'s>, value: &Value, place: &Place<'_>) -> Found {
        let mut found = Found::default();
        let checks = part.checks();
        let at = || words::quoted(&place.checked());
        if !checks.any_of.is_empty() {
            let (mut nearest, mut first): (Option<Found>, Option<Found>) = (None, None);
            for nested in &checks.any_of {
                let result = self.nested(nested, value, place);
                if result.is_valid() {
                    first = Some(result);
                    break;
                }
                if nearest.as_ref().is_none_or(|nearest| result.n_matches > nearest.n_matches) {
                    nearest = Some(result);
                }
            }
            if first.is_none() {
                found.add(Fault::misplaced(format!("{} must validate at least one schema (anyOf)", at())));
            }
            found.merge(first.or(nearest).unwrap_or_default());
        }
        if !checks.one_of.is_empty() {
            let (mut nearest, mut first, mut n_valid): (Option<Found>, Option<Found>, usize) =
                (None, None, 0);
            for nested in &checks.one_of {
                let result = self.nested(nested, value, place);
                if result.is_valid() {
                    n_valid += 1;
                    nearest = None;
                    first.get_or_insert(result);
                } else if n_valid == 0
                    && nearest.as_ref().is_none_or(|nearest| result.n_matches > nearest.n_matches)
                {
                    nearest = Some(result);
                }
            }
            if n_valid == 1 {
                found.merge(first.unwrap_or_default());
            } else {
                let how_many = match n_valid {
                    0 => "Found none valid".to_owned(),
                    n => format!("Found {n} valid alternatives"),
                };
                let why = format!("{} must validate one and only one schema (oneOf). {how_many}", at());
                found.add(Fault::misplaced(why));
                found.merge(nearest.unwrap_or_default());
            }
        }
        let all_of = part.all_of();
        if !all_of.is_empty() {
            let mut n_valid = 0;
            for nested in all_of {
                let result = self.nested(nested, value, place);
                n_valid += usize::from(result.is_valid());
                found.merge(result);
            }
            if n_valid != all_of.len() {
                let none = if n_valid == 0 { ". None validated" } else { "" };
                found.add(Fault::misplaced(format!("{} must validate all the schemas (allOf){none}", at())));
            }
        }
        if let Some(not) = &checks.not
            && self.nested(not, value, place).is_valid()
        {
            found.add(Fault::misplaced(format!("{} must not validate the schema (not)", at())));
        }
        found.n_matches += 1;
        found
    }
}

fn not_one_of(part: Part<'_>, value: &Value, place: &Place<'_>) -> Option<Fault> {
    let values = &part.checks().one_of_values;
    let is_one =
        values.is_empty() || values.iter().any(|wanted| !wanted.is_null() && number::is_same(value, wanted));
    (!is_one).then(|| Fault::not_one_of(place, value, values))
}

fn type_of(part: Part<'_>, value: &Value, format: Option<&str>, place: &Place<'_>) -> Found {
    let types = part.types();
    let wanted = || types.join(",");
    let ok = Found { n_matches: 1, ..Found::default() };
    let has = |type_: &str| types.iter().any(|t| &**t == type_);
    let (found, found_format) = match value {
        Value::Null if !types.is_empty() && !part.is_nullable() => {
            return Found::one(Fault::wrong_type(place, &wanted(), "null"));
        }
        Value::Null => return ok,
        Value::Bool(_) => ("boolean", ""),
        Value::String(_) => ("string", ""),
        Value::Number(number) if number.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    };
    let is_text_or_list = matches!(value, Value::String(_) | Value::Array(_));
    let is_number = has(found)
        || match (value.as_f64(), found) {
            (Some(number), "number") => has("integer") && number::is_whole(number),
            (Some(_), "integer") => has("number"),
            _ => false,
        };
    match format {
        Some(format) if !is_text_or_list && !is_number && format != found_format => {
            Found::one(Fault::wrong_type(place, format, found_format))
        }
        // Texts and lists with a format are left to the check of that.
        Some(_) if is_text_or_list && !has("number") && !has("integer") => ok,
        _ if is_number => ok,
        _ => Found::one(Fault::wrong_type(place, &wanted(), found)),
    }
}
