//! A checked tree as what is run: constants are made once, chains of fields are one step.
//!
//! The shapes are those of cel-go's planner, because what a run costs is counted by them: a chain costs one and one more a field,
//! except where it is a branch of `? :`, and lists of constants cost nothing.

use std::sync::Arc;

use crate::ast::{CARRIED, Entry, Fold, Literal, Name, Node, NodeId};
use crate::check::Checked;
use crate::escape::unescape;
use crate::fault::Fault;
use crate::library::{self, Function, Pattern};
use crate::set::Set;
use crate::types::Type;
use crate::value::{Text, Value};

#[derive(Debug)]
pub(crate) enum Plan {
    Value(Value<'static>),
    Attribute(Attribute),
    Logic(Junction, Box<[Plan; 2]>),
    Equality(Equality, Box<[Plan; 2]>),
    NotStrictlyFalse(Box<Plan>),
    Call(Box<Call>),
    /// Whether one of these constants is meant.
    Member(Box<Plan>, Set),
    Otherwise(Otherwise, Box<[Plan; 2]>),
    List(Vec<(Plan, bool)>),
    Map(Vec<(Plan, Plan, bool)>),
    /// With the name of its type.
    Message(Name, Vec<(Text<'static>, Plan, bool)>),
    Fold(Box<FoldPlan>),
    /// What a fold carries, with one item more.
    Append(usize, Box<Plan>),
    /// What a fold carries, with a key and its value, or a map, more.
    Insert(usize, Vec<Plan>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Junction {
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Equality {
    Equal,
    Unequal,
}

/// What stands for an optional value that is missing: another one, or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Otherwise {
    Optional,
    Value,
}

/// Something with what is looked up in it.
#[derive(Debug)]
pub(crate) struct Attribute {
    pub base: Base,
    pub qualifiers: Vec<Arc<Qualifier>>,
    pub is_test: bool,
}

#[derive(Debug)]
pub(crate) enum Base {
    Variable(usize),
    Local(usize),
    Computed(Box<Plan>),
    /// What is looked up in it stands in both branches.
    Either(Box<(Plan, Attribute, Attribute)>),
}

#[derive(Debug)]
pub(crate) struct Qualifier {
    pub key: QualifierKey,
    pub is_optional: bool,
    pub is_test: bool,
    /// What it is known to be, for what JSON cannot say.
    pub field: Option<Type>,
}

#[derive(Debug)]
pub(crate) enum QualifierKey {
    Constant(Value<'static>),
    Attribute(Attribute),
    Computed(Plan),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub name: Name,
    pub function: Function,
    /// If it can only be this one.
    pub overload: Option<&'static str>,
    pub args: Vec<Plan>,
    /// Of a constant regular expression.
    pub pattern: Option<Pattern>,
}

#[derive(Debug)]
pub(crate) struct FoldPlan {
    pub range: Plan,
    pub init: Plan,
    pub condition: Plan,
    pub step: Plan,
    pub result: Plan,
    /// Where what is carried stands; the variables follow.
    pub local: usize,
    pub has_second: bool,
}

/// Why no plan can be made: a constant that is none.
pub(crate) type Planned<T> = Result<T, Fault>;

pub(crate) fn plan(checked: &Checked, variables: &[Name], fields: &dyn crate::types::Types) -> Planned<Plan> {
    Planner { checked, variables, fields, locals: Vec::new() }.plan(checked.root)
}

struct Planner<'c> {
    checked: &'c Checked,
    variables: &'c [Name],
    fields: &'c dyn crate::types::Types,
    locals: Vec<Name>,
}

impl Planner<'_> {
    fn plan(&mut self, id: NodeId) -> Planned<Plan> {
        match self.checked.ast.node(id) {
            Node::Literal(literal) => Ok(Plan::Value(constant(literal))),
            Node::Ident(name) => self.ident(id, name),
            Node::Select { operand, field, is_test } => {
                let mut attribute = self.attribute(*operand)?;
                let key = self.field(*operand, field);
                let qualifier = Qualifier { is_test: *is_test, is_optional: false, ..key };
                attribute.push(&Arc::new(qualifier));
                attribute.is_test = *is_test;
                Ok(Plan::Attribute(attribute))
            }
            Node::Call { function, target, args } => self.call(id, function, *target, args),
            Node::List(items) => {
                let planned: Vec<(Plan, bool)> = items
                    .iter()
                    .map(|item| Ok((self.plan(item.value)?, item.is_optional)))
                    .collect::<Planned<_>>()?;
                Ok(constants(planned).map_or_else(Plan::List, |values| Plan::Value(Value::list(values))))
            }
            Node::Map(entries) => self.map(entries),
            Node::Message { name, fields } => {
                let planned = fields
                    .iter()
                    .map(|field| {
                        let name = unescape(&field.name).unwrap_or_else(|| field.name.to_string());
                        Ok((Text::from(name), self.plan(field.value)?, field.is_optional))
                    })
                    .collect::<Planned<_>>()?;
                let name = name.strip_prefix('.').map_or_else(|| name.clone(), Name::from);
                Ok(Plan::Message(name, planned))
            }
            Node::Fold(fold) => self.fold(fold),
        }
    }

    fn ident(&self, id: NodeId, name: &Name) -> Planned<Plan> {
        let base = if let Some(at) = self.locals.iter().rposition(|local| local == name) {
            Base::Local(at)
        } else if let Some(at) = self.variables.iter().position(|variable| variable == name) {
            Base::Variable(at)
        } else if let Type::Type(inner) = self.checked.type_of(id) {
            return Ok(Plan::Value(Value::Type((**inner).clone())));
        } else {
            return Err(Fault::NoSuchVariable(name.clone()));
        };
        Ok(Plan::Attribute(Attribute { base, qualifiers: Vec::new(), is_test: false }))
    }

    /// What something is looked up in.
    fn attribute(&mut self, id: NodeId) -> Planned<Attribute> {
        Ok(Attribute::of(self.plan(id)?))
    }

    /// A field of what a part is.
    fn field(&self, operand: NodeId, field: &str) -> Qualifier {
        let object = match self.checked.type_of(operand) {
            Type::Optional(inner) => inner,
            other => other,
        };
        let (name, type_) = match object {
            Type::Object(name) => {
                (unescape(field).unwrap_or_else(|| field.to_string()), self.fields.field(name, field))
            }
            _ => (field.to_string(), None),
        };
        Qualifier {
            key: QualifierKey::Constant(Value::Text(Text::from(name))),
            is_optional: false,
            is_test: false,
            field: type_,
        }
    }

    fn map(&mut self, entries: &[Entry]) -> Planned<Plan> {
        let mut planned = Vec::with_capacity(entries.len());
        for entry in entries {
            planned.push((self.plan(entry.key)?, self.plan(entry.value)?, entry.is_optional));
        }
        let is_constant = planned.iter().all(|(key, value, is_optional)| {
            matches!((key, value), (Plan::Value(_), Plan::Value(_))) && !is_optional
        });
        let plan = Plan::Map(planned);
        Ok(if is_constant { crate::run::constant(&plan).map_or(plan, Plan::Value) } else { plan })
    }

    fn call(&mut self, id: NodeId, name: &Name, target: Option<NodeId>, args: &[NodeId]) -> Planned<Plan> {
        match (&**name, args) {
            ("_?_:_", [condition, yes, no]) => {
                let parts = (self.plan(*condition)?, self.attribute(*yes)?, self.attribute(*no)?);
                let base = Base::Either(Box::new(parts));
                return Ok(Plan::Attribute(Attribute { base, qualifiers: Vec::new(), is_test: false }));
            }
            ("_[_]" | "_[?_]" | "_?._", [operand, index]) => return self.index(name, *operand, *index),
            _ => {}
        }
        if let Some(plan) = self.carried(name, args)? {
            return Ok(plan);
        }
        let mut planned = Vec::with_capacity(args.len() + 1);
        for arg in target.iter().chain(args) {
            planned.push(self.plan(*arg)?);
        }
        let planned = match two(planned) {
            Ok(both) => match self.special(id, name, both) {
                Ok(plan) => return Ok(plan),
                Err(both) => Vec::from(*both),
            },
            Err(planned) => planned,
        };
        self.function(id, name, planned)
    }

    /// Calls of two sides that are no calls when they run.
    fn special(&self, id: NodeId, name: &str, both: Box<[Plan; 2]>) -> Result<Plan, Box<[Plan; 2]>> {
        let only = self.only(id);
        Ok(match name {
            "_&&_" => Plan::Logic(Junction::And, both),
            "_||_" => Plan::Logic(Junction::Or, both),
            "_==_" => Plan::Equality(Equality::Equal, both),
            "_!=_" => Plan::Equality(Equality::Unequal, both),
            "or" if only.is_some() => Plan::Otherwise(Otherwise::Optional, both),
            "orValue" if only.is_some() => Plan::Otherwise(Otherwise::Value, both),
            "@in" if only == Some("in_list") => {
                let Plan::Value(Value::List(list)) = &both[1] else { return Err(both) };
                if list.is_empty() {
                    return Ok(Plan::Value(Value::Bool(false)));
                }
                let Some(set) = Set::of(list) else { return Err(both) };
                let [value, _] = *both;
                Plan::Member(Box::new(value), set)
            }
            _ => return Err(both),
        })
    }

    /// The overload of a call that can only be one.
    fn only(&self, id: NodeId) -> Option<&'static str> {
        let mut ids = self.checked.overload_ids(id);
        ids.next().filter(|_| ids.next().is_none())
    }

    fn function(&self, id: NodeId, name: &Name, args: Vec<Plan>) -> Planned<Plan> {
        let overload = self.only(id);
        if &**name == "@not_strictly_false"
            && let [_] = args.as_slice()
        {
            return Ok(args
                .into_iter()
                .next()
                .map_or(Plan::Value(Value::Null), |arg| Plan::NotStrictlyFalse(Box::new(arg))));
        }
        let function = library::function(name).ok_or_else(|| Fault::NoOverloadOf(name.clone()))?;
        let pattern = match (&**name, args.as_slice()) {
            ("matches" | "find" | "findAll", [_, Plan::Value(Value::Text(pattern)), ..]) => {
                Some(Pattern::new(pattern).map_err(Fault::other)?)
            }
            _ => None,
        };
        let is_constant = matches!(args.as_slice(), [Plan::Value(_)]) && is_conversion(name);
        let plan = Plan::Call(Box::new(Call { name: name.clone(), function, overload, args, pattern }));
        if is_constant {
            return crate::run::constant(&plan).map(Plan::Value);
        }
        Ok(plan)
    }

    fn index(&mut self, name: &str, operand: NodeId, index: NodeId) -> Planned<Plan> {
        let mut attribute = self.attribute(operand)?;
        let is_optional = name != "_[_]";
        let qualifier = match self.plan(index)? {
            Plan::Value(Value::Text(field)) if name == "_?._" => self.field(operand, &field),
            plan => Qualifier {
                key: match plan {
                    Plan::Value(value) => QualifierKey::Constant(value),
                    Plan::Attribute(attribute) => QualifierKey::Attribute(attribute),
                    plan => QualifierKey::Computed(plan),
                },
                is_optional,
                is_test: false,
                field: None,
            },
        };
        attribute.push(&Arc::new(Qualifier { is_optional, ..qualifier }));
        Ok(Plan::Attribute(attribute))
    }

    /// What adds to what a fold carries, which is then not copied.
    fn carried(&mut self, name: &str, args: &[NodeId]) -> Planned<Option<Plan>> {
        let Some((Node::Ident(first), rest)) =
            args.split_first().map(|(id, rest)| (self.checked.ast.node(*id), rest))
        else {
            return Ok(None);
        };
        let Some(at) = self.locals.iter().rposition(|local| local == first).filter(|_| &**first == CARRIED)
        else {
            return Ok(None);
        };
        if name == "cel.@mapInsert" {
            let rest = rest.iter().map(|arg| self.plan(*arg)).collect::<Planned<_>>()?;
            return Ok(Some(Plan::Insert(at, rest)));
        }
        let Some(Node::List(items)) =
            rest.first().map(|id| self.checked.ast.node(*id)).filter(|_| name == "_+_")
        else {
            return Ok(None);
        };
        let Some(item) = items.first() else { return Ok(None) };
        Ok(Some(Plan::Append(at, Box::new(self.plan(item.value)?))))
    }

    fn fold(&mut self, fold: &Fold) -> Planned<Plan> {
        let (init, range) = (self.plan(fold.init)?, self.plan(fold.range)?);
        let local = self.locals.len();
        self.locals.extend([fold.carried.clone(), fold.variable.clone()]);
        self.locals.extend(fold.second.clone());
        let condition = self.plan(fold.condition)?;
        let step = self.plan(fold.step)?;
        self.locals.truncate(local + 1);
        let result = self.plan(fold.result)?;
        self.locals.truncate(local);
        let has_second = fold.second.is_some();
        Ok(Plan::Fold(Box::new(FoldPlan { range, init, condition, step, result, local, has_second })))
    }
}

impl Attribute {
    fn of(plan: Plan) -> Attribute {
        match plan {
            Plan::Attribute(attribute) if !attribute.is_test => attribute,
            plan => {
                Attribute { base: Base::Computed(Box::new(plan)), qualifiers: Vec::new(), is_test: false }
            }
        }
    }

    fn push(&mut self, qualifier: &Arc<Qualifier>) {
        match &mut self.base {
            Base::Either(parts) => {
                parts.1.push(qualifier);
                parts.2.push(qualifier);
            }
            _ => self.qualifiers.push(qualifier.clone()),
        }
    }
}

fn constant(literal: &Literal) -> Value<'static> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::Text(text) => Value::Text(Text::Owned(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// The values of items that are all constant, or the items.
fn constants(items: Vec<(Plan, bool)>) -> Result<Vec<Value<'static>>, Vec<(Plan, bool)>> {
    if !items.iter().all(|(item, is_optional)| matches!(item, Plan::Value(_)) && !is_optional) {
        return Err(items);
    }
    let values = items.into_iter().filter_map(|(item, _)| match item {
        Plan::Value(value) => Some(value),
        _ => None,
    });
    Ok(values.collect())
}

fn two(plans: Vec<Plan>) -> Result<Box<[Plan; 2]>, Vec<Plan>> {
    plans.into_boxed_slice().try_into().map_err(|plans: Box<[Plan]>| plans.into_vec())
}

/// Calls that are made at once where what they are given is constant.
fn is_conversion(name: &str) -> bool {
    matches!(
        name,
        "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "type" | "uint"
    )
}
