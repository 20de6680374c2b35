//! The rules of an object, run.

use std::cell::OnceCell;

use serde_json::{Map, Value};
use skiff_cel::{Fault, Run, Value as Seen};

use super::super::fault::MAX_FAULTS;
use super::super::old::{self, Elements, Old};
use super::super::place::Place;
use super::super::words;
use super::message::{self, Told};
use super::{BUDGET, Compiled, OLD_SELF, Rules, SELF};
use crate::schema::Rule;
use crate::{Cause, Object};

/// What rules have said of an object.
#[derive(Debug, Default)]
pub(in crate::structural) struct Said {
    pub(in crate::structural) causes: Vec<Cause>,
    /// Of what is wrong, but was so before.
    pub(in crate::structural) warnings: Vec<String>,
}

/// `old` is what the object replaces.
pub(in crate::structural) fn run<'o>(
    rules: &Rules,
    object: &'o Object,
    old: Option<(&'o Object, Old<'o>)>,
) -> Said {
    let mut runner = Runner { said: Said::default(), budget: BUDGET };
    let known = old.map(|(value, old)| (value, Known { new: object, old, is_same: OnceCell::new() }));
    let since = Since { current: known.as_ref().map(|(_, known)| known), nearest: None };
    let old = known.as_ref().map(|(value, _)| *value);
    // What ends the run early has been told.
    _ = runner.value(rules, object, old, since, &Place::Root);
    runner.said
}

/// A value, and the old one that it is known to have come from.
struct Known<'o> {
    new: &'o Value,
    old: Old<'o>,
    is_same: OnceCell<bool>,
}

impl Known<'_> {
    fn is_same(&self) -> bool {
        *self.is_same.get_or_init(|| old::is_same(self.new, &self.old))
    }
}

/// What is known of what was before.
#[derive(Clone, Copy)]
struct Since<'k, 'o> {
    current: Option<&'k Known<'o>>,
    /// If nothing is known of the value itself: of the nearest around it.
    nearest: Option<&'k Known<'o>>,
}

impl Since<'_, '_> {
    fn is_same(self) -> bool {
        self.current.or(self.nearest).is_some_and(Known::is_same)
    }
}

/// No rule is run any more.
struct Over;

struct Runner {
    said: Said,
    budget: i64,
}

impl Runner {
    fn value<'o>(
        &mut self,
        rules: &Rules,
        value: &'o Value,
        old: Option<&'o Value>,
        since: Since<'_, 'o>,
        place: &Place<'_>,
    ) -> Result<(), Over> {
        if value.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        self.own(rules, value, old, since, place)?;
        for all_of in &rules.all_of {
            // As upstream, which does not know of parts of them what they were.
            let since = Since { current: None, nearest: since.nearest };
            self.value(all_of, value, old, since, place)?;
        }
        match value {
            Value::Array(items) => {
                let Some(of_item) = &rules.items else { return Ok(()) };
                let before = old.and_then(Value::as_array).map(Vec::as_slice);
                let elements =
                    rules.keys.as_deref().zip(before).map(|(keys, items)| Elements::new(keys, items));
                for (at, item) in items.iter().enumerate() {
                    let old = elements.as_ref().and_then(|elements| elements.get(item));
                    let inner = since.current.and_then(|known| known.old.item(item));
                    self.part(of_item, item, old, since, inner, &Place::Item(place, at))?;
                }
                Ok(())
            }
            Value::Object(map) => {
                let old = old.and_then(Value::as_object);
                self.fields(rules, map, old, since, place)
            }
            _ => Ok(()),
        }
    }

    fn fields<'o>(
        &mut self,
        rules: &Rules,
        map: &'o Map<String, Value>,
        old: Option<&'o Map<String, Value>>,
        since: Since<'_, 'o>,
        place: &Place<'_>,
    ) -> Result<(), Over> {
        for (name, value) in map {
            let (of_field, inside) = match (rules.fields.get(name.as_str()), &rules.values) {
                (Some(field), _) => (field, Place::Field(place, name)),
                (None, Some(values)) => (&**values, Place::Key(place, name)),
                (None, None) => continue,
            };
            let old = old.and_then(|old| old.get(name));
            // What every object is of is not seen as its author wrote it.
            if since.nearest.is_none() && matches!(name.as_str(), "apiVersion" | "kind") {
                self.value(of_field, value, old, Since { current: None, nearest: None }, &inside)?;
                continue;
            }
            let inner = since.current.and_then(|known| known.old.field(name));
            self.part(of_field, value, old, since, inner, &inside)?;
        }
        Ok(())
    }

    /// `inner` is what is known of the old one of this part.
    fn part<'o>(
        &mut self,
        rules: &Rules,
        value: &'o Value,
        old: Option<&'o Value>,
        since: Since<'_, 'o>,
        inner: Option<Old<'o>>,
        place: &Place<'_>,
    ) -> Result<(), Over> {
        let Some(known) = since.current else { return self.value(rules, value, old, since, place) };
        let inner = inner.map(|old| Known { new: value, old, is_same: OnceCell::new() });
        self.value(rules, value, old, Since { current: inner.as_ref(), nearest: Some(known) }, place)
    }

    fn own(
        &mut self,
        rules: &Rules,
        value: &Value,
        old: Option<&Value>,
        since: Since<'_, '_>,
        place: &Place<'_>,
    ) -> Result<(), Over> {
        let type_ = words::quoted(&rules.type_);
        if let Some(failed) = rules.failed {
            self.fault(place, &type_, &format!("rule compiler initialization error: {failed}"));
            return Ok(());
        }
        if rules.own.is_empty() {
            return Ok(());
        }
        if self.said.causes.len() + self.said.warnings.len() >= MAX_FAULTS {
            return Err(Over);
        }
        if self.budget <= 0 {
            self.fault(place, &type_, OUT_OF_BUDGET);
            return Err(Over);
        }
        let Some(shape) = &rules.shape else { return Ok(()) };
        let seen = Seen::of(value, shape);
        let seen_old = old.map(|old| Seen::of(old, shape));
        for compiled in &rules.own {
            let program = match &compiled.program {
                None => continue,
                Some(Err(error)) => {
                    self.fault(place, &type_, &format!("rule compile error: {error}"));
                    continue;
                }
                Some(Ok(program)) => program,
            };
            let is_optional = compiled.rule.optional_old_self == Some(true);
            if compiled.speaks_of_old && old.is_none() && !is_optional {
                continue;
            }
            let variables = || {
                let run = Run::default().variable(SELF, seen.clone());
                match (is_optional, &seen_old) {
                    (true, seen_old) => run.variable(OLD_SELF, optional(seen_old.clone())),
                    (false, Some(seen_old)) => run.variable(OLD_SELF, seen_old.clone()),
                    (false, None) => run,
                }
            };
            let outcome = program.run(variables());
            if i64::try_from(outcome.cost).map_or(true, |cost| cost > self.budget) {
                self.fault(place, &type_, OUT_OF_BUDGET);
                return Err(Over);
            }
            self.budget -= i64::try_from(outcome.cost).unwrap_or(i64::MAX);
            match outcome.result {
                Ok(Seen::Bool(true)) => {}
                Ok(_) => self.refused(compiled, value, &type_, since, place, variables())?,
                Err(fault) => self.faulted(&compiled.rule, &fault, &type_, place)?,
            }
        }
        Ok(())
    }

    fn fault(&mut self, place: &Place<'_>, type_: &str, detail: &str) {
        let message = format!("Invalid value: {type_}: {detail}");
        self.said.causes.push(Cause::new("FieldValueInvalid", place.field(), message));
    }

    /// A rule that could not be run to its end.
    fn faulted(&mut self, rule: &Rule, fault: &Fault, type_: &str, place: &Place<'_>) -> Result<(), Over> {
        let (fault, rule) = (fault.to_string(), message::name_of(rule));
        if fault.starts_with("no such overload") {
            let why = format!(
                "'{fault}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
            );
            self.fault(place, type_, &why);
        } else if fault.starts_with("operation cancelled: actual cost limit exceeded") {
            let why = format!(
                "'{fault}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"
            );
            self.fault(place, type_, &why);
            return Err(Over);
        } else {
            self.fault(place, type_, &format!("{fault} evaluating rule: {rule}"));
        }
        Ok(())
    }

    /// A rule that does not hold.
    fn refused(
        &mut self,
        compiled: &Compiled,
        value: &Value,
        type_: &str,
        since: Since<'_, '_>,
        place: &Place<'_>,
        variables: Run<'_, '_>,
    ) -> Result<(), Over> {
        let field = match (&compiled.field, place) {
            (None, place) => place.field(),
            (Some(field), Place::Root) => field.clone(),
            (Some(field), place) => format!("{}.{field}", place.field()),
        };
        let is_told = compiled.speaks_of_old || !since.is_same();
        let told = message::of(compiled, variables, &mut self.budget);
        let (detail, end) = match told {
            Told::Message(detail) => (detail, Ok(())),
            Told::Over(why) => {
                let message = format!("Invalid value: {type_}: {why}");
                self.tell(Cause::new("FieldValueInvalid", field, message), is_told);
                return Err(Over);
            }
        };
        // Of objects and lists upstream shows nothing.
        let shown = match type_ {
            "\"object\"" | "\"array\"" => String::new(),
            _ => format!(": {}", words::shown(value)),
        };
        let invalid =
            || Cause::new("FieldValueInvalid", field.clone(), format!("Invalid value{shown}: {detail}"));
        let cause = match compiled.rule.reason.as_deref() {
            Some("FieldValueForbidden") => Cause::forbidden(field, &detail),
            Some("FieldValueRequired") => Cause::required(field, &detail),
            Some("FieldValueDuplicate") => {
                Cause::new("FieldValueDuplicate", field, format!("Duplicate value{shown}"))
            }
            _ => invalid(),
        };
        self.tell(cause, is_told);
        end
    }

    fn tell(&mut self, cause: Cause, is_told: bool) {
        if is_told {
            self.said.causes.push(cause);
        } else {
            self.said.warnings.push(format!("{}: {}", cause.field, cause.message));
        }
    }
}

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

fn optional(value: Option<Seen<'_>>) -> Seen<'_> {
    Seen::Optional(value.map(std::sync::Arc::new))
}
