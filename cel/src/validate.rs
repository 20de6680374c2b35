//! What is wrong with constants though their types are right.
//!
//! Source: cel-go's validators that Kubernetes uses.

use crate::ast::{Ast, Literal, Name, Node, NodeId};
use crate::check::Checked;
use crate::issue::Issue;
use crate::library::{Clause, Pattern, clauses, time};
use crate::types::Type;

/// The version from which on the constants of calls are looked at.
const CALLS_SINCE: u8 = 29;

pub(crate) fn faults(checked: &Checked, version: u8) -> Vec<Issue> {
    let mut issues = Vec::new();
    let looks_at_calls = version >= CALLS_SINCE;
    let exempt = if looks_at_calls { within_format(checked) } else { vec![false; checked.ast.len()] };
    for id in checked.ast.ids().filter(|id| is_reached(checked, *id)) {
        match checked.ast.node(id) {
            Node::Call { function, target, args } if looks_at_calls => {
                call(checked, id, function, *target, args, &mut issues)
            }
            Node::List(items) if !exempt[id.index()] => {
                let items = items.iter().map(|item| (item.value, item.is_optional));
                same(checked, items, Told::First, &mut issues);
            }
            Node::Map(entries) if !exempt[id.index()] => {
                same(checked, entries.iter().map(|entry| (entry.key, false)), Told::All, &mut issues);
                let values = entries.iter().map(|entry| (entry.value, entry.is_optional));
                same(checked, values, Told::All, &mut issues);
            }
            _ => {}
        }
    }
    issues
}

/// Parts that macros have left behind were never checked.
fn is_reached(checked: &Checked, id: NodeId) -> bool {
    *checked.type_of(id) != Type::Error
}

/// By part, whether it stands within a call of `format`, which takes what is mixed.
fn within_format(checked: &Checked) -> Vec<bool> {
    let mut within = vec![false; checked.ast.len()];
    let mut open: Vec<NodeId> = Vec::new();
    for id in checked.ast.ids() {
        if let Node::Call { function, .. } = checked.ast.node(id)
            && &**function == "format"
        {
            open.push(id);
        }
    }
    while let Some(id) = open.pop() {
        checked.ast.each_child(id, |child| {
            if !std::mem::replace(&mut within[child.index()], true) {
                open.push(child);
            }
        });
    }
    within
}

fn text_of(ast: &Ast, id: NodeId) -> Option<&str> {
    match ast.node(id) {
        Node::Literal(Literal::Text(text)) => Some(text),
        _ => None,
    }
}

fn call(
    checked: &Checked,
    id: NodeId,
    function: &Name,
    target: Option<NodeId>,
    args: &[NodeId],
    issues: &mut Vec<Issue>,
) {
    let ast = &checked.ast;
    let Some(first) = args.first() else { return };
    if &**function == "format"
        && let (Some(text), Node::List(items)) = (target.and_then(|id| text_of(ast, id)), ast.node(*first))
    {
        let values: Vec<NodeId> = items.iter().map(|item| item.value).collect();
        return format(checked, id, text, &values, issues);
    }
    let Node::Literal(literal) = ast.node(*first) else { return };
    let is_wrong = match (&**function, literal) {
        ("duration", Literal::Text(text)) => time::duration(text).is_none(),
        ("duration", _) => true,
        ("timestamp", Literal::Text(text)) => time::timestamp(text).is_err(),
        ("timestamp", Literal::Int(seconds)) => !time::RANGE.contains(seconds),
        ("matches", Literal::Text(text)) => Pattern::new(text).is_err(),
        _ => false,
    };
    if is_wrong {
        issues.push(Issue::types(ast.offset(*first), format!("invalid {function} argument")));
    }
}

/// Clauses must be there for all values, and fit them.
fn format(checked: &Checked, id: NodeId, text: &str, values: &[NodeId], issues: &mut Vec<Issue>) {
    let (mut n_used, mut at) = (0, id);
    let printed = clauses(text, |clause| {
        let value = values.get(n_used).copied();
        n_used += 1;
        let value = value.ok_or_else(|| format!("index {} out of range", n_used - 1))?;
        let clause = clause?;
        match misfit(checked, clause, value) {
            None => Ok(String::new()),
            Some(bad) => {
                at = bad;
                let refusal = clause.refusal(checked.type_of(bad).name());
                Err(format!("error during formatting: {refusal}"))
            }
        }
    });
    let message = match printed {
        Err(message) => message,
        Ok(_) if values.len() > n_used => {
            let n_values = values.len();
            format!("too many arguments supplied to string.format (expected {n_used}, got {n_values})")
        }
        Ok(_) => return,
    };
    issues.push(Issue::types(checked.ast.offset(at), message));
}

/// What does not fit a clause: the value, or what it holds.
fn misfit(checked: &Checked, clause: Clause, id: NodeId) -> Option<NodeId> {
    if !clause.takes(checked.type_of(id)) {
        return Some(id);
    }
    match (clause, checked.ast.node(id)) {
        (Clause::Text, Node::List(items)) => {
            items.iter().find_map(|item| misfit(checked, clause, item.value))
        }
        (Clause::Text, Node::Map(entries)) => entries.iter().find_map(|entry| {
            misfit(checked, clause, entry.key).or_else(|| misfit(checked, clause, entry.value))
        }),
        _ => None,
    }
}

/// Which parts of another type are told: of lists only the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    First,
    All,
}

/// All must be of one type.
fn same(checked: &Checked, parts: impl Iterator<Item = (NodeId, bool)>, told: Told, issues: &mut Vec<Issue>) {
    let mut wanted: Option<Type> = None;
    for (id, is_optional) in parts {
        let type_ = match checked.type_of(id) {
            Type::Optional(inner) if is_optional => (**inner).clone(),
            other => other.clone(),
        };
        let Some(wanted) = &wanted else {
            wanted = Some(type_);
            continue;
        };
        if *wanted != type_ {
            let message = format!("expected type '{wanted}' but found '{type_}'");
            issues.push(Issue::types(checked.ast.offset(id), message));
            if told == Told::First {
                return;
            }
        }
    }
}
