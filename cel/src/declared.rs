//! The functions that expressions may call, and which Kubernetes version brought them.
//!
//! Source: the overloads of cel-go's standard library and of the libraries in `k8s.io/apiserver/pkg/cel/environment`.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

/// One way of calling a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub id: String,
    pub is_member: bool,
    /// What it stands behind first, if it does.
    pub args: Vec<Type>,
    pub result: Type,
    /// The minor version that brought it.
    pub since: u8,
}

/// Stands for the version of what only mutations may call.
pub(crate) const ONLY_PATCHES: u8 = u8::MAX;

/// Every function by its name.
pub(crate) fn overloads(name: &str) -> Option<&'static [Overload]> {
    static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(read);
    TABLE.get(name).map(Vec::as_slice)
}

/// `id function args -> result`, where `.` before the name says that the function stands behind its first argument, and `@`
/// stands for each type that can be compared, `#` for each that can be summed. A number alone is the minor version that what
/// follows came with, 255 for what is not for every expression.
const TABLE: &str = include_str!("declared.txt");

fn read() -> HashMap<&'static str, Vec<Overload>> {
    let mut table: HashMap<&'static str, Vec<Overload>> = HashMap::new();
    let mut since = 0;
    for line in TABLE.lines() {
        if let Ok(version) = line.parse() {
            since = version;
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(id), Some(name)) = (words.next(), words.next()) else { continue };
        let rest: Vec<&str> = words.collect();
        let (is_member, name) = name.strip_prefix('.').map_or((false, name), |name| (true, name));
        let kinds: &[&str] = match (id.contains("_@"), id.contains("_#")) {
            (true, _) => &["int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"],
            (_, true) => &["int", "uint", "double", "duration"],
            _ => &[""],
        };
        for kind in kinds {
            let put =
                |text: &str| if kind.is_empty() { text.to_string() } else { text.replace(['@', '#'], kind) };
            let mut types: Vec<Type> =
                rest.iter().filter(|word| **word != "->").map(|word| type_of(&put(word))).collect();
            let result = types.pop().unwrap_or(Type::Error);
            let overload = Overload { id: put(id), is_member, args: types, result, since };
            table.entry(name).or_default().push(overload);
        }
    }
    table
}

/// Reads `list(A)`, `map(K,V)`, `optional(V)` and names.
fn type_of(text: &str) -> Type {
    let inside =
        |name: &str| text.strip_prefix(name).and_then(|rest| rest.strip_prefix('(')?.strip_suffix(')'));
    if let Some(inner) = inside("list") {
        return Type::list(type_of(inner));
    }
    if let Some(inner) = inside("optional") {
        return Type::optional(type_of(inner));
    }
    if let Some((key, value)) = inside("map").and_then(|inner| inner.split_once(',')) {
        return Type::map(type_of(key), type_of(value));
    }
    if let Some(inner) = inside("type") {
        return Type::Type(type_of(inner).into());
    }
    named(text).unwrap_or_else(|| match text.chars().next() {
        Some(first) if text.len() == 1 => Type::Param(first),
        _ => Type::object(text),
    })
}

/// A type that has a name of its own.
fn named(text: &str) -> Option<Type> {
    Some(match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        _ => return None,
    })
}

/// Types that are called by their name, since which version.
pub(crate) fn type_named(name: &str, version: u8) -> Option<Type> {
    let type_ = match name {
        "bool" | "int" | "uint" | "double" | "string" | "bytes" => named(name)?,
        "null_type" => Type::Null,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => return Some(Type::Type(Type::AnyType.into())),
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "optional_type" if version >= 28 => Type::optional(Type::Dyn),
        "net.IP" | "net.CIDR" if version >= 30 => named(name)?,
        _ => return None,
    };
    Some(Type::Type(type_.into()))
}
