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

/// Of a type that is shown no more parts are written: types can be larger than any text.
const MAX_SHOWN_PARTS: usize = 1_000;

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_within(self, f, &mut { MAX_SHOWN_PARTS })
    }
}

fn write_within(type_: &Type, f: &mut fmt::Formatter<'_>, n_left: &mut usize) -> fmt::Result {
    let Some(rest) = n_left.checked_sub(1) else { return f.write_str("…") };
    *n_left = rest;
    let (name, inner): (&str, [Option<&Type>; 2]) = match type_ {
        Type::Null => return f.write_str("null"),
        Type::Duration => return f.write_str("duration"),
        Type::Timestamp => return f.write_str("timestamp"),
        Type::Var(n) => return write!(f, "_var{n}"),
        Type::Param(name) => return write!(f, "{name}"),
        Type::List(element) => ("list", [Some(element), None]),
        Type::Map(both) => ("map", [Some(&both.0), Some(&both.1)]),
        Type::Optional(inner) => ("optional_type", [Some(inner), None]),
        Type::Type(inner) => ("type", [Some(inner), None]),
        other => return f.write_str(other.name()),
    };
    write!(f, "{name}(")?;
    for (at, inner) in inner.into_iter().flatten().enumerate() {
        if at > 0 {
            f.write_str(", ")?;
        }
        if *n_left == 0 {
            return f.write_str("…");
        }
        write_within(inner, f, n_left)?;
    }
    f.write_str(")")
}
