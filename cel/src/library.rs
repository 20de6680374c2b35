//! The functions that expressions call. Each name has one body, which goes by what it is given.
//!
//! Source: cel-go's standard library and `ext`, Kubernetes' `k8s.io/apiserver/pkg/cel/library`, to their words.

mod authorizer;
mod convert;
mod format;
mod lists;
mod net;
mod numbers;
mod optional;
mod pattern;
mod print;
mod quantity;
mod semver;
mod text;
pub(crate) mod time;
mod url;

use std::sync::Arc;

pub use authorizer::{Authorizer, Check, Decision, Subject};
pub(crate) use format::Format;
pub(crate) use net::Cidr;
pub use pattern::Pattern;
pub(crate) use print::{Clause, clauses, quoted, shown};

use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::types::Type;
use crate::value::{Text, Value, has_room_for_items};

pub(crate) fn is_url(text: &str) -> bool {
    url::request_uri(text).is_ok()
}

/// What runs have besides their variables.
#[derive(Clone, Copy, Default)]
pub(crate) struct Host<'h> {
    pub authorizer: Option<&'h dyn Authorizer>,
}

pub(crate) type Function = for<'a> fn(&Call, &[Value<'a>], &Host<'_>) -> Run<'a>;

/// Values of Kubernetes' libraries.
#[derive(Clone, Debug)]
pub enum Library {
    Url(Arc<url::Url>),
    Quantity(quantity::Quantity),
    Ip(std::net::IpAddr),
    Cidr(Cidr),
    Semver(Arc<semver::Semver>),
    Format(&'static Format),
    /// A question to the authorizer that is being put together.
    Check(Arc<Check>),
    Decision(Arc<Decision>),
}

impl Library {
    pub fn type_of(&self) -> Type {
        Type::object(match self {
            Library::Url(_) => "kubernetes.URL",
            Library::Quantity(_) => "kubernetes.Quantity",
            Library::Ip(_) => return Type::Opaque("net.IP"),
            Library::Cidr(_) => return Type::Opaque("net.CIDR"),
            Library::Semver(_) => "kubernetes.Semver",
            Library::Format(_) => "kubernetes.NamedFormat",
            Library::Check(check) => check.stage.type_name(),
            Library::Decision(_) => "kubernetes.authorization.Decision",
        })
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Library::Ip(std::net::IpAddr::V4(_)) => 4,
            Library::Ip(std::net::IpAddr::V6(_)) => 16,
            Library::Cidr(cidr) => u64::from(cidr.length).div_ceil(8),
            _ => 1,
        }
    }

    pub(crate) fn equals(&self, other: &Library) -> bool {
        match (self, other) {
            (Library::Url(a), Library::Url(b)) => a.text == b.text,
            (Library::Quantity(a), Library::Quantity(b)) => a.nanos == b.nanos,
            (Library::Ip(a), Library::Ip(b)) => a == b,
            (Library::Cidr(a), Library::Cidr(b)) => a == b,
            (Library::Semver(a), Library::Semver(b)) => a.compare(b).is_eq(),
            (Library::Format(a), Library::Format(b)) => a.name == b.name,
            (Library::Check(a), Library::Check(b)) => a == b,
            (Library::Decision(a), Library::Decision(b)) => a == b,
            _ => false,
        }
    }
}

pub(crate) fn function(name: &str) -> Option<Function> {
    [
        numbers::function,
        convert::function,
        text::function,
        lists::function,
        time::function,
        pattern::function,
        optional::function,
        quantity::function,
        semver::function,
        net::function,
        url::function,
        format::function,
        authorizer::function,
    ]
    .into_iter()
    .find_map(|of| of(name))
}

/// What a function says that takes no such arguments.
fn no_overload(call: &Call, args: &[Value<'_>]) -> Fault {
    let types: Vec<String> = args.iter().map(|arg| arg.type_of().name().to_string()).collect();
    Fault::NoOverloadOf(format!("{}({})", call.name, types.join(", ")).into())
}

fn library<'a>(value: Library) -> Run<'a> {
    Ok(Value::Library(value))
}

fn texts<'a, 't>(texts: impl Iterator<Item = &'t str>) -> Run<'a> {
    let mut items = Vec::new();
    for text in texts {
        has_room_for_items(items.len() + 1)?;
        items.push(Value::text(text));
    }
    Ok(Value::list(items))
}

/// A part of a text that may be borrowed.
fn slice<'a>(text: &Text<'a>, start: usize, end: usize) -> Value<'a> {
    match text {
        Text::Borrowed(text) => Value::Text(Text::Borrowed(&text[start..end])),
        Text::Owned(text) => Value::text(&text[start..end]),
    }
}
