//! Types of expressions, as far as they are known before anything runs.

use std::fmt;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Whatever it turns out to be.
    Dyn,
    /// Of a part that is wrong, so that what is around it is not called wrong too.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    /// Keys and values.
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// A type of a library that null is no value of, such as `net.IP`.
    Opaque(&'static str),
    /// Something with fields, by name; [`Types`] knows them. Types of libraries that upstream keeps as objects too.
    Object(Arc<str>),
    /// The type of a type.
    Type(Arc<Type>),
    /// The type of `type` itself.
    AnyType,
    /// A type that is still to be found.
    Var(u32),
    /// A type that the declaration of a function leaves open.
    Param(char),
}

/// Where the fields of objects are looked up, so that a schema can supply them.
pub trait Types {
    /// The type of a field of the object that is named, if both exist.
    fn field(&self, object: &str, field: &str) -> Option<Type>;

    /// Whether objects of this name may be made by an expression.
    fn exists(&self, _object: &str) -> bool {
        false
    }
}

/// No objects at all.
impl Types for () {
    fn field(&self, _: &str, _: &str) -> Option<Type> {
        None
    }
}

impl Type {
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new((key, value)))
    }

    pub fn optional(inner: Type) -> Type {
        Type::Optional(Arc::new(inner))
    }

    pub fn object(name: &str) -> Type {
        Type::Object(name.into())
    }

    /// The type's own name, as `type(x)` says it.
    pub fn name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Error => "!error!",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(_) => "list",
            Type::Map(_) => "map",
            Type::Optional(_) => "optional_type",
            Type::Opaque(name) => name,
            Type::Object(name) => name,
            Type::Type(_) | Type::AnyType => "type",
            Type::Var(_) | Type::Param(_) => "dyn",
        }
    }

    /// A type of a fixed size, whatever its values are.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Null => f.write_str("null"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(element) => write!(f, "list({element})"),
            Type::Map(both) => write!(f, "map({}, {})", both.0, both.1),
            Type::Optional(inner) => write!(f, "optional_type({inner})"),
            Type::Type(inner) => write!(f, "type({inner})"),
            Type::Var(n) => write!(f, "_var{n}"),
            Type::Param(name) => write!(f, "{name}"),
            other => f.write_str(other.name()),
        }
    }
}
