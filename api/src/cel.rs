//! Expressions within objects: which names each kind of them may speak of, and what is said of one that cannot answer yes or no.
//!
//! Source: the environments of `k8s.io/apiserver/pkg/admission/plugin/cel` and of `k8s.io/dynamic-resource-allocation/cel`.

use std::sync::{Arc, LazyLock};

use skiff_cel::{Environment, Range, Rejected, Sizes, Type, Types};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("compilation failed: {0}")]
    Rejected(Rejected),
    #[error("must evaluate to bool but got {0}")]
    NotBool(Type),
    #[error("must evaluate to bool or the unknown type, not {0}")]
    NeitherBoolNorDyn(Type),
    #[error("too complex, exceeds cost limit")]
    TooComplex,
}

/// What an expression is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Whether a webhook is asked about a request.
    MatchCondition,
    /// Whether a device is wanted.
    Device,
}

/// Checks an expression that must answer yes or no.
pub(crate) fn check(expression: &str, purpose: Purpose) -> Result<(), Error> {
    static DEVICE: LazyLock<Environment> = LazyLock::new(device);
    let environment = match purpose {
        Purpose::MatchCondition => match_conditions(),
        Purpose::Device => &DEVICE,
    };
    let program = environment.compile(expression).map_err(Error::Rejected)?;
    match program.output() {
        Type::Bool => Ok(()),
        // A device's attributes are of any type, so that what answers may only be known when it runs.
        Type::Dyn if purpose == Purpose::Device => Ok(()),
        other if purpose == Purpose::Device => Err(Error::NeitherBoolNorDyn(other.clone())),
        other => Err(Error::NotBool(other.clone())),
    }?;
    if purpose == Purpose::Device && program.estimate(&Devices).max > MAX_DEVICE_COST {
        return Err(Error::TooComplex);
    }
    Ok(())
}

/// The names that match conditions of webhooks may use. Their variables are `object`, `oldObject`, `request`, `namespaceObject`,
/// `authorizer` and `authorizer.requestResource`.
pub fn match_conditions() -> &'static Environment {
    static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(match_condition);
    &ENVIRONMENT
}

/// As much may a device selector cost.
const MAX_DEVICE_COST: u64 = 1_000_000;

/// How large what is known of a device may be, in upstream's limits.
struct Devices;

impl Sizes for Devices {
    fn size(&self, path: &[Arc<str>], _: &Type) -> Option<Range> {
        let path: Vec<&str> = path.iter().map(|part| &**part).collect();
        let max = match path.as_slice() {
            ["device", "driver"] | ["device", "attributes" | "capacity", "@keys"] => 63,
            ["device", "attributes" | "capacity"]
            | ["device", "attributes" | "capacity", "@values"]
            | ["device", "attributes" | "capacity", "@values", "@keys"] => 32,
            ["device", "attributes", "@values", _] => 64,
            _ => return None,
        };
        Some(Range { min: 0, max })
    }
}

fn match_condition() -> Environment {
    Environment::default()
        .types(Objects)
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable("namespaceObject", Type::object("kubernetes.Namespace"))
        .variable("request", Type::object("kubernetes.AdmissionRequest"))
        .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
        .variable("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"))
}

fn device() -> Environment {
    Environment::default().types(Objects).bindings().variable("device", Type::object("kubernetes.DRADevice"))
}

/// The objects that expressions are given: requests, namespaces and devices.
pub struct Objects;

impl Types for Objects {
    fn field(&self, object: &str, field: &str) -> Option<Type> {
        let named = |name: &str| Type::object(&format!("kubernetes.{name}"));
        let of_texts = |value: Type| Type::map(Type::String, value);
        Some(match (object.strip_prefix("kubernetes.")?, field) {
            ("GroupVersionKind", "group" | "version" | "kind")
            | ("GroupVersionResource", "group" | "version" | "resource")
            | ("UserInfo", "username" | "uid")
            | (
                "AdmissionRequest",
                "requestSubResource" | "subResource" | "name" | "namespace" | "operation",
            )
            | ("DRADevice", "driver")
            | ("NamespaceMetadata", "name" | "generateName" | "namespace" | "UID" | "resourceVersion")
            | ("NamespaceStatus", "phase")
            | ("NamespaceCondition", "status" | "type" | "message" | "reason") => Type::String,
            ("NamespaceMetadata", "creationTimestamp" | "deletionTimestamp")
            | ("NamespaceCondition", "lastTransitionTime") => Type::Timestamp,
            ("NamespaceStatus", "conditions") => Type::list(named("NamespaceCondition")),
            ("UserInfo", "groups")
            | ("NamespaceMetadata", "finalizers")
            | ("NamespaceSpec", "finalizers") => Type::list(Type::String),
            ("UserInfo", "extra") => of_texts(Type::list(Type::String)),
            ("AdmissionRequest", "kind" | "requestKind") => named("GroupVersionKind"),
            ("AdmissionRequest", "resource" | "requestResource") => named("GroupVersionResource"),
            ("AdmissionRequest", "userInfo") => named("UserInfo"),
            ("AdmissionRequest", "dryRun") | ("DRADevice", "allowMultipleAllocations") => Type::Bool,
            ("AdmissionRequest", "options") => Type::Dyn,
            ("Namespace", "metadata") => named("NamespaceMetadata"),
            ("Namespace", "spec") => named("NamespaceSpec"),
            ("Namespace", "status") => named("NamespaceStatus"),
            ("NamespaceMetadata", "generation" | "deletionGracePeriodSeconds") => Type::Int,
            ("NamespaceMetadata", "labels" | "annotations") => of_texts(Type::String),
            ("DRADevice", "attributes") => of_texts(of_texts(Type::Dyn)),
            ("DRADevice", "capacity") => of_texts(of_texts(named("Quantity"))),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a condition is one, and what is said if not.
    #[track_caller]
    fn checked(expression: &str, wanted: Result<(), &str>) {
        let found = check(expression, Purpose::MatchCondition);
        match (&found, wanted) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(words)) if error.to_string().contains(words) => {}
            _ => panic!("{expression}: {found:?}, wanted {wanted:?}"),
        }
    }

    #[test]
    fn what_answers_yes_or_no_is_an_expression() {
        for good in [
            "true",
            "object.a == 'x'",
            "object.list.all(x, x.size() < 3 && x in ['a', \"b\"])",
            "has(object.a) && object.a[0].?b.orValue(false)",
            "!object.a ? 1 < 2.0 : request.name >= 'x' // why not",
            "object.map(a, [1, 2,]) == [[-object.n % 2]]",
            "object.items.exists(i, v, i < 3 && v == b'x')",
            "quantity(object.a).isGreaterThan(quantity('1Gi'))",
            "request.userInfo.groups.exists(g, g == 'system:masters')",
            "authorizer.group('').resource('pods').check('get').allowed()",
            "authorizer.requestResource.check('get').allowed()",
            "request.namespace == namespaceObject.metadata.name",
        ] {
            checked(good, Ok(()));
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in [
            "",
            " ",
            "a..b",
            "-",
            "/a",
            "../x",
            "$(A)",
            "a b",
            "127.0.0.1",
            "object.",
            "(true",
            "true)",
            "[1,,2]",
            "'a",
            "'a\nb'",
            "'\\q'",
            "é",
            "{true}",
            "object ? true",
            "f(,)",
            "`a",
            "true ||",
            "0x",
        ] {
            let error = check(bad, Purpose::MatchCondition).expect_err(bad).to_string();
            assert!(error.starts_with("compilation failed: ERROR: <input>:"), "{bad:?}: {error}");
        }
        checked("if", Err("reserved identifier: if"));
    }

    #[test]
    fn what_names_nothing_or_is_no_answer_is_refused() {
        checked("a", Err("undeclared reference to 'a' (in container '')"));
        checked("a.example.com", Err("undeclared reference"));
        checked("object.all(x, y)", Err("undeclared reference"));
        checked("object.all(x, true) && x", Err("undeclared reference"));
        checked("device.driver == 'x'", Err("undeclared reference"));
        checked("request.nothing", Err("undefined field 'nothing'"));
        for (text, type_) in [
            ("1", "int"),
            ("'x'", "string"),
            ("[true]", "list(bool)"),
            ("null", "null"),
            ("1 + 2", "int"),
            ("-1.5", "double"),
            ("size(object)", "int"),
            ("object", "dyn"),
        ] {
            checked(text, Err(&format!("must evaluate to bool but got {type_}")));
        }
        for text in ["1 == 'a'", "!1", "'a' - 'b'", "1 in 'a'", "1 < 'a'"] {
            checked(text, Err("found no matching overload"));
        }
        checked("1 && true", Err("expected type 'bool' but found 'int'"));
        checked("'a'.b", Err("type 'string' does not support field selection"));
    }

    #[test]
    fn devices_are_asked_by_their_own_names() {
        for good in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['gpu.example.com'].model.startsWith('A')",
            "device.attributes['gpu.example.com'].is_shared",
            "device.capacity['gpu.example.com'].memory.compareTo(quantity('8Gi')) >= 0",
            "cel.bind(gpu, device.attributes['gpu.example.com'], gpu.a && gpu.b)",
        ] {
            check(good, Purpose::Device).expect(good);
        }
        for (bad, words) in [
            ("device", "must evaluate to bool or the unknown type, not kubernetes.DRADevice"),
            ("device.driver", "must evaluate to bool or the unknown type, not string"),
            ("device.nothing", "undefined field 'nothing'"),
            ("object.a == 1", "undeclared reference to 'object'"),
            ("device.driver + 1 == 2", "found no matching overload"),
        ] {
            let error = check(bad, Purpose::Device).expect_err(bad).to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn a_selector_of_devices_may_cost_so_much() {
        let nested = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, a == b)))";
        check(nested, Purpose::Device).expect(nested);
        let too_much = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, \
                        device.attributes.all(d, a == b))))";
        assert!(matches!(check(too_much, Purpose::Device), Err(Error::TooComplex)));
    }

    #[test]
    fn what_is_nested_without_end_is_refused() {
        let nested = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
        checked(&nested(200), Ok(()));
        checked(&nested(300), Err("expression recursion limit exceeded: 250"));
        checked(&"[".repeat(90_000), Err("expression recursion limit exceeded: 250"));
        checked(&format!("true{}", " && true".repeat(10_000)), Ok(()));
    }
}
