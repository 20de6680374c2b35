//! What names stand for, and what is looked up in it.
//!
//! Source: cel-go's `interpreter/attributes.go`: a chain is followed in one step, and from the first part on that may be missing
//! all that follows may be.

use std::sync::Arc;

use super::{Machine, Run, Slot};
use crate::fault::Fault;
use crate::library;
use crate::plan::{Attribute, Base, Qualifier, QualifierKey};
use crate::shape;
use crate::value::{Map, Value, whole};

impl<'p, 'a> Machine<'p, 'a> {
    pub(super) fn attribute(&mut self, attribute: &'p Attribute) -> Run<'a> {
        let value = self.resolve(attribute);
        // A choice costs only what is chosen by and what is chosen, a test only what is looked up.
        match (attribute.is_test, &attribute.base) {
            (true, Base::Either(_)) => self.cost = self.cost.saturating_sub(1),
            (true, _) | (false, Base::Either(_)) => {}
            (false, _) => self.charge(1)?,
        }
        match value? {
            Value::Optional(inner) if attribute.is_test => Ok(Value::Bool(inner.is_some())),
            value => Ok(value),
        }
    }

    fn resolve(&mut self, attribute: &'p Attribute) -> Run<'a> {
        if let Base::Variable(at) = &attribute.base
            && let Some((name, find)) = self.lazy
            && self.names.get(*at).is_some_and(|known| **known == *name)
            && let Some(first) = attribute.qualifiers.first()
        {
            let key = self.key(first)?;
            let found = match &key {
                Value::Text(field) => find(field),
                _ => return Err(Fault::NoSuchOverload),
            };
            let found =
                found.map_or_else(|| Ok(Found::Missing(no_key(&key))), |value| value.map(Found::Value));
            return self.followed(Value::Null, &attribute.qualifiers, false, Some(found));
        }
        let value = match &attribute.base {
            Base::Variable(at) => self.variable(*at)?,
            Base::Local(at) => self.local(*at)?,
            Base::Computed(plan) => self.run(plan)?,
            Base::Either(parts) => {
                return match self.run(&parts.0)? {
                    Value::Bool(true) => self.resolve(&parts.1),
                    Value::Bool(false) => self.resolve(&parts.2),
                    _ => Err(Fault::NoSuchOverload),
                };
            }
        };
        if attribute.qualifiers.is_empty() {
            return Ok(value);
        }
        self.qualified(value, &attribute.qualifiers)
    }

    fn variable(&mut self, at: usize) -> Run<'a> {
        self.variables
            .get(at)
            .cloned()
            .flatten()
            .ok_or_else(|| Fault::NoSuchVariable(self.names.get(at).cloned().unwrap_or_default()))?
            .checked()
    }

    pub(super) fn local(&mut self, at: usize) -> Run<'a> {
        if let Slot::Later(plan) = self.locals[at] {
            // It knows only what stood there when it was named, and has folds of its own in the places behind.
            let mut behind = self.locals.split_off(at);
            let value = self.run(plan);
            self.locals.truncate(at);
            self.locals.append(&mut behind);
            self.locals[at] = Slot::Ready(value);
        }
        match &self.locals[at] {
            Slot::Ready(value) => value.clone()?.checked(),
            Slot::Later(_) => Err(Fault::NoSuchOverload),
        }
    }

    fn qualified(&mut self, value: Value<'a>, qualifiers: &'p [Arc<Qualifier>]) -> Run<'a> {
        match value {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => self.followed((*inner).clone(), qualifiers, true, None),
            value => self.followed(value, qualifiers, false, None),
        }
    }

    /// What a chain leads to, from a value or from what its first part has already found.
    fn followed(
        &mut self,
        mut value: Value<'a>,
        qualifiers: &'p [Arc<Qualifier>],
        mut may_be_missing: bool,
        mut first: Option<Result<Found<'a>, Fault>>,
    ) -> Run<'a> {
        for qualifier in qualifiers {
            may_be_missing |= qualifier.is_optional;
            let found = first.take().unwrap_or_else(|| self.look_up(&value, qualifier));
            if may_be_missing {
                let Found::Value(found) = found? else { return Ok(Value::Optional(None)) };
                self.charge(1)?;
                value = found.checked()?;
                continue;
            }
            self.charge(1)?;
            value = match found? {
                Found::Value(found) if qualifier.is_test => found.checked().map(|_| Value::Bool(true))?,
                Found::Missing(_) if qualifier.is_test => Value::Bool(false),
                Found::Value(found) => found.checked()?,
                Found::Missing(fault) => return Err(fault),
            };
        }
        Ok(if may_be_missing { Value::some(value) } else { value })
    }

    fn key(&mut self, qualifier: &'p Qualifier) -> Run<'a> {
        match &qualifier.key {
            QualifierKey::Constant(value) => Ok(value.clone()),
            QualifierKey::Attribute(attribute) => self.resolve(attribute),
            QualifierKey::Computed(plan) => self.run(plan),
        }
    }

    fn look_up(&mut self, value: &Value<'a>, qualifier: &'p Qualifier) -> Result<Found<'a>, Fault> {
        let key = self.key(qualifier)?;
        // The name of a field that is known is its own, not that which expressions call it by.
        if let (Value::Map(Map::Shaped(map, shape)), Some(_), Value::Text(name)) =
            (value, &qualifier.field, &key)
        {
            let found = shape::field(map, shape, name);
            return Ok(found.map_or_else(|| Found::Missing(no_key(&key)), Found::Value));
        }
        if let (Value::Map(Map::Json(map, _)), Some(type_), Value::Text(name)) =
            (value, &qualifier.field, &key)
        {
            let found = map.get(&**name).map(|json| Value::from_json(json, type_));
            return Ok(found.map_or_else(|| Found::Missing(no_key(&key)), Found::Value));
        }
        found(value, &key)
    }
}

/// What was looked up, or the fault of its absence.
enum Found<'a> {
    Value(Value<'a>),
    Missing(Fault),
}

fn no_key(key: &Value<'_>) -> Fault {
    Fault::NoSuchKey(library::shown(key).into())
}

fn found<'a>(value: &Value<'a>, key: &Value<'a>) -> Result<Found<'a>, Fault> {
    match value {
        Value::Map(map) => Ok(map.find(key).map_or_else(|| Found::Missing(no_key(key)), Found::Value)),
        Value::List(list) => {
            let unsupported =
                || Fault::other(format!("unsupported index value {} in list", library::shown(key)));
            let at = match key {
                Value::Int(at) => *at,
                Value::Uint(at) => i64::try_from(*at).map_err(|_| unsupported())?,
                Value::Double(at) => whole(*at).ok_or_else(unsupported)?,
                other => {
                    let name = other.type_of();
                    return Err(Fault::other(format!("unsupported index type '{}' in list", name.name())));
                }
            };
            let found = usize::try_from(at).ok().and_then(|at| list.get(at));
            Ok(found
                .map_or_else(|| Found::Missing(Fault::OutOfBounds(library::shown(key).into())), Found::Value))
        }
        _ => Ok(Found::Missing(no_key(key))),
    }
}
