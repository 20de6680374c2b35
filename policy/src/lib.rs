//! Policies of admission: expressions that admit requests, or change their objects first, without calling anybody.
//!
//! ```text
//! policies, bindings ─▶ Policies::compile ─▶ each policy: rules, selectors ─▶ each binding: rules, selectors, params
//!                                                                                          │
//!                Status, warnings, annotations ◀─ decisions ◀─ validations ◀─ conditions ◀─┘
//! ```
//!
//! [`Policies`] is made when policies or bindings change and is shared by all requests. [`Policies::validate`] judges one request, and
//! [`Policies::mutate`] changes its object first.
//! [`type_check`] holds the expressions of one policy against the types of what it matches, for its status.
//!
//! # Guarantees
//! - An expression is compiled once, whatever number of policies has it and however often policies are compiled again.
//! - What expressions may cost together is bounded for each policy, binding and param, as upstream bounds it; variables are made
//!   when they are first asked for and paid by who asks.
//! - Policies and their bindings are never judged by policies, which could otherwise lock their own removal out.
//! - A failure is a denial, or ignored where the policy's `failurePolicy` says so. What a validation says of a request never is.
//!
//! # Caveats
//! Policies are judged in the order of their names, and so are the bindings of each; upstream's order is that of a hash table. Only
//! the first denial is told, which is upstream's own way.
//!
//! Policies that mutate one object as several of its versions see what those before them have made of it; upstream keeps only what the
//! last version was given. Bytes, durations and moments are refused as parts of an object: an expression has to make texts of them.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/policy`.

mod bound;
mod compile;
mod conditions;
mod evaluate;
mod expression;
mod matching;
mod mutate;
mod params;
mod patch;
mod rejected;
mod type_check;
mod validate;

use skiff_webhook::admission::Host;

pub use compile::Policies;
pub use mutate::SchemaOf;
pub use params::{Params, Scope};
pub use type_check::{ExpressionWarning, kinds_to_check, type_check};

/// What policies ask of whoever serves the request.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub host: &'a dyn Host,
    pub params: &'a dyn Params,
}
