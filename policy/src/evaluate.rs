//! Running the expressions of one policy over one request.
//!
//! A [`Session`] is one group of expressions: match conditions, validations, messages, or annotations. Each group makes the variables
//! that it asks for anew and has a budget.
//!
//! Source: `activation.go`, `composition.go` and `condition.go` in `k8s.io/apiserver/pkg/admission/plugin/cel`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};
use skiff_api::Object;
use skiff_cel::{Check, Fault, PER_CALL_LIMIT, Run, Type, Value};
use skiff_webhook::admission::{Attributes, Permissions};

use crate::compile::Variables;
use crate::expression::{Expression, VARIABLES};

/// As much may the expressions of one group cost together.
///
/// Source: `RuntimeCELCostBudget` of `k8s.io/apiserver/pkg/apis/cel`.
pub(crate) const BUDGET: u64 = 10_000_000;
/// As much may the conditions of one policy cost together.
///
/// Source: `RuntimeCELCostBudgetMatchConditions`.
pub(crate) const CONDITIONS_BUDGET: u64 = 2_500_000;

/// The group has cost more than it may, and nothing more of it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfBudget;

impl OutOfBudget {
    pub(crate) const WORDS: &str =
        "validation failed due to running out of cost budget, no further validation rules will be run";
}

/// What expressions speak of.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'v> {
    pub(crate) object: &'v Json,
    pub(crate) old_object: &'v Json,
    pub(crate) request: &'v Json,
    pub(crate) params: &'v Json,
    pub(crate) namespace: &'v Json,
}

/// Who answers what expressions ask of the requester's rights, and about what.
#[derive(Clone, Copy)]
pub(crate) struct Rights<'r> {
    pub(crate) authorizer: &'r dyn Permissions,
    /// The question about the resource of the request itself.
    pub(crate) request: &'r Value<'static>,
}

/// The question about the resource of the request itself.
pub(crate) fn request_check(attributes: &Attributes<'_>) -> Value<'static> {
    let mut check = Check::default();
    check.group.clone_from(&attributes.resource.group);
    check.resource.clone_from(&attributes.resource.resource);
    check.subresource = attributes.subresource.to_owned();
    check.namespace = attributes.namespace.to_owned();
    check.name = attributes.name.to_owned();
    Value::resource_check(check)
}

/// A Namespace as expressions see it.
pub(crate) fn namespace_object(namespace: Option<&Object>) -> Json {
    const FIELDS: [&str; 12] = [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "finalizers",
    ];
    let Some(namespace) = namespace else { return Json::Null };
    let mut metadata = Map::new();
    for field in FIELDS {
        if let Some(value) = namespace["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let part = |field: &str| namespace.get(field).cloned().unwrap_or_else(|| json!({}));
    json!({"metadata": metadata, "spec": part("spec"), "status": part("status")})
}

/// One group of expressions that is run.
pub(crate) struct Session<'v, 'p> {
    inputs: Inputs<'v>,
    rights: Option<Rights<'p>>,
    variables: &'p Variables,
    made: RefCell<HashMap<usize, Result<Value<'v>, Fault>>>,
    /// What the variables have cost that the expression asked for that is run now.
    cost: Cell<u64>,
    left: u64,
}

impl<'v, 'p> Session<'v, 'p> {
    pub(crate) fn new(
        inputs: Inputs<'v>,
        rights: Option<Rights<'p>>,
        variables: &'p Variables,
        budget: u64,
    ) -> Session<'v, 'p> {
        Session { inputs, rights, variables, made: RefCell::default(), cost: Cell::new(0), left: budget }
    }

    /// What is left of the budget.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Runs one expression. The sentence says why it has no value.
    pub(crate) fn run(&mut self, expression: &Expression) -> Result<Result<Value<'v>, String>, OutOfBudget> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        self.cost.set(0);
        let outcome = {
            let find = |name: &str| self.variable(name, usize::MAX);
            program.run(self.names().lazy(VARIABLES, &find))
        };
        self.pay(self.cost.get())?;
        self.pay(outcome.cost)?;
        let shown = |fault| format!("expression '{}' resulted in error: {fault}", expression.text);
        Ok(outcome.result.map_err(shown))
    }

    fn pay(&mut self, cost: u64) -> Result<(), OutOfBudget> {
        self.left = self.left.checked_sub(cost).ok_or(OutOfBudget)?;
        Ok(())
    }

    /// A variable, which is made if nobody has asked for it yet. One variable knows those before it.
    fn variable(&self, name: &str, below: usize) -> Option<Result<Value<'v>, Fault>> {
        let (at, variable) = self.variables.find(name, below)?;
        if let Some(made) = self.made.borrow().get(&at) {
            return Some(made.clone());
        }
        let fault = |why: String| Err(Fault::Other(why.into()));
        let made = match &variable.expression.program {
            Err(why) => fault(format!("composited variable {:?} fails to compile: {why}", variable.name)),
            Ok(_) if variable.is_too_deep() => {
                fault(format!("composited variable {:?} is nested too deeply", variable.name))
            }
            Ok(program) => {
                let find = |name: &str| self.variable(name, at);
                let outcome = program.run(self.names().lazy(VARIABLES, &find));
                self.cost.set(self.cost.get().saturating_add(outcome.cost));
                let shown =
                    |cause| format!("composited variable {:?} fails to evaluate: {cause}", variable.name);
                outcome.result.or_else(|cause| fault(shown(cause)))
            }
        };
        self.made.borrow_mut().insert(at, made.clone());
        Some(made)
    }

    fn names<'r>(&'r self) -> Run<'r, 'v> {
        let Inputs { object, old_object, request, params, namespace } = self.inputs;
        let typed = |json, name: &str| Value::from_json(json, &Type::object(name));
        let run = Run::default()
            .limit(PER_CALL_LIMIT)
            .variable("object", Value::from_json(object, &Type::Dyn))
            .variable("oldObject", Value::from_json(old_object, &Type::Dyn))
            .variable("params", Value::from_json(params, &Type::Dyn))
            .variable("request", typed(request, "kubernetes.AdmissionRequest"))
            .variable("namespaceObject", typed(namespace, "kubernetes.Namespace"));
        let Some(rights) = self.rights else { return run };
        run.variable("authorizer", Value::authorizer())
            .variable("authorizer.requestResource", rights.request.clone())
            .authorizer(rights.authorizer)
    }
}
