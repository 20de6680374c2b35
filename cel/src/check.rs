//! What every part of an expression is, and which overloads its calls may mean.
//!
//! Source: cel-go's `checker`, to the words of its errors.

use std::collections::HashMap;

use crate::ast::{Ast, Field, Fold, Item, Literal, Name, Node, NodeId};
use crate::declared::{ONLY_PATCHES, Overload, overloads, type_named};
use crate::issue::Issue;
use crate::types::{Type, Types};
use crate::unify::{Open, Unifier, most_general};

/// A tree whose types are known.
pub(crate) struct Checked {
    pub ast: Ast,
    pub root: NodeId,
    /// By part.
    pub types: Vec<Type>,
    /// By part: what a call may mean.
    pub overloads: Vec<Vec<&'static Overload>>,
}

impl Checked {
    pub(crate) fn type_of(&self, id: NodeId) -> &Type {
        &self.types[id.index()]
    }

    pub(crate) fn overload_ids(&self, id: NodeId) -> impl Iterator<Item = &'static str> + '_ {
        self.overloads[id.index()].iter().map(|overload| overload.id.as_str())
    }
}

/// What names mean outside of the expression.
pub(crate) struct Names<'n> {
    pub variables: &'n HashMap<Name, Type>,
    pub types: &'n dyn Types,
    pub version: u8,
    pub has_patches: bool,
}

impl Names<'_> {
    fn has(&self, overload: &Overload) -> bool {
        overload.since <= self.version || self.has_patches && overload.since == ONLY_PATCHES
    }
}

pub(crate) fn check(ast: Ast, root: NodeId, names: &Names<'_>) -> Result<Checked, Vec<Issue>> {
    let n_parts = ast.len();
    let mut checker = Checker {
        checked: Checked {
            ast,
            root,
            types: vec![Type::Error; n_parts],
            overloads: vec![Vec::new(); n_parts],
        },
        names,
        unifier: Unifier::default(),
        scopes: Vec::new(),
        issues: Vec::new(),
    };
    checker.check(root);
    let Checker { mut checked, mut unifier, mut issues, .. } = checker;
    for type_ in &mut checked.types {
        *type_ = unifier.known(type_, Open::Dyn);
    }
    if unifier.is_exhausted() {
        issues.push(Issue::types(0, "types of the expression are too complex"));
    }
    if issues.is_empty() { Ok(checked) } else { Err(issues) }
}

struct Checker<'n> {
    checked: Checked,
    names: &'n Names<'n>,
    unifier: Unifier,
    /// What folds around the present part have named, innermost last.
    scopes: Vec<(Name, Type)>,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn ast(&self) -> &Ast {
        &self.checked.ast
    }

    fn type_of(&self, id: NodeId) -> Type {
        self.checked.types[id.index()].clone()
    }

    fn set(&mut self, id: NodeId, type_: Type) {
        self.checked.types[id.index()] = type_;
    }

    fn fault(&mut self, id: NodeId, message: String) {
        let offset = self.ast().offset(id);
        self.issues.push(Issue::types(offset, message));
    }

    fn undeclared(&mut self, id: NodeId, name: &str) {
        self.set(id, Type::Error);
        self.fault(id, format!("undeclared reference to '{name}' (in container '')"));
    }

    fn mismatch(&mut self, id: NodeId, expected: &Type, found: &Type) {
        self.fault(id, format!("expected type '{expected}' but found '{found}'"));
    }

    fn check(&mut self, id: NodeId) {
        if self.unifier.is_exhausted() {
            return;
        }
        // What a part holds is at most as much as the expression is long, once a part.
        match self.ast().node(id).clone() {
            Node::Literal(literal) => self.set(id, type_of_literal(&literal)),
            Node::Ident(name) => match self.ident(&name) {
                Some((name, type_)) => {
                    self.checked.ast.replace(id, Node::Ident(name));
                    self.set(id, type_);
                }
                None => self.undeclared(id, &name),
            },
            Node::Select { operand, field, is_test } => self.select(id, operand, &field, is_test),
            Node::Call { function, target, args } => self.call(id, function, target, args),
            Node::List(items) => self.list(id, &items),
            Node::Map(entries) => {
                let (mut key, mut value) = (None, None);
                for entry in &entries {
                    self.check(entry.key);
                    let found = self.type_of(entry.key);
                    key = Some(self.joined(key, found));
                    self.check(entry.value);
                    let found = self.held(entry.value, entry.is_optional);
                    value = Some(self.joined(value, found));
                }
                let key = key.unwrap_or_else(|| self.unifier.fresh());
                let value = value.unwrap_or_else(|| self.unifier.fresh());
                self.set(id, Type::map(key, value));
            }
            Node::Message { name, fields } => self.message(id, &name, &fields),
            Node::Fold(fold) => self.fold(id, &fold),
        }
    }

    /// What a name stands for; names with a dot before them mean the same.
    fn ident(&self, name: &str) -> Option<(Name, Type)> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((name, type_)) = self.scopes.iter().rev().find(|(bound, _)| &**bound == name) {
            return Some((name.clone(), type_.clone()));
        }
        if let Some((name, type_)) = self.names.variables.get_key_value(name) {
            return Some((name.clone(), type_.clone()));
        }
        type_named(name, self.names.version).map(|type_| (name.into(), type_))
    }

    fn select(&mut self, id: NodeId, operand: NodeId, field: &Name, is_test: bool) {
        let qualified = if is_test { None } else { self.qualified(id) };
        if let Some((name, type_)) = qualified.and_then(|name| self.ident(&name)) {
            self.checked.ast.replace(id, Node::Ident(name));
            return self.set(id, type_);
        }
        let (found, was_optional) = self.field(id, operand, field);
        let found = if was_optional { Type::optional(found) } else { found };
        let found = if is_test { Type::Bool } else { found };
        let type_ = self.unifier.known(&found, Open::Kept);
        self.set(id, type_);
    }

    /// `a.b.c` as one name, if it consists of names only.
    fn qualified(&self, id: NodeId) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = id;
        loop {
            match self.ast().node(at) {
                Node::Ident(name) => {
                    parts.push(name.clone());
                    parts.reverse();
                    return Some(parts.join("."));
                }
                Node::Select { operand, field, is_test: false } => {
                    parts.push(field.clone());
                    at = *operand;
                }
                _ => return None,
            }
        }
    }

    /// The type of a field, and whether it is a field of something that may be missing.
    fn field(&mut self, id: NodeId, operand: NodeId, field: &str) -> (Type, bool) {
        self.check(operand);
        let operand = self.type_of(operand);
        let operand = self.unifier.known(&operand, Open::Kept);
        let (target, was_optional) = unwrapped(&operand);
        let found = match &target {
            Type::Map(both) => both.1.clone(),
            Type::Object(name) => self.names.types.field(name, field).unwrap_or_else(|| {
                self.fault(id, format!("undefined field '{field}'"));
                Type::Error
            }),
            Type::Var(_) => {
                self.unifier.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                self.fault(id, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        (found, was_optional)
    }

    fn call(&mut self, id: NodeId, function: Name, target: Option<NodeId>, args: Vec<NodeId>) {
        if &*function == "_?._" {
            return self.optional_select(id, &args);
        }
        for arg in &args {
            self.check(*arg);
        }
        let Some(target) = target else {
            let name: Name = function.strip_prefix('.').map_or(function.clone(), Name::from);
            let Some(overloads) = self.function(&name) else { return self.undeclared(id, &function) };
            self.checked
                .ast
                .replace(id, Node::Call { function: name.clone(), target: None, args: args.clone() });
            return self.resolve(id, &name, overloads, None, &args);
        };
        if let Some(prefix) = self.qualified(target) {
            let name: Name = format!("{}.{function}", prefix.strip_prefix('.').unwrap_or(&prefix)).into();
            if let Some(overloads) = self.function(&name) {
                let node = Node::Call { function: name.clone(), target: None, args: args.clone() };
                self.checked.ast.replace(id, node);
                return self.resolve(id, &name, overloads, None, &args);
            }
        }
        self.check(target);
        match self.function(&function) {
            Some(overloads) => self.resolve(id, &function, overloads, Some(target), &args),
            None => self.undeclared(id, &function),
        }
    }

    /// The overloads of a function, if any of them is there yet.
    fn function(&self, name: &str) -> Option<&'static [Overload]> {
        overloads(name).filter(|all| all.iter().any(|overload| self.names.has(overload)))
    }

    fn optional_select(&mut self, id: NodeId, args: &[NodeId]) {
        let [operand, field] = args else { return };
        let Node::Literal(Literal::Text(field)) = self.ast().node(*field).clone() else { return };
        let found = Type::optional(self.field(id, *operand, &field).0);
        let type_ = self.unifier.known(&found, Open::Kept);
        self.set(id, type_);
        self.set(args[1], Type::String);
        self.checked.overloads[id.index()] = overloads("_?._").unwrap_or_default().iter().collect();
    }

    fn resolve(
        &mut self,
        id: NodeId,
        function: &str,
        overloads: &'static [Overload],
        target: Option<NodeId>,
        args: &[NodeId],
    ) {
        if matches!(function, "_&&_" | "_||_") {
            return self.logic(id, overloads, args);
        }
        let given: Vec<Type> = target.iter().chain(args).map(|arg| self.type_of(*arg)).collect();
        let mut result: Option<Type> = None;
        for overload in overloads {
            let fits_style = overload.is_member == target.is_some() && self.names.has(overload);
            if !fits_style || overload.args.len() != given.len() {
                continue;
            }
            let (wanted, returned) = self.instance(overload);
            if !self.unifier.assignable_all(given.iter().zip(&wanted)) {
                continue;
            }
            self.checked.overloads[id.index()].push(overload);
            let returned = self.unifier.known(&returned, Open::Kept);
            result = Some(match result {
                None => returned,
                Some(before) if before == Type::Dyn || before == returned => before,
                Some(_) => Type::Dyn,
            });
        }
        let type_ = result.unwrap_or_else(|| {
            let shown: Vec<String> =
                given.iter().map(|type_| self.unifier.known(type_, Open::Dyn).to_string()).collect();
            let signature = match (target, shown.split_first()) {
                (Some(_), Some((first, rest))) => format!("{first}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            self.fault(id, format!("found no matching overload for '{function}' applied to '{signature}'"));
            Type::Error
        });
        self.set(id, type_);
    }

    fn logic(&mut self, id: NodeId, overloads: &'static [Overload], args: &[NodeId]) {
        let mut type_ = Type::Bool;
        for arg in args {
            let found = self.type_of(*arg);
            if !self.unifier.assignable(&found, &Type::Bool) {
                self.mismatch(*arg, &Type::Bool, &found);
                type_ = Type::Error;
            }
        }
        self.checked.overloads[id.index()] = overloads.iter().collect();
        self.set(id, type_);
    }

    /// The arguments and the result of an overload, what it leaves open being new.
    fn instance(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        let mut open = Vec::new();
        let args = overload.args.iter().map(|arg| self.opened(arg, &mut open)).collect();
        (args, self.opened(&overload.result, &mut open))
    }

    fn opened(&mut self, type_: &Type, open: &mut Vec<(char, Type)>) -> Type {
        match type_ {
            Type::Param(name) => match open.iter().find(|(known, _)| known == name) {
                Some((_, var)) => var.clone(),
                None => {
                    let var = self.unifier.fresh();
                    open.push((*name, var.clone()));
                    var
                }
            },
            Type::List(inner) => Type::list(self.opened(inner, open)),
            Type::Optional(inner) => Type::optional(self.opened(inner, open)),
            Type::Type(inner) => Type::Type(self.opened(inner, open).into()),
            Type::Map(both) => Type::map(self.opened(&both.0, open), self.opened(&both.1, open)),
            other => other.clone(),
        }
    }

    /// The type of what a list or map gets; what is marked as optional must be.
    fn held(&mut self, id: NodeId, is_optional: bool) -> Type {
        let type_ = self.type_of(id);
        if !is_optional {
            return type_;
        }
        let (inner, was_optional) = unwrapped(&type_);
        if !was_optional && type_ != Type::Dyn {
            self.mismatch(id, &Type::optional(type_.clone()), &type_);
        }
        inner
    }

    /// What is of several types may be anything; that literals may not is said later.
    fn joined(&mut self, before: Option<Type>, found: Type) -> Type {
        let Some(before) = before else { return found };
        if self.unifier.assignable(&before, &found) { most_general(before, found) } else { Type::Dyn }
    }

    fn list(&mut self, id: NodeId, items: &[Item]) {
        let mut element = None;
        for item in items {
            self.check(item.value);
            let found = self.held(item.value, item.is_optional);
            element = Some(self.joined(element, found));
        }
        let element = element.unwrap_or_else(|| self.unifier.fresh());
        self.set(id, Type::list(element));
    }

    fn message(&mut self, id: NodeId, name: &str, fields: &[Field]) {
        let name = name.strip_prefix('.').unwrap_or(name);
        if self.names.types.exists(name) {
            self.set(id, Type::object(name));
        } else if let Some(type_) = type_named(name, self.names.version) {
            let message = match &type_ {
                Type::Type(inner) => format!("'{}' is not a message type", inner.name()),
                other => format!("'{}' is not a type", other.name()),
            };
            self.fault(id, message);
        } else {
            return self.undeclared(id, name);
        }
        for field in fields {
            self.check(field.value);
            let given = self.held(field.value, field.is_optional);
            let mut fault = None;
            match self.names.types.field(name, &field.name) {
                Some(wanted) if self.unifier.assignable(&wanted, &given) => {}
                Some(wanted) => {
                    let field = &field.name;
                    fault = Some(format!(
                        "expected type of field '{field}' is '{wanted}' but provided type is '{given}'"
                    ));
                }
                None => fault = Some(format!("undefined field '{}'", field.name)),
            }
            self.issues.extend(fault.map(|message| Issue::types(field.offset, message)));
        }
    }

    fn fold(&mut self, id: NodeId, fold: &Fold) {
        self.check(fold.range);
        self.check(fold.init);
        let range = self.type_of(fold.range);
        let range = self.unifier.known(&range, Open::Kept);
        let carried = self.type_of(fold.init);
        let (first, second) = match &range {
            Type::List(element) if fold.second.is_some() => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(both) => (both.0.clone(), both.1.clone()),
            Type::Dyn | Type::Error | Type::Var(_) => {
                self.unifier.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                self.fault(
                    fold.range,
                    format!(
                        "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                    ),
                );
                (Type::Error, Type::Error)
            }
        };
        let outside = self.scopes.len();
        self.scopes.push((fold.carried.clone(), carried.clone()));
        self.scopes.push((fold.variable.clone(), first));
        self.scopes.extend(fold.second.clone().map(|name| (name, second)));
        self.check(fold.condition);
        self.must_be(fold.condition, &Type::Bool);
        self.check(fold.step);
        self.must_be(fold.step, &carried);
        self.scopes.truncate(outside + 1);
        self.check(fold.result);
        self.scopes.truncate(outside);
        let result = self.type_of(fold.result);
        let type_ = self.unifier.known(&result, Open::Kept);
        self.set(id, type_);
    }

    fn must_be(&mut self, id: NodeId, wanted: &Type) {
        let found = self.type_of(id);
        if !self.unifier.assignable(wanted, &found) {
            self.mismatch(id, wanted, &found);
        }
    }
}

fn unwrapped(type_: &Type) -> (Type, bool) {
    match type_ {
        Type::Optional(inner) => ((**inner).clone(), true),
        other => (other.clone(), false),
    }
}

fn type_of_literal(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::Text(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
