//! What an expression may cost, before it runs.
//!
//! Source: cel-go's `checker/cost.go` and `ext`, Kubernetes' `pkg/cel/library/cost.go`.

mod calls;
mod sizes;

use std::collections::HashMap;
use std::sync::Arc;

pub use sizes::Range;

use crate::ast::{CARRIED, Fold, Literal, Name, Node, NodeId};
use crate::check::Checked;
use crate::types::Type;

/// How large what an expression is given may be, so that a schema's limits can be used.
pub trait Sizes {
    /// The size of what a path leads to: a variable, then fields, `@items`, `@keys`, `@values` or `@indices`. `None` is not known.
    fn size(&self, path: &[Arc<str>], type_: &Type) -> Option<Range>;
}

/// Nothing is known.
impl Sizes for () {
    fn size(&self, _: &[Arc<str>], _: &Type) -> Option<Range> {
        None
    }
}

pub(crate) fn estimate(checked: &Checked, sizes: &dyn Sizes) -> Range {
    let mut estimator = Estimator {
        checked,
        given: sizes,
        paths: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    estimator.cost(checked.root)
}

/// Where something was found; `None` if not at a path.
type Path = Option<Arc<[Arc<str>]>>;

/// What is known of the items of a list, or of the keys and values of a map.
#[derive(Clone, Copy, Debug)]
struct Entries {
    is_list: bool,
    key: Range,
    value: Range,
}

impl Entries {
    fn union(a: Option<Entries>, b: Option<Entries>) -> Option<Entries> {
        let (a, b) = (a?, b?);
        Some(Entries { is_list: a.is_list, key: a.key.union(b.key), value: a.value.union(b.value) })
    }
}

struct Local {
    name: Name,
    path: Path,
    size: Option<Range>,
    entries: Option<Entries>,
}

/// What a call costs besides its arguments, and how large what it makes is.
struct Estimate {
    cost: Range,
    result: Option<Range>,
}

/// A part as calls look at it.
#[derive(Clone)]
struct Seen<'c> {
    id: NodeId,
    path: Path,
    type_: &'c Type,
    size: Option<Range>,
}

struct Estimator<'c> {
    checked: &'c Checked,
    given: &'c dyn Sizes,
    paths: HashMap<NodeId, Path>,
    sizes: HashMap<NodeId, Range>,
    entries: HashMap<NodeId, Entries>,
    locals: Vec<Local>,
}

const ONE: Range = Range::exactly(1);

impl<'c> Estimator<'c> {
    fn cost(&mut self, id: NodeId) -> Range {
        match self.checked.ast.node(id) {
            Node::Literal(_) => Range::exactly(0),
            Node::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => Some(Arc::from([name.clone()])),
                };
                self.paths.insert(id, path);
                ONE
            }
            Node::Select { operand, is_test: true, .. } => self.cost(*operand),
            Node::Select { operand, field, .. } => {
                let mut cost = self.cost(*operand);
                if matches!(self.checked.type_of(*operand), Type::Map(_) | Type::Object(_)) {
                    cost = cost.plus(ONE);
                }
                let path = extended(self.path(*operand), field);
                self.paths.insert(id, path);
                cost
            }
            Node::Call { function, target, args } => self.call(id, function, *target, args),
            Node::List(items) => {
                let mut cost = Range::exactly(10);
                let mut size = if items.is_empty() { Range::exactly(0) } else { Range::NOTHING };
                for item in items {
                    cost = cost.plus(self.cost(item.value));
                    size = size.union(self.size_or_unknown(item.value));
                }
                self.entries.insert(id, Entries { is_list: true, key: ONE, value: size });
                cost
            }
            Node::Map(entries) => {
                let mut cost = Range::exactly(30);
                let nothing = if entries.is_empty() { Range::exactly(0) } else { Range::NOTHING };
                let (mut key, mut value) = (nothing, nothing);
                for entry in entries {
                    cost = cost.plus(self.cost(entry.key)).plus(self.cost(entry.value));
                    key = key.union(self.size_or_unknown(entry.key));
                    value = value.union(self.size_or_unknown(entry.value));
                }
                self.entries.insert(id, Entries { is_list: false, key, value });
                cost
            }
            Node::Message { fields, .. } => {
                fields.iter().fold(Range::exactly(40), |cost, field| cost.plus(self.cost(field.value)))
            }
            Node::Fold(fold) if self.is_bind(fold) => self.bind(id, fold),
            Node::Fold(fold) => self.fold(id, fold),
        }
    }

    /// A fold over nothing that only gives a value a name.
    fn is_bind(&self, fold: &Fold) -> bool {
        let node = |id| self.checked.ast.node(id);
        matches!(node(fold.range), Node::List(items) if items.is_empty())
            && matches!(node(fold.condition), Node::Literal(Literal::Bool(false)))
            && &*fold.carried != CARRIED
    }

    fn bind(&mut self, id: NodeId, fold: &Fold) -> Range {
        let mut cost = self.cost(fold.range).plus(self.cost(fold.init));
        self.push_local(&fold.carried, fold.init);
        cost = cost.plus(self.cost(fold.result));
        self.locals.pop();
        let (size, entries) = (self.size(fold.result), self.entries(fold.result));
        self.remember(id, size, entries);
        cost
    }

    fn fold(&mut self, id: NodeId, fold: &Fold) -> Range {
        let mut cost = self.cost(fold.range).plus(self.cost(fold.init));
        let outside = self.locals.len();
        self.push_local(&fold.carried, fold.init);
        self.push_variables(fold);
        let turn = self.cost(fold.condition).plus(self.cost(fold.step));
        self.locals.truncate(outside + 1);
        cost = cost.plus(self.cost(fold.result));
        self.locals.truncate(outside);
        let n_turns = self.size_or_unknown(fold.range);
        match self.checked.ast.node(fold.init) {
            Node::Literal(_) => {
                let size = self.size(fold.init);
                self.remember(id, size, None);
            }
            Node::List(_) | Node::Map(_) => {
                let entries = self.entries(fold.step);
                self.remember(id, Some(n_turns), entries);
            }
            _ => {}
        }
        cost.plus(n_turns.times(turn))
    }

    fn push_local(&mut self, name: &Name, init: NodeId) {
        let local = Local {
            name: name.clone(),
            path: self.path(init),
            size: self.size(init),
            entries: self.entries(init),
        };
        self.locals.push(local);
    }

    fn push_variables(&mut self, fold: &Fold) {
        let (path, entries) = (self.path(fold.range), self.entries(fold.range));
        let is_list = match entries {
            Some(entries) => entries.is_list,
            None => matches!(self.checked.type_of(fold.range), Type::List(_)),
        };
        let (key, value) = (entries.map(|entries| entries.key), entries.map(|entries| entries.value));
        let variables = match (&fold.second, is_list) {
            (None, true) => vec![(&fold.variable, "@items", value)],
            (None, false) => vec![(&fold.variable, "@keys", key)],
            (Some(second), true) => vec![(&fold.variable, "@indices", key), (second, "@items", value)],
            (Some(second), false) => vec![(&fold.variable, "@keys", key), (second, "@values", value)],
        };
        for (name, part, size) in variables {
            let path = extended(path.clone(), &part.into());
            self.locals.push(Local { name: name.clone(), path, size, entries: None });
        }
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| &*local.name == name)
    }

    fn path(&self, id: NodeId) -> Path {
        if let Node::Ident(name) = self.checked.ast.node(id)
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&id).cloned().flatten()
    }

    fn remember(&mut self, id: NodeId, size: Option<Range>, entries: Option<Entries>) {
        if let Some(size) = size {
            self.sizes.insert(id, size);
        }
        if let Some(entries) = entries {
            self.entries.insert(id, entries);
        }
    }

    fn size(&mut self, id: NodeId) -> Option<Range> {
        if let Some(size) = self.sizes.get(&id) {
            return Some(*size);
        }
        if let Some(size) = size_of_node(self.checked.ast.node(id)) {
            return Some(Range::exactly(size));
        }
        let type_ = self.checked.type_of(id);
        if let Some(path) = self.path(id)
            && let Some(size) = self.given.size(&path, type_)
        {
            self.sizes.insert(id, size);
            return Some(size);
        }
        if type_.is_scalar() {
            return Some(ONE);
        }
        match self.checked.ast.node(id) {
            Node::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, id: NodeId) -> Range {
        self.size(id).unwrap_or(Range::UNKNOWN)
    }

    fn entries(&self, id: NodeId) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&id) {
            return Some(*entries);
        }
        match self.checked.ast.node(id) {
            Node::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }

    fn seen(&mut self, id: NodeId) -> Seen<'c> {
        let path = self.path(id).filter(|path| path.first().is_none_or(|first| &**first != CARRIED));
        Seen { id, path, type_: self.checked.type_of(id), size: self.size(id) }
    }
}

fn extended(path: Path, part: &Arc<str>) -> Path {
    // What is at no path has parts all the same, which lead from nowhere.
    let before = path.iter().flat_map(|path| path.iter().cloned());
    Some(before.chain([part.clone()]).collect())
}

fn size_of_node(node: &Node) -> Option<u64> {
    Some(match node {
        Node::Literal(Literal::Text(text)) => text.chars().count() as u64,
        Node::Literal(Literal::Bytes(bytes)) => bytes.len() as u64,
        Node::Literal(_) => 1,
        Node::List(items) => items.len() as u64,
        Node::Map(entries) => entries.len() as u64,
        _ => return None,
    })
}
