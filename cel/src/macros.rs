//! Calls that are written out before anything looks at them.
//!
//! Source: cel-spec's macros, cel-go's `optMap`, `optFlatMap`, `sortBy` and comprehensions of two variables, each from the
//! Kubernetes version on that has it.

use crate::ast::{CARRIED, Fold, Item, Literal, Name, Node, NodeId};
use crate::issue::Issue;
use crate::parse::Parser;

type Expand = fn(&mut Expansion<'_, '_>) -> Result<NodeId, Stop>;

/// A macro: its name, how many arguments it has, whether it stands behind something, since which minor version.
const MACROS: [(&str, usize, bool, u8, Expand); 20] = [
    ("has", 1, false, 0, has),
    ("all", 2, true, 0, all),
    ("exists", 2, true, 0, exists),
    ("exists_one", 2, true, 0, exists_one),
    ("map", 2, true, 0, map),
    ("map", 3, true, 0, map),
    ("filter", 2, true, 0, filter),
    ("optMap", 2, true, 28, opt_map),
    ("optFlatMap", 2, true, 28, opt_flat_map),
    ("all", 3, true, 32, all),
    ("exists", 3, true, 32, exists),
    ("existsOne", 3, true, 32, exists_one),
    ("exists_one", 3, true, 32, exists_one),
    ("transformList", 3, true, 32, transform_list),
    ("transformList", 4, true, 32, transform_list),
    ("transformMap", 3, true, 32, transform_map),
    ("transformMap", 4, true, 32, transform_map),
    ("transformMapEntry", 3, true, 32, transform_map_entry),
    ("transformMapEntry", 4, true, 32, transform_map_entry),
    ("sortBy", 2, true, 34, sort_by),
];

/// A call, or what its macro makes of it.
pub(crate) fn call(
    parser: &mut Parser<'_>,
    offset: usize,
    name: &str,
    target: Option<NodeId>,
    args: Vec<NodeId>,
) -> Result<NodeId, Issue> {
    let version = parser.syntax.version;
    let is_bind = parser.syntax.bindings
        && (name, args.len()) == ("bind", 3)
        && target.is_some_and(|id| matches!(parser.ast.node(id), Node::Ident(name) if &**name == "cel"));
    let found = MACROS.iter().find(|(wanted, n_args, is_member, since, _)| {
        *wanted == name && *n_args == args.len() && *is_member == target.is_some() && *since <= version
    });
    let expand = found.map(|(.., expand)| *expand).or(is_bind.then_some(bind as Expand));
    let Some(expand) = expand else {
        return parser.add(offset, Node::Call { function: name.into(), target, args });
    };
    // A macro that stands behind nothing does not look at what it stands behind.
    let target = target.or(args.first().copied());
    let Some(target) = target else { return parser.literal(offset, Literal::Null) };
    match expand(&mut Expansion { parser: &mut *parser, offset, target, args: &args }) {
        Ok(id) => Ok(id),
        Err(Stop::Deep(issue)) => Err(issue),
        Err(Stop::Fault(at, message)) => {
            let offset = parser.ast.offset(at);
            parser.note(offset, message);
            parser.literal(offset, Literal::Null)
        }
    }
}

/// Why a macro cannot be written out: the whole tree is too large, or this use of it is wrong.
enum Stop {
    Deep(Issue),
    Fault(NodeId, String),
}

impl From<Issue> for Stop {
    fn from(issue: Issue) -> Stop {
        Stop::Deep(issue)
    }
}

struct Expansion<'e, 't> {
    parser: &'e mut Parser<'t>,
    offset: usize,
    target: NodeId,
    args: &'e [NodeId],
}

type Made = Result<NodeId, Stop>;
/// What a fold calls what it goes through.
type Variables = (Name, Option<Name>);

impl Expansion<'_, '_> {
    fn call(&mut self, function: &str, args: Vec<NodeId>) -> Made {
        Ok(self.parser.call(self.offset, function, args)?)
    }

    fn method(&mut self, function: &str, target: NodeId, args: Vec<NodeId>) -> Made {
        Ok(self
            .parser
            .add(self.offset, Node::Call { function: function.into(), target: Some(target), args })?)
    }

    fn literal(&mut self, literal: Literal) -> Made {
        Ok(self.parser.literal(self.offset, literal)?)
    }

    fn list(&mut self, values: &[NodeId]) -> Made {
        let items = values.iter().map(|value| Item { value: *value, is_optional: false }).collect();
        Ok(self.parser.add(self.offset, Node::List(items))?)
    }

    fn ident(&mut self, name: &str) -> Made {
        Ok(self.parser.add(self.offset, Node::Ident(name.into()))?)
    }

    fn carried(&mut self) -> Made {
        self.ident(CARRIED)
    }

    fn simple_name(&self, at: usize, message: &str) -> Result<Name, Stop> {
        let id = self.args[at];
        match self.parser.ast.node(id) {
            Node::Ident(name) if !name.starts_with('.') => Ok(name.clone()),
            _ => Err(Stop::Fault(id, message.to_string())),
        }
    }

    /// The one or two variables that come before the other `n_rest` arguments.
    fn variables(&self, n_rest: usize, message: &str) -> Result<Variables, Stop> {
        let first = self.simple_name(0, message)?;
        let second = match self.args.len() - n_rest {
            2 => Some(self.simple_name(1, message)?),
            _ => None,
        };
        if second.as_ref() == Some(&first) {
            return Err(Stop::Fault(self.args[1], format!("duplicate variable name: {first}")));
        }
        for (at, name) in std::iter::once(&first).chain(&second).enumerate() {
            if &**name == "__result__" {
                let message = "iteration variable overwrites accumulator variable".to_string();
                return Err(Stop::Fault(self.args[at], message));
            }
        }
        Ok((first, second))
    }

    fn fold(&mut self, variables: Variables, [init, condition, step, result]: [NodeId; 4]) -> Made {
        let (variable, second) = variables;
        let range = self.target;
        let fold = Fold { range, variable, second, carried: CARRIED.into(), init, condition, step, result };
        Ok(self.parser.add(self.offset, Node::Fold(Box::new(fold)))?)
    }

    /// A fold over nothing, which only gives a value a name.
    fn bind(&mut self, name: Name, value: NodeId, body: NodeId) -> Made {
        let (range, condition) = (self.list(&[])?, self.literal(Literal::Bool(false))?);
        let step = self.ident(&name)?;
        let fold = Fold {
            range,
            variable: "#unused".into(),
            second: None,
            carried: name,
            init: value,
            condition,
            step,
            result: body,
        };
        Ok(self.parser.add(self.offset, Node::Fold(Box::new(fold)))?)
    }

    /// `step` where the condition holds, if there is one, and what is carried where not.
    fn filtered(&mut self, condition: Option<NodeId>, step: NodeId) -> Made {
        match condition {
            Some(condition) => {
                let kept = self.carried()?;
                self.call("_?_:_", vec![condition, step, kept])
            }
            None => Ok(step),
        }
    }

    /// A fold that goes to the end, from an empty list or map.
    fn gather(&mut self, variables: Variables, init: NodeId, step: NodeId) -> Made {
        let condition = self.literal(Literal::Bool(true))?;
        let result = self.carried()?;
        self.fold(variables, [init, condition, step, result])
    }

    fn append(&mut self, value: NodeId) -> Made {
        let (kept, list) = (self.carried()?, self.list(&[value])?);
        self.call("_+_", vec![kept, list])
    }

    fn last(&self) -> NodeId {
        self.args[self.args.len() - 1]
    }
}

const SIMPLE: &str = "argument must be a simple name";
const IDENTIFIER: &str = "argument is not an identifier";

fn has(e: &mut Expansion<'_, '_>) -> Made {
    match e.parser.ast.node(e.args[0]) {
        Node::Select { operand, field, is_test: false } => {
            let node = Node::Select { operand: *operand, field: field.clone(), is_test: true };
            Ok(e.parser.add(e.offset, node)?)
        }
        _ => Err(Stop::Fault(e.args[0], "invalid argument to has() macro".to_string())),
    }
}

fn all(e: &mut Expansion<'_, '_>) -> Made {
    let variables = e.variables(1, SIMPLE)?;
    let init = e.literal(Literal::Bool(true))?;
    let carried = e.carried()?;
    let condition = e.call("@not_strictly_false", vec![carried])?;
    let (carried, body) = (e.carried()?, e.last());
    let step = e.call("_&&_", vec![carried, body])?;
    let result = e.carried()?;
    e.fold(variables, [init, condition, step, result])
}

fn exists(e: &mut Expansion<'_, '_>) -> Made {
    let variables = e.variables(1, SIMPLE)?;
    let init = e.literal(Literal::Bool(false))?;
    let carried = e.carried()?;
    let inverse = e.call("!_", vec![carried])?;
    let condition = e.call("@not_strictly_false", vec![inverse])?;
    let (carried, body) = (e.carried()?, e.last());
    let step = e.call("_||_", vec![carried, body])?;
    let result = e.carried()?;
    e.fold(variables, [init, condition, step, result])
}

fn exists_one(e: &mut Expansion<'_, '_>) -> Made {
    let variables = e.variables(1, SIMPLE)?;
    let init = e.literal(Literal::Int(0))?;
    let condition = e.literal(Literal::Bool(true))?;
    let (carried, one) = (e.carried()?, e.literal(Literal::Int(1))?);
    let more = e.call("_+_", vec![carried, one])?;
    let step = e.filtered(Some(e.last()), more)?;
    let (carried, one) = (e.carried()?, e.literal(Literal::Int(1))?);
    let result = e.call("_==_", vec![carried, one])?;
    e.fold(variables, [init, condition, step, result])
}

fn map(e: &mut Expansion<'_, '_>) -> Made {
    let variables = e.variables(e.args.len() - 1, IDENTIFIER)?;
    let condition = (e.args.len() == 3).then(|| e.args[1]);
    let init = e.list(&[])?;
    let step = e.append(e.last())?;
    let step = e.filtered(condition, step)?;
    e.gather(variables, init, step)
}

fn filter(e: &mut Expansion<'_, '_>) -> Made {
    let variables = e.variables(1, IDENTIFIER)?;
    let init = e.list(&[])?;
    let step = e.append(e.args[0])?;
    let step = e.filtered(Some(e.args[1]), step)?;
    e.gather(variables, init, step)
}

/// The variables of a fold of two, and the condition if there is one.
fn two(e: &mut Expansion<'_, '_>) -> Result<(Variables, Option<NodeId>), Stop> {
    let variables = e.variables(e.args.len() - 2, SIMPLE)?;
    Ok((variables, (e.args.len() == 4).then(|| e.args[2])))
}

fn transform_list(e: &mut Expansion<'_, '_>) -> Made {
    let (variables, condition) = two(e)?;
    let init = e.list(&[])?;
    let step = e.append(e.last())?;
    let step = e.filtered(condition, step)?;
    e.gather(variables, init, step)
}

fn transform_map(e: &mut Expansion<'_, '_>) -> Made {
    let (variables, condition) = two(e)?;
    let init = e.parser.add(e.offset, Node::Map(Vec::new()))?;
    let (carried, key) = (e.carried()?, e.ident(&variables.0)?);
    let step = e.call("cel.@mapInsert", vec![carried, key, e.last()])?;
    let step = e.filtered(condition, step)?;
    e.gather(variables, init, step)
}

fn transform_map_entry(e: &mut Expansion<'_, '_>) -> Made {
    let (variables, condition) = two(e)?;
    let init = e.parser.add(e.offset, Node::Map(Vec::new()))?;
    let carried = e.carried()?;
    let step = e.call("cel.@mapInsert", vec![carried, e.last()])?;
    let step = e.filtered(condition, step)?;
    e.gather(variables, init, step)
}

fn opt_bind(e: &mut Expansion<'_, '_>, name: &str) -> Result<(NodeId, NodeId), Stop> {
    let variable = e.simple_name(0, &format!("{name}() variable name must be a simple identifier"))?;
    let is_there = e.method("hasValue", e.target, Vec::new())?;
    let again = e.parser.copy(e.target)?;
    let value = e.method("value", again, Vec::new())?;
    let bound = e.bind(variable, value, e.args[1])?;
    Ok((is_there, bound))
}

fn opt_map(e: &mut Expansion<'_, '_>) -> Made {
    let (is_there, bound) = opt_bind(e, "optMap")?;
    let yes = e.call("optional.of", vec![bound])?;
    let no = e.call("optional.none", Vec::new())?;
    e.call("_?_:_", vec![is_there, yes, no])
}

fn opt_flat_map(e: &mut Expansion<'_, '_>) -> Made {
    let (is_there, bound) = opt_bind(e, "optFlatMap")?;
    let no = e.call("optional.none", Vec::new())?;
    e.call("_?_:_", vec![is_there, bound, no])
}

fn bind(e: &mut Expansion<'_, '_>) -> Made {
    let variable = e.simple_name(0, "cel.bind() variable names must be simple identifiers")?;
    e.bind(variable, e.args[1], e.args[2])
}

/// The keys are made from a list that has a name, so that it is not made twice.
fn sort_by(e: &mut Expansion<'_, '_>) -> Made {
    const INPUT: &str = "@__sortBy_input__";
    let list = match e.parser.ast.node(e.target) {
        Node::Select { .. } | Node::List(_) | Node::Fold(_) | Node::Call { .. } | Node::Ident(_) => e.target,
        _ => {
            let message =
                "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return Err(Stop::Fault(e.target, message.to_string()));
        }
    };
    let range = e.ident(INPUT)?;
    e.target = range;
    let keys = map(e)?;
    let input = e.ident(INPUT)?;
    let sorted = e.method("@sortByAssociatedKeys", input, vec![keys])?;
    e.bind(INPUT.into(), list, sorted)
}
