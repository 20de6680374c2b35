//! What is said of a rule that does not hold.

use skiff_cel::{Fault, Run, Value};

use super::Compiled;
use crate::schema::Rule;

/// As long may what an expression says be.
const MAX_MESSAGE_BYTES: usize = 5 << 10;

pub(super) enum Told {
    Message(String),
    /// Why nothing is run any more.
    Over(String),
}

/// What a rule is called where it fails: by its message, or by itself.
pub(super) fn name_of(rule: &Rule) -> &str {
    if rule.message.is_empty() { rule.rule.trim() } else { rule.message.trim() }
}

/// An expression that says nothing useful leaves it to the rule.
pub(super) fn of(compiled: &Compiled, variables: Run<'_, '_>, budget: &mut i64) -> Told {
    let rule = &compiled.rule;
    let plain = || match rule.message.is_empty() {
        true => format!("failed rule: {}", name_of(rule)),
        false => rule.message.trim().to_owned(),
    };
    let Some(program) = &compiled.message else { return Told::Message(plain()) };
    let outcome = program.run(variables);
    let cost = i64::try_from(outcome.cost).unwrap_or(i64::MAX);
    if cost > *budget {
        return Told::Over(
            "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run"
                .into(),
        );
    }
    if matches!(outcome.result, Err(Fault::CostLimit)) {
        return Told::Over(format!(
            "no further validation rules will be run due to call cost exceeds limit for messageExpression: {}",
            super::super::words::quoted(&rule.message_expression)
        ));
    }
    *budget -= cost;
    match outcome.result {
        Ok(Value::Text(text)) => {
            let text = text.trim();
            let is_useful = !text.is_empty() && text.len() <= MAX_MESSAGE_BYTES && !text.contains('\n');
            Told::Message(if is_useful { text.to_owned() } else { plain() })
        }
        _ => Told::Message(plain()),
    }
}
