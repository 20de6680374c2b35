//! Why running an expression gave no value. A fault is a value to `&&` and `||`: the other side may decide.

use std::sync::Arc;

/// Source: the words of cel-go and of Kubernetes' libraries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("no such key: {0}")]
    NoSuchKey(Arc<str>),
    #[error("index out of bounds: {0}")]
    OutOfBounds(Arc<str>),
    #[error("no such overload")]
    NoSuchOverload,
    /// A function that takes no such arguments.
    #[error("no such overload: {0}")]
    NoOverloadOf(Arc<str>),
    #[error("division by zero")]
    DivisionByZero,
    #[error("modulus by zero")]
    ModulusByZero,
    #[error("{0} overflow")]
    Overflow(&'static str),
    #[error("no such attribute(s): {0}")]
    NoSuchVariable(Arc<str>),
    #[error("{0}")]
    Other(Arc<str>),
    /// More work than the limit lets an expression do.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
    /// Whoever asked for the value does not wait for it any more.
    #[error("operation interrupted")]
    Interrupted,
}

impl Fault {
    pub(crate) fn other(message: impl Into<Arc<str>>) -> Fault {
        Fault::Other(message.into())
    }

    pub(crate) fn conversion(from: &str, to: &str) -> Fault {
        Fault::other(format!("type conversion error from '{from}' to '{to}'"))
    }

    /// Whether it ends the whole run, whatever stands around it.
    pub(crate) fn ends_the_run(&self) -> bool {
        matches!(self, Fault::CostLimit | Fault::Interrupted)
    }
}
