//! Match conditions: expressions that say whether a policy looks at a request at all.
//!
//! Source: `matchconditions` of upstream's webhook plug-in.

use indexmap::IndexSet;
use skiff_cel::Value;

use crate::compile::{FailurePolicy, Policy};
use crate::evaluate::{CONDITIONS_BUDGET, Inputs, OutOfBudget, Rights, Session};

/// Whether all conditions of a policy hold. The sentence says why that is not known.
pub(crate) fn conditions_hold(
    policy: &Policy,
    inputs: Inputs<'_>,
    rights: Option<Rights<'_>>,
) -> Result<bool, String> {
    if policy.conditions.is_empty() {
        return Ok(true);
    }
    let mut session = Session::new(inputs, rights, &policy.variables, CONDITIONS_BUDGET);
    let (mut says_no, mut faults) = (false, IndexSet::new());
    let mut told = Ok(());
    for condition in &policy.conditions {
        match session.run(condition) {
            Err(OutOfBudget) => {
                told = Err(OutOfBudget::WORDS.to_owned());
                break;
            }
            Ok(Err(why)) => _ = faults.insert(why),
            Ok(Ok(Value::Bool(holds))) => says_no |= !holds,
            Ok(Ok(_)) => {}
        }
    }
    if told.is_ok() {
        if says_no {
            return Ok(false);
        }
        let faults: Vec<String> = faults.into_iter().collect();
        told = match faults.as_slice() {
            [] => Ok(()),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        };
    }
    match told {
        Ok(()) => Ok(true),
        Err(_) if policy.failure_policy == FailurePolicy::Ignore => Ok(false),
        Err(why) => Err(why),
    }
}
