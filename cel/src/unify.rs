//! What types that are still open may become.
//!
//! # Guarantees
//! The work for one expression is bounded, however its types are built.
//!
//! Source: the rules of cel-go's `checker/types.go`.

use std::sync::Arc;

use crate::types::Type;

/// Steps for one expression. Types that double with every level would need any number.
const MAX_STEPS: usize = 1_000_000;

/// What becomes of types that are open still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    Kept,
    Dyn,
}

#[derive(Default)]
pub(crate) struct Unifier {
    /// What each open type has become.
    found: Vec<Option<Type>>,
    /// What `found` held before it was changed, so that a trial can be taken back.
    trail: Vec<(u32, Option<Type>)>,
    n_steps: usize,
}

impl Unifier {
    pub(crate) fn fresh(&mut self) -> Type {
        self.found.push(None);
        Type::Var((self.found.len() - 1) as u32)
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.n_steps > MAX_STEPS
    }

    /// Whether each of the first can stand for its fellow; only then anything becomes known by it.
    pub(crate) fn assignable_all<'t>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'t Type, &'t Type)>,
    ) -> bool {
        let mark = self.trail.len();
        if pairs.into_iter().all(|(from, to)| self.fits(from, to)) {
            self.trail.truncate(mark);
            return true;
        }
        while self.trail.len() > mark {
            let Some((var, before)) = self.trail.pop() else { break };
            self.found[var as usize] = before;
        }
        false
    }

    pub(crate) fn assignable(&mut self, from: &Type, to: &Type) -> bool {
        self.assignable_all([(from, to)])
    }

    /// A type with what is known put in.
    pub(crate) fn known(&mut self, type_: &Type, open: Open) -> Type {
        self.n_steps += 1;
        if self.is_exhausted() {
            return Type::Dyn;
        }
        match type_ {
            Type::Var(var) => match self.found[*var as usize].clone() {
                Some(found) => self.known(&found, open),
                None if open == Open::Dyn => Type::Dyn,
                None => type_.clone(),
            },
            Type::List(element) => Type::list(self.known(element, open)),
            Type::Map(both) => Type::map(self.known(&both.0, open), self.known(&both.1, open)),
            Type::Optional(inner) => Type::optional(self.known(inner, open)),
            Type::Type(inner) => Type::Type(Arc::new(self.known(inner, open))),
            other => other.clone(),
        }
    }

    fn fits(&mut self, from: &Type, to: &Type) -> bool {
        self.n_steps += 1;
        if self.is_exhausted() {
            return false;
        }
        if let Type::Var(var) = to {
            let (is_valid, is_bound) = self.may_become(from, *var);
            if is_valid || is_bound {
                return is_valid;
            }
        }
        if let Type::Var(var) = from {
            return self.may_become(to, *var).0;
        }
        match (from, to) {
            (Type::Dyn | Type::Error, _) | (_, Type::Dyn | Type::Error) => true,
            (Type::Null, other) | (other, Type::Null) => matches!(
                other,
                Type::Null
                    | Type::Optional(_)
                    | Type::Opaque(_)
                    | Type::Object(_)
                    | Type::Duration
                    | Type::Timestamp
            ),
            (Type::Type(_) | Type::AnyType, Type::Type(_) | Type::AnyType) => true,
            (Type::List(from), Type::List(to)) | (Type::Optional(from), Type::Optional(to)) => {
                self.fits(from, to)
            }
            (Type::Map(from), Type::Map(to)) => self.fits(&from.0, &to.0) && self.fits(&from.1, &to.1),
            _ => from == to,
        }
    }

    /// Whether an open type may become this one, and whether it had become something before.
    fn may_become(&mut self, type_: &Type, var: u32) -> (bool, bool) {
        if *type_ == Type::Var(var) {
            return (true, true);
        }
        let Some(found) = self.found[var as usize].clone() else {
            let is_valid = !self.occurs(var, type_);
            if is_valid {
                self.bind(var, type_.clone());
            }
            return (is_valid, false);
        };
        if *type_ == found {
            return (true, true);
        }
        if !self.fits(type_, &found) {
            return (false, true);
        }
        let general = if is_less_specific(type_, &found) { type_.clone() } else { found };
        if !self.occurs(var, &general) {
            self.bind(var, general);
        }
        (true, true)
    }

    fn bind(&mut self, var: u32, type_: Type) {
        let before = self.found[var as usize].replace(type_);
        self.trail.push((var, before));
    }

    fn occurs(&mut self, var: u32, within: &Type) -> bool {
        self.n_steps += 1;
        if self.is_exhausted() {
            return true;
        }
        match within {
            Type::Var(other) if *other == var => true,
            Type::Var(other) => match self.found[*other as usize].clone() {
                Some(found) => self.occurs(var, &found),
                None => false,
            },
            Type::List(inner) | Type::Optional(inner) | Type::Type(inner) => self.occurs(var, inner),
            Type::Map(both) => self.occurs(var, &both.0) || self.occurs(var, &both.1),
            _ => false,
        }
    }
}

/// The more general of two types that go together.
pub(crate) fn most_general(first: Type, second: Type) -> Type {
    if is_less_specific(&first, &second) { first } else { second }
}

/// Whether the first says no more than the second.
fn is_less_specific(first: &Type, second: &Type) -> bool {
    match (first, second) {
        (Type::Dyn | Type::Var(_), _) => true,
        (_, Type::Dyn | Type::Var(_)) => false,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => is_less_specific(a, b),
        (Type::Map(a), Type::Map(b)) => is_less_specific(&a.0, &b.0) && is_less_specific(&a.1, &b.1),
        (Type::Type(_) | Type::AnyType, Type::Type(_) | Type::AnyType) => true,
        _ => first == second,
    }
}
