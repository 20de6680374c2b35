//! Expressions of policies, compiled, and which of them are the same.
//!
//! What an expression means depends on its text, on the names that it may use, and on the types of the variables that were declared
//! before it, which a [`Declared`] sums up.
//!
//! Source: `compile.go` and `composition.go` in `k8s.io/apiserver/pkg/admission/plugin/cel`.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use skiff_api::cel::Objects;
use skiff_cel::{Environment, Program, Type, Types};

/// The variable that the variables of a policy are fields of.
pub(crate) const VARIABLES: &str = "variables";
/// Its type.
pub(crate) const VARIABLES_TYPE: &str = "kubernetes.variables";

pub(crate) const OBJECT_TYPE: &str = "Object";
pub(crate) const PATCH_TYPE: &str = "JSONPatch";

/// An expression, or why it is none.
pub(crate) struct Expression {
    pub(crate) text: String,
    pub(crate) program: Result<Program, String>,
}

/// The names that an expression may use besides those that all may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Names {
    pub(crate) params: bool,
    pub(crate) authorizer: bool,
    /// What only mutations make: `Object{…}`, `JSONPatch{…}`.
    pub(crate) patches: bool,
}

/// What an expression must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Returns {
    Anything,
    Bool,
    Text,
    TextOrNull,
    /// A list of JSON patches.
    Patches,
    /// A part of an object.
    Configuration,
}

impl Returns {
    /// Why a type is none of these.
    fn fault(self, type_: &Type) -> Option<String> {
        let wanted = match (self, type_) {
            (Returns::Anything, _)
            | (Returns::Bool, Type::Bool)
            | (Returns::Text | Returns::TextOrNull, Type::String)
            | (Returns::TextOrNull, Type::Null) => return None,
            (Returns::Patches, Type::List(element)) if is_object(element, PATCH_TYPE) => return None,
            (Returns::Configuration, type_) if is_object(type_, OBJECT_TYPE) => return None,
            (Returns::Bool, _) => "bool",
            (Returns::Patches, _) => "list(JSONPatch)",
            (Returns::Configuration, _) => OBJECT_TYPE,
            (Returns::Text, _) => "string",
            (Returns::TextOrNull, _) => "one of [string null_type]",
        };
        Some(format!("must evaluate to {wanted} but got {type_}"))
    }
}

/// What of an expression's meaning does not stand in its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    names: Names,
    returns: Returns,
    declared: [u8; 32],
}

/// Every expression that was compiled.
#[derive(Default)]
pub(crate) struct Expressions(HashMap<Arc<str>, HashMap<Place, Arc<Expression>>>);

impl Expressions {
    fn find(&self, text: &str, place: Place) -> Option<&Arc<Expression>> {
        self.0.get(text)?.get(&place)
    }

    fn keep(&mut self, text: &str, place: Place, expression: Arc<Expression>) {
        self.0.entry(text.into()).or_default().insert(place, expression);
    }
}

/// The variables of one policy that were declared until now, by their types.
#[derive(Clone, Default)]
pub(crate) struct Declared {
    fields: Arc<RwLock<HashMap<String, Type>>>,
    digest: [u8; 32],
}

impl Declared {
    pub(crate) fn field(&self, name: &str) -> Option<Type> {
        self.fields.read().get(name).cloned()
    }

    /// Declares a variable. Upstream keeps only plain types, lists and maps.
    pub(crate) fn declare(&mut self, name: &str, type_: Option<&Type>) {
        let type_ = type_.map_or(Type::Dyn, kept);
        let mut digest = Sha256::new();
        digest.update(self.digest);
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(type_.to_string().as_bytes());
        self.digest = digest.finalize().into();
        self.fields.write().insert(name.to_owned(), type_);
    }
}

fn kept(type_: &Type) -> Type {
    match type_ {
        Type::Null
        | Type::Bool
        | Type::Int
        | Type::Uint
        | Type::Double
        | Type::String
        | Type::Bytes
        | Type::Duration
        | Type::Timestamp => type_.clone(),
        Type::List(element) => Type::list(kept(element)),
        Type::Map(both) => Type::map(kept(&both.0), kept(&both.1)),
        _ => Type::Dyn,
    }
}

/// The objects that expressions of policies are given.
struct Known(Declared, Names);

impl Types for Known {
    fn field(&self, object: &str, field: &str) -> Option<Type> {
        if object == VARIABLES_TYPE {
            return self.0.field(field);
        }
        if self.1.patches && is_part(object) {
            return Some(Type::Dyn);
        }
        if self.1.patches && object == PATCH_TYPE {
            return match field {
                "op" | "path" | "from" => Some(Type::String),
                "value" => Some(Type::Dyn),
                _ => None,
            };
        }
        Objects.field(object, field)
    }

    fn exists(&self, object: &str) -> bool {
        self.1.patches && (object == PATCH_TYPE || is_part(object))
    }
}

fn is_object(type_: &Type, name: &str) -> bool {
    matches!(type_, Type::Object(known) if **known == *name)
}

/// Whether a type is that of an object that is made, or of a part of one, which is named by its path.
fn is_part(object: &str) -> bool {
    object.strip_prefix(OBJECT_TYPE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn environment(names: Names, declared: &Declared) -> Environment {
    let mut environment = Environment::default()
        .types(Known(declared.clone(), names))
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable("namespaceObject", Type::object("kubernetes.Namespace"))
        .variable("request", Type::object("kubernetes.AdmissionRequest"))
        .variable(VARIABLES, Type::object(VARIABLES_TYPE));
    if names.params {
        environment = environment.variable("params", Type::Dyn);
    }
    if names.authorizer {
        environment = environment
            .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
            .variable("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"));
    }
    if names.patches {
        environment = environment.patches();
    }
    environment
}

/// Compiles what neither it nor the last one has compiled before.
pub(crate) struct Compiler<'l> {
    pub(crate) last: Option<&'l Expressions>,
    pub(crate) expressions: Expressions,
}

impl Compiler<'_> {
    pub(crate) fn compile(
        &mut self,
        text: &str,
        names: Names,
        declared: &Declared,
        returns: Returns,
    ) -> Arc<Expression> {
        // Who does not speak of variables means the same wherever it stands.
        let digest = if text.contains(VARIABLES) { declared.digest } else { [0; 32] };
        let place = Place { names, returns, declared: digest };
        if let Some(known) = self.expressions.find(text, place) {
            return known.clone();
        }
        let known = self.last.and_then(|last| last.find(text, place)).cloned();
        let expression = known.unwrap_or_else(|| {
            let program = compiled(&environment(names, declared), text, returns);
            Arc::new(Expression { text: text.to_owned(), program })
        });
        self.expressions.keep(text, place, expression.clone());
        expression
    }
}

fn compiled(environment: &Environment, text: &str, returns: Returns) -> Result<Program, String> {
    let program = environment.compile(text).map_err(|rejected| format!("compilation failed: {rejected}"))?;
    if let Some(fault) = returns.fault(program.output()) {
        return Err(fault);
    }
    match program.fault() {
        Some(fault) => Err(format!("program instantiation failed: {fault}")),
        None => Ok(program),
    }
}
