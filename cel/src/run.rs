//! Runs a plan, and counts what that costs.
//!
//! # Guarantees
//! A run ends: folds go through what is finite, every step is counted, and past the limit everything stops. Who has set an
//! interrupt is asked again and again. The depth is that of the plan, which the parser bounds.
//!
//! Source: cel-go's `interpreter`, `runtimecost.go` for what is counted.

mod lookup;

use std::sync::Arc;

use crate::charge;
use crate::compare::compared;
use crate::fault::Fault;
use crate::library::{self, Host};
use crate::plan::{Call, Equality, FoldPlan, Junction, Otherwise, Plan};
use crate::value::{Entries, Key, Map, Text, Value};

/// As often as this a fold asks whether it shall go on.
const TURNS_BETWEEN_INTERRUPTS: u64 = 100;

/// One run of one plan.
pub(crate) struct Machine<'p, 'a> {
    pub variables: &'p [Option<Value<'a>>],
    pub names: &'p [Arc<str>],
    pub host: Host<'p>,
    pub limit: u64,
    pub interrupt: Option<&'p (dyn Fn() -> bool + 'p)>,
    pub lazy: Option<(&'p str, &'p crate::Find<'p, 'a>)>,
    pub cost: u64,
    pub turns: u64,
    pub locals: Vec<Slot<'p, 'a>>,
}

#[derive(Debug)]
pub(crate) enum Slot<'p, 'a> {
    /// Made when it is first asked for.
    Later(&'p Plan),
    Ready(Run<'a>),
}

pub(crate) type Run<'a> = Result<Value<'a>, Fault>;

/// A plan that speaks of nothing outside.
pub(crate) fn constant(plan: &Plan) -> Run<'static> {
    let mut machine = Machine {
        variables: &[],
        names: &[],
        host: Host::default(),
        limit: u64::MAX,
        interrupt: None,
        lazy: None,
        cost: 0,
        turns: 0,
        locals: Vec::new(),
    };
    machine.run(plan)
}

impl<'p, 'a> Machine<'p, 'a> {
    pub(crate) fn run(&mut self, plan: &'p Plan) -> Run<'a> {
        match plan {
            Plan::Value(value) => Ok(value.clone()),
            Plan::Attribute(attribute) => self.attribute(attribute),
            Plan::Logic(junction, sides) => self.logic(*junction, sides),
            Plan::Equality(equality, sides) => {
                let sides = [self.run(&sides[0]), self.run(&sides[1])];
                // What is compared may be as large as all that was given.
                if matches!(&sides[0], Ok(Value::List(_) | Value::Map(_))) {
                    self.tick(TURNS_BETWEEN_INTERRUPTS / 10)?;
                }
                self.charge(charge::equality(*equality, &sides))?;
                let [a, b] = sides;
                let is_equal = compared(&a?, &b?);
                Ok(Value::Bool(match equality {
                    Equality::Equal => is_equal?,
                    // What cannot be looked at is not the same as anything.
                    Equality::Unequal => !is_equal.unwrap_or(false),
                }))
            }
            Plan::NotStrictlyFalse(inner) => {
                let value = self.run(inner);
                self.charge(1)?;
                match value {
                    Err(fault) if fault.ends_the_run() => Err(fault),
                    value => Ok(Value::Bool(!matches!(value, Ok(Value::Bool(false))))),
                }
            }
            Plan::Call(call) => self.call(call),
            Plan::Member(value, set) => {
                let value = self.run(value)?;
                Ok(Value::Bool(set.contains(&value)))
            }
            Plan::Otherwise(otherwise, sides) => match self.run(&sides[0])? {
                Value::Optional(Some(value)) if *otherwise == Otherwise::Value => Ok((*value).clone()),
                Value::Optional(None) => self.run(&sides[1]),
                other => Ok(other),
            },
            Plan::List(items) => {
                let list = self.list(items);
                self.charge(10)?;
                list
            }
            Plan::Map(entries) => {
                let map = self.map(entries);
                self.charge(30)?;
                map
            }
            Plan::Message(name, fields) => {
                let message = self.message(name, fields);
                self.charge(40)?;
                message
            }
            Plan::Fold(fold) => self.fold(fold),
            Plan::Append(local, item) => self.append(*local, item),
            Plan::Insert(local, args) => self.insert(*local, args),
        }
    }

    /// Counts what takes as long as so many turns of a fold, and asks from time to time whether it shall go on.
    fn tick(&mut self, n_turns: u64) -> Result<(), Fault> {
        self.turns += n_turns;
        if self.turns < TURNS_BETWEEN_INTERRUPTS {
            return Ok(());
        }
        self.turns = 0;
        if self.interrupt.is_some_and(|ask| ask()) { Err(Fault::Interrupted) } else { Ok(()) }
    }

    fn charge(&mut self, cost: u64) -> Result<(), Fault> {
        // What is over is not counted any further.
        if self.cost <= self.limit {
            self.cost = self.cost.saturating_add(cost);
        }
        if self.cost > self.limit { Err(Fault::CostLimit) } else { Ok(()) }
    }

    fn logic(&mut self, junction: Junction, sides: &'p [Plan; 2]) -> Run<'a> {
        // What both sides must be, or one of them must not.
        let neutral = junction == Junction::And;
        let mut fault = None;
        for side in sides {
            match self.run(side) {
                Ok(Value::Bool(value)) if value != neutral => return Ok(Value::Bool(value)),
                Ok(Value::Bool(_)) => {}
                Err(found) if found.ends_the_run() => return Err(found),
                Ok(_) => fault = fault.or(Some(Fault::NoSuchOverload)),
                Err(found) => fault = fault.or(Some(found)),
            }
        }
        fault.map_or(Ok(Value::Bool(neutral)), Err)
    }

    fn call(&mut self, call: &'p Call) -> Run<'a> {
        // With more than two arguments, or where it is not known which function is meant, upstream stops at the first fault.
        let stops = call.args.len() > 2
            || call.overload.is_none() && call.args.len() == 2 && !is_operator(&call.name);
        let mut fault = None;
        let mut args = Vec::with_capacity(call.args.len());
        for (at, arg) in call.args.iter().enumerate() {
            match self.run(arg) {
                Ok(value) => args.push(value),
                Err(found) if found.ends_the_run() || stops && at + 1 < call.args.len() => return Err(found),
                Err(found) => {
                    args.push(Value::Null);
                    fault = fault.or(Some(found));
                }
            }
        }
        if charge::ahead(call, &args).is_some_and(|cost| self.cost.saturating_add(cost) > self.limit) {
            self.charge(self.limit)?;
            return Err(Fault::CostLimit);
        }
        if call.pattern.is_none() && matches!(&*call.name, "matches" | "find" | "findAll") {
            // A pattern has to be made first.
            self.tick(TURNS_BETWEEN_INTERRUPTS)?;
        }
        let result = match fault {
            Some(fault) => Err(fault),
            None => (call.function)(call, &args, &self.host),
        };
        self.charge(charge::call(call, &args, &result))?;
        result
    }

    fn list(&mut self, items: &'p [(Plan, bool)]) -> Run<'a> {
        let mut values = Vec::with_capacity(items.len());
        for (item, is_optional) in items {
            match (self.run(item)?, is_optional) {
                (value, false) => values.push(value),
                (Value::Optional(inner), true) => values.extend(inner.map(|value| (*value).clone())),
                (value, true) => {
                    let shown = value.type_of();
                    return Err(Fault::other(format!(
                        "cannot initialize optional list element from non-optional value {shown}"
                    )));
                }
            }
        }
        Ok(Value::list(values))
    }

    fn map(&mut self, entries: &'p [(Plan, Plan, bool)]) -> Run<'a> {
        let mut map = Entries::default();
        for (key, value, is_optional) in entries {
            let key = Key::of(self.run(key)?)?;
            match self.entry(value, *is_optional)? {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            }
        }
        Ok(Value::Map(Map::Owned(Arc::new(map))))
    }

    /// What an entry holds, if it holds anything.
    fn entry(&mut self, value: &'p Plan, is_optional: bool) -> Result<Option<Value<'a>>, Fault> {
        match (self.run(value)?, is_optional) {
            (value, false) => Ok(Some(value)),
            (Value::Optional(inner), true) => Ok(inner.map(|value| (*value).clone())),
            (value, true) => {
                let shown = value.type_of();
                Err(Fault::other(format!("cannot initialize optional entry from non-optional value {shown}")))
            }
        }
    }

    fn message(&mut self, name: &Arc<str>, fields: &'p [(Text<'static>, Plan, bool)]) -> Run<'a> {
        let mut map = Entries::default();
        map.name = Some(name.clone());
        for (name, value, is_optional) in fields {
            if let Some(value) = self.entry(value, *is_optional)? {
                map.insert(Key::Text(name.clone()), value);
            }
        }
        Ok(Value::Map(Map::Owned(Arc::new(map))))
    }

    fn fold(&mut self, fold: &'p FoldPlan) -> Run<'a> {
        let range = self.run(&fold.range)?;
        self.locals.truncate(fold.local);
        self.locals.push(Slot::Later(&fold.init));
        match range {
            Value::List(list) => {
                for (at, item) in list.iter().enumerate() {
                    let first = if fold.has_second { Value::Int(at as i64) } else { item.clone() };
                    if !self.turn(fold, first, item)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for (key, value) in map.iter() {
                    if !self.turn(fold, key, value)? {
                        break;
                    }
                }
            }
            other => {
                let name = go_name(&other);
                return Err(Fault::other(format!("got '{name}', expected iterable type")));
            }
        }
        self.locals.truncate(fold.local + 1);
        let result = self.run(&fold.result);
        self.locals.truncate(fold.local);
        result
    }

    /// One turn of a fold; whether there shall be another.
    fn turn(&mut self, fold: &'p FoldPlan, first: Value<'a>, second: Value<'a>) -> Result<bool, Fault> {
        self.tick(1)?;
        self.locals.truncate(fold.local + 1);
        self.locals.push(Slot::Ready(Ok(first)));
        if fold.has_second {
            self.locals.push(Slot::Ready(Ok(second)));
        }
        match self.run(&fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(fault) if fault.ends_the_run() => return Err(fault),
            _ => {}
        }
        let carried = self.run(&fold.step);
        if let Err(fault) = &carried
            && fault.ends_the_run()
        {
            return Err(fault.clone());
        }
        self.locals[fold.local] = Slot::Ready(carried);
        Ok(true)
    }

    /// Takes what a fold carries, so that nobody else has it.
    fn taken(&mut self, local: usize) -> Run<'a> {
        let value = self.local(local);
        self.locals[local] = Slot::Ready(Err(Fault::NoSuchOverload));
        value
    }

    fn append(&mut self, local: usize, item: &'p Plan) -> Run<'a> {
        self.charge(1)?;
        let item = match item {
            Plan::Value(value) => Ok(value.clone()),
            item => {
                let value = self.run(item);
                self.charge(10)?;
                value
            }
        };
        let carried = self.taken(local);
        self.charge(1)?;
        match (carried?, item?) {
            (Value::List(list), item) => Ok(Value::List(list.pushed(item)?)),
            _ => Err(Fault::NoSuchOverload),
        }
    }

    fn insert(&mut self, local: usize, args: &'p [Plan]) -> Run<'a> {
        self.charge(1)?;
        let mut fault = self.local(local).err();
        // Where there are three arguments with what is carried, upstream stops at the first fault.
        let mut values = Vec::with_capacity(args.len());
        for (at, arg) in args.iter().enumerate() {
            if let Some(fault) = fault.take_if(|_| args.len() > 1) {
                return Err(fault);
            }
            match self.run(arg) {
                Ok(value) => values.push(value),
                Err(found) if found.ends_the_run() || at + 1 < args.len() => return Err(found),
                Err(found) => fault = fault.or(Some(found)),
            }
        }
        if let Some(fault) = fault {
            self.charge(1)?;
            return Err(fault);
        }
        let carried = self.taken(local)?;
        self.charge(1)?;
        let Value::Map(Map::Owned(mut map)) = carried else { return Err(Fault::NoSuchOverload) };
        let inner = Arc::make_mut(&mut map);
        let mut add = |key: Value<'a>, value: Value<'a>| {
            let shown = library::shown(&key);
            let key = Key::of(key)?;
            if inner.get(&key).is_some() {
                return Err(Fault::other(format!("insert failed: key {shown} already exists")));
            }
            inner.insert(key, value);
            Ok(())
        };
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (Some(key), Some(value)) => add(key, value)?,
            (Some(Value::Map(more)), None) => more.iter().try_for_each(|(key, value)| add(key, value))?,
            _ => return Err(Fault::NoSuchOverload),
        }
        Ok(Value::Map(Map::Owned(map)))
    }
}

/// What upstream calls a value where it shows the types of its own language.
fn go_name(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "types.Null",
        Value::Bool(_) => "types.Bool",
        Value::Int(_) => "types.Int",
        Value::Uint(_) => "types.Uint",
        Value::Double(_) => "types.Double",
        Value::Text(_) => "types.String",
        Value::Bytes(_) => "types.Bytes",
        Value::Duration(_) => "types.Duration",
        Value::Timestamp(_) => "types.Timestamp",
        Value::Optional(_) => "*types.Optional",
        Value::Type(_) => "*types.Type",
        Value::List(_) | Value::Map(_) | Value::Library(_) | Value::Fault(_) => "value",
    }
}

/// Functions that upstream has one body for, whatever they are given.
fn is_operator(name: &str) -> bool {
    name.starts_with('_') || name.starts_with('@')
}
