//! The Common Expression Language as Kubernetes speaks it: rules of CRDs, admission policies, match conditions, device
//! selectors, expressions of authentication and authorization.
//!
//! ```text
//! text ─ token ─ parse, macros ─▶ ast ─ check, validate ─▶ Program ─┬─ estimate ─▶ what it may cost
//!         (syntax)                       (types)                    └─ plan ─ run ─▶ a value, a fault, and what it did cost
//! ```
//!
//! [`Environment`] says which names and which version's libraries there are, [`Environment::compile`] makes a [`Program`],
//! [`Program::run`] runs it over [`Value`]s, which borrow from JSON.
//!
//! # Guarantees
//! Nothing here does any IO or keeps anything. Texts, trees, types, lists and runs are bounded; what is too much is told. The
//! words of type errors and most faults are upstream's, costs are upstream's numbers.
//!
//! # Caveats
//! The deepest expression takes half a MiB of stack, and three times as much where nothing is optimised.
//!
//! Of syntax errors only the first is told, mostly in upstream's words. The name that macros carry
//! their value under cannot be written. Lists, texts and types that would be very large are not made. What else differs stands
//! in `tests/known.txt`.

mod ast;
mod charge;
mod check;
mod compare;
mod declared;
mod escape;
mod estimate;
mod fault;
mod issue;
mod library;
mod macros;
mod parse;
mod plan;
mod run;
mod set;
mod shape;
mod token;
mod types;
mod unify;
mod validate;
mod value;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use escape::{escape, unescape};
pub use estimate::{Range, Sizes};
pub use fault::Fault;
pub use issue::{Issue, Rejected, Stage};
pub use library::{Authorizer, Check, Decision, Library, Pattern, Subject};
pub use shape::{Declared, Shape, Uniqueness};
pub use types::{Type, Types};
pub use value::{Entries, Key, List, Map, Scalar, Text, Timestamp, Value};

use ast::Name;
use check::{Checked, Names};
use library::Host;
use parse::{Parsed, Syntax};
use plan::Plan;

/// Whether a text is an absolute URL or a path, as a request has it.
pub fn is_url(text: &str) -> bool {
    library::is_url(text)
}

/// Reads a text of the format `duration`, in billionths of a second.
pub fn duration(text: &str) -> Option<i64> {
    library::time::lax_duration(text)
}

/// As much may one run of an expression cost.
///
/// Source: `PerCallLimit` of `k8s.io/apiserver/pkg/apis/cel`.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// The names that expressions may use, and the Kubernetes version whose libraries they have.
#[derive(Clone)]
pub struct Environment {
    version: u8,
    has_bindings: bool,
    has_patches: bool,
    variables: HashMap<Name, Type>,
    types: Arc<dyn Types + Send + Sync>,
}

/// The version whose libraries there are if none is asked for.
const LATEST_VERSION: u8 = 36;
const OPTIONALS_SINCE: u8 = 28;

impl Default for Environment {
    fn default() -> Self {
        Environment {
            version: LATEST_VERSION,
            has_bindings: false,
            has_patches: false,
            variables: HashMap::new(),
            types: Arc::new(()),
        }
    }
}

impl Environment {
    /// With the libraries of Kubernetes `1.minor`.
    pub fn version(mut self, minor: u8) -> Environment {
        self.version = minor;
        self
    }

    /// With `cel.bind(name, value, expression)`, as only device selectors have it.
    pub fn bindings(mut self) -> Environment {
        self.has_bindings = true;
        self
    }

    /// With `jsonpatch.escapeKey(key)`, as only mutations have it.
    pub fn patches(mut self) -> Environment {
        self.has_patches = true;
        self
    }

    pub fn variable(mut self, name: &str, type_: Type) -> Environment {
        self.variables.insert(name.into(), type_);
        self
    }

    /// Where the fields of objects are known.
    pub fn types(mut self, types: impl Types + Send + Sync + 'static) -> Environment {
        self.types = Arc::new(types);
        self
    }

    /// Reads and checks an expression.
    pub fn compile(&self, source: &str) -> Result<Program, Rejected> {
        let rejected = |issues| Rejected::new(source, issues);
        let syntax = Syntax {
            optionals: self.version >= OPTIONALS_SINCE,
            bindings: self.has_bindings,
            version: self.version,
        };
        let Parsed { ast, root } = parse::parse(source, syntax)?;
        let names = Names {
            variables: &self.variables,
            types: &*self.types,
            version: self.version,
            has_patches: self.has_patches,
        };
        let checked = check::check(ast, root, &names).map_err(rejected)?;
        let issues = validate::faults(&checked, self.version);
        if !issues.is_empty() {
            return Err(rejected(issues));
        }
        let mut variables: Vec<Name> = self.variables.keys().cloned().collect();
        variables.sort();
        let plan = plan::plan(&checked, &variables, &*self.types);
        Ok(Program { checked, plan, variables })
    }
}

/// An expression that can be run, any number of times.
pub struct Program {
    checked: Checked,
    /// Or why a constant of it is none, which every run tells.
    plan: Result<Plan, Fault>,
    variables: Vec<Name>,
}

/// What one run is given.
#[derive(Default)]
pub struct Run<'r, 'a> {
    variables: BTreeMap<&'r str, Value<'a>>,
    limit: Option<u64>,
    authorizer: Option<&'r dyn Authorizer>,
    interrupt: Option<&'r dyn Fn() -> bool>,
    lazy: Option<(&'r str, &'r Find<'r, 'a>)>,
}

/// What a field of a variable holds that is made when it is asked for; `None` if there is no such field.
pub type Find<'r, 'a> = dyn Fn(&str) -> Option<Result<Value<'a>, Fault>> + 'r;

/// What a run has come to, and what it did cost.
#[derive(Debug)]
pub struct Outcome<'a> {
    pub result: Result<Value<'a>, Fault>,
    pub cost: u64,
}

impl<'r, 'a> Run<'r, 'a> {
    pub fn variable(mut self, name: &'r str, value: Value<'a>) -> Self {
        self.variables.insert(name, value);
        self
    }

    /// As much may it cost, instead of [`PER_CALL_LIMIT`].
    pub fn limit(mut self, cost: u64) -> Self {
        self.limit = Some(cost);
        self
    }

    /// Who answers what the expression asks `authorizer`.
    pub fn authorizer(mut self, authorizer: &'r dyn Authorizer) -> Self {
        self.authorizer = Some(authorizer);
        self
    }

    /// A variable whose fields are made when they are first asked for. What that costs is the business of who makes them.
    pub fn lazy(mut self, name: &'r str, find: &'r Find<'r, 'a>) -> Self {
        self.lazy = Some((name, find));
        self
    }

    /// Asked again and again; the run ends when it says so.
    pub fn interrupt(mut self, is_over: &'r dyn Fn() -> bool) -> Self {
        self.interrupt = Some(is_over);
        self
    }
}

impl Program {
    /// The type of what it answers.
    pub fn output(&self) -> &Type {
        self.checked.type_of(self.checked.root)
    }

    /// Whether it speaks of a name, be it a variable or one of its own.
    pub fn speaks_of(&self, name: &str) -> bool {
        let mut parts = vec![self.checked.root];
        while let Some(id) = parts.pop() {
            if matches!(self.checked.ast.node(id), ast::Node::Ident(other) if **other == *name) {
                return true;
            }
            self.checked.ast.each_child(id, |child| parts.push(child));
        }
        false
    }

    /// What it may cost, with what is known of the sizes of its variables.
    pub fn estimate(&self, sizes: &dyn Sizes) -> Range {
        estimate::estimate(&self.checked, sizes)
    }

    /// Why it cannot be run at all: a constant that is none, such as a wrong pattern.
    pub fn fault(&self) -> Option<&Fault> {
        self.plan.as_ref().err()
    }

    pub fn run<'a>(&self, run: Run<'_, 'a>) -> Outcome<'a> {
        let plan = match &self.plan {
            Ok(plan) => plan,
            Err(fault) => return Outcome { result: Err(fault.clone()), cost: 0 },
        };
        let variables: Vec<Option<Value<'a>>> =
            self.variables.iter().map(|name| run.variables.get(&**name).cloned()).collect();
        let mut machine = run::Machine {
            variables: &variables,
            names: &self.variables,
            host: Host { authorizer: run.authorizer },
            limit: run.limit.unwrap_or(PER_CALL_LIMIT),
            interrupt: run.interrupt,
            lazy: run.lazy,
            cost: 0,
            turns: 0,
            locals: Vec::new(),
        };
        let result = machine.run(plan).and_then(Value::checked);
        Outcome { result, cost: machine.cost }
    }
}
