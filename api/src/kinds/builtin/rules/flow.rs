//! Which requests share a queue, and how long the queues are.

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, Path, has, is_true, list, number, text};
use super::walk::{Below, Walk};

pub(super) fn schema<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    const MOST: i64 = 10_000;
    let root = Path::ROOT;
    let (spec, path, faults) = (&value["spec"], root.child("spec"), &mut walk.faults);
    let (precedence, field) = (number(spec, "matchingPrecedence"), path.child("matchingPrecedence"));
    let shown = json!(precedence);
    if precedence <= 0 {
        faults.invalid(&field, &shown, "must be a positive value");
    }
    if precedence > MOST {
        faults.invalid(&field, &shown, &format!("must not be greater than {MOST}"));
    }
    if precedence == 1 && text(&value["metadata"], "name") != "exempt" {
        faults.invalid(&field, &shown, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let (method, methods) = (&spec["distinguisherMethod"], ["ByNamespace", "ByUser"]);
    if has(spec, "distinguisherMethod") && !methods.contains(&text(method, "type")) {
        let field = path.child("distinguisherMethod");
        faults.not_supported(&field.child("type"), method, &methods);
    }
    let (level, field) =
        (text(&spec["priorityLevelConfiguration"], "name"), path.child("priorityLevelConfiguration"));
    if level.is_empty() {
        faults.required(&field.child("name"), "must reference a priority level");
    } else if let Some(fault) = Format::Subdomain.fault(level) {
        faults.invalid(&field.child("name"), &level.into(), &fault);
    }
    let field = path.child("rules");
    for (at, rule) in list(spec, "rules").iter().enumerate() {
        rules(faults, rule, &field.index(at));
    }
    Below::All
}

fn rules(faults: &mut Faults, rule: &Value, path: &Path<'_>) {
    let (subjects, field) = (list(rule, "subjects"), path.child("subjects"));
    if subjects.is_empty() {
        faults.required(&field, "subjects must contain at least one value");
    }
    for (at, subject) in subjects.iter().enumerate() {
        one_subject(faults, subject, &field.index(at));
    }
    let (resources, others) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        faults.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let field = path.child("resourceRules");
    for (at, rule) in resources.iter().enumerate() {
        resource_rule(faults, rule, &field.index(at));
    }
    let field = path.child("nonResourceRules");
    for (at, rule) in others.iter().enumerate() {
        let path = field.index(at);
        verbs(faults, rule, &path.child("verbs"));
        let field = path.child("nonResourceURLs");
        if !any_or_some(faults, rule, "nonResourceURLs", "non-resource URLs", &field) {
            for (at, url) in list(rule, "nonResourceURLs").iter().enumerate() {
                path_pattern(faults, url, &field.index(at));
            }
        }
    }
}

fn one_subject(faults: &mut Faults, subject: &Value, path: &Path<'_>) {
    const KINDS: [(&str, &str); 3] =
        [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = text(subject, "kind");
    let Some((_, field)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return faults.not_supported(&path.child("kind"), &kind.into(), &["Group", "ServiceAccount", "User"]);
    };
    for (name, other) in KINDS.iter().filter(|(_, other)| other != field && has(subject, other)) {
        faults.forbidden(
            &path.child(other),
            &format!("{other} is forbidden when subject kind is not '{name}'"),
        );
    }
    let (value, path) = (&subject[*field], path.child(field));
    if !value.is_object() {
        return faults.required(&path, &format!("{field} is required when subject kind is '{kind}'"));
    }
    let name = text(value, "name");
    if name.is_empty() {
        faults.required(&path.child("name"), "");
    }
    if kind != "ServiceAccount" {
        return;
    }
    if !name.is_empty()
        && name != "*"
        && let Some(fault) = Format::Subdomain.fault(name)
    {
        faults.invalid(&path.child("name"), &name.into(), &fault);
    }
    let (namespace, field) = (text(value, "namespace"), path.child("namespace"));
    if namespace.is_empty() {
        faults.required(&field, "must specify namespace for service account");
    } else if let Some(fault) = Format::Label.fault(namespace) {
        faults.invalid(&field, &namespace.into(), &fault);
    }
}

/// Whether a list is `*`, or is wrong in that it is empty or has more beside `*`.
fn any_or_some(faults: &mut Faults, rule: &Value, field: &str, what: &str, path: &Path<'_>) -> bool {
    let given = list(rule, field);
    if given.is_empty() {
        faults.required(path, &format!("{field} must contain at least one value"));
        return true;
    }
    let is_any = given.iter().any(|entry| entry == "*");
    if is_any && given.len() > 1 {
        faults.invalid(path, &rule[field], &format!("if '*' is present, must not specify other {what}"));
    }
    is_any
}

fn verbs(faults: &mut Faults, rule: &Value, path: &Path<'_>) {
    const VERBS: [&str; 9] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    if !any_or_some(faults, rule, "verbs", "verbs", path) {
        let is_known = |verb: &Value| verb.as_str().is_some_and(|verb| VERBS.contains(&verb));
        if !list(rule, "verbs").iter().all(is_known) {
            faults.not_supported(path, &rule["verbs"], &VERBS);
        }
    }
}

fn resource_rule(faults: &mut Faults, rule: &Value, path: &Path<'_>) {
    verbs(faults, rule, &path.child("verbs"));
    any_or_some(faults, rule, "apiGroups", "api groups", &path.child("apiGroups"));
    any_or_some(faults, rule, "resources", "resources", &path.child("resources"));
    let (namespaces, field) = (list(rule, "namespaces"), path.child("namespaces"));
    if namespaces.is_empty() {
        if !is_true(rule, "clusterScope") {
            let why = "resource rules that are not cluster scoped must supply at least one namespace";
            faults.required(&field, why);
        }
    } else if !any_or_some(faults, rule, "namespaces", "namespaces", &field) {
        for (at, namespace) in namespaces.iter().enumerate() {
            if let Some(fault) = Format::Label.fault(namespace.as_str().unwrap_or_default()) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {fault}");
                faults.invalid(&field.index(at), namespace, &why);
            }
        }
    }
}

/// A path that may end in `/*`.
fn path_pattern(faults: &mut Faults, url: &Value, path: &Path<'_>) {
    let given = url.as_str().unwrap_or_default();
    if given.is_empty() {
        return faults.invalid(path, url, "must not be empty");
    }
    if given == "/" {
        return;
    }
    let why = if !given.starts_with('/') {
        "must start with slash"
    } else if given.contains(' ') {
        "must not contain white-space"
    } else if given.contains("//") {
        "must not contain double slash"
    } else if given.strip_suffix("/*").unwrap_or(given).contains('*') {
        "wildcard can only do suffix matching"
    } else {
        return;
    };
    faults.invalid(path, url, why);
}

pub(super) fn level<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    let (spec, path, faults) = (&value["spec"], root.child("spec"), &mut walk.faults);
    let (type_, field) = (text(spec, "type"), path.child("type"));
    if (text(&value["metadata"], "name") == "exempt") != (type_ == "Exempt") {
        faults.invalid(&field, &type_.into(), "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match type_ {
        "Exempt" => {
            if has(spec, "limited") {
                faults.forbidden(&path.child("limited"), "must be nil if the type is not Limited");
            }
            shares(faults, &spec["exempt"], &path.child("exempt"));
        }
        "Limited" => {
            if has(spec, "exempt") {
                faults.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
            }
            let field = path.child("limited");
            if !has(spec, "limited") {
                faults.required(&field, "must not be empty when type is Limited");
            } else {
                shares(faults, &spec["limited"], &field);
                response(faults, &spec["limited"]["limitResponse"], &field.child("limitResponse"));
            }
        }
        other => {
            if has(spec, "limited") {
                faults.forbidden(&path.child("limited"), "");
            }
            match other {
                "" => faults.required(&field, ""),
                _ => faults.not_supported(&field, &other.into(), &["Exempt", "Limited"]),
            }
        }
    }
    Below::All
}

fn shares(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    if number(value, "nominalConcurrencyShares") < 0 {
        let field = path.child("nominalConcurrencyShares");
        faults.invalid(&field, &value["nominalConcurrencyShares"], "must be a non-negative integer");
    }
    if !(0..=100).contains(&number(value, "lendablePercent")) {
        let field = path.child("lendablePercent");
        faults.invalid(&field, &value["lendablePercent"], "must be between 0 and 100, inclusive");
    }
    if number(value, "borrowingLimitPercent") < 0 {
        let field = path.child("borrowingLimitPercent");
        faults.invalid(
            &field,
            &value["borrowingLimitPercent"],
            "if specified, must be a non-negative integer",
        );
    }
}

fn response(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    let (type_, field) = (text(value, "type"), path.child("queuing"));
    match type_ {
        "Reject" => {
            if has(value, "queuing") {
                faults.forbidden(&field, "must be nil if limited.limitResponse.type is not Limited");
            }
        }
        "Queue" if !has(value, "queuing") => {
            faults.required(&field, "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => queues(faults, &value["queuing"], &field),
        other => {
            if has(value, "queuing") {
                faults.forbidden(&field, "");
            }
            match other {
                "" => faults.required(&path.child("type"), ""),
                _ => faults.not_supported(&path.child("type"), &other.into(), &["Queue", "Reject"]),
            }
        }
    }
}

fn queues(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const MAX_QUEUES: i64 = 10_000_000;
    const MAX_BITS: f64 = 60.0;
    let [limit, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|field| number(value, field));
    if limit <= 0 {
        faults.invalid(&path.child("queueLengthLimit"), &json!(limit), "must be positive");
    }
    let field = path.child("queues");
    if queues <= 0 {
        faults.invalid(&field, &json!(queues), "must be positive");
    } else if queues > MAX_QUEUES {
        faults.invalid(&field, &json!(queues), &format!("must not be greater than {MAX_QUEUES}"));
    }
    let field = path.child("handSize");
    if hand <= 0 {
        faults.invalid(&field, &json!(hand), "must be positive");
    } else if hand > queues {
        faults.invalid(&field, &json!(hand), &format!("should not be greater than queues ({queues})"));
    } else {
        // Each card of a hand is drawn from what is left of the deck; past the limit there is no need to count on.
        let mut bits = 0.0;
        for drawn in 0..hand.min(64) {
            bits += ((queues - drawn) as f64).log2();
        }
        if bits.ceil() > MAX_BITS {
            let why = format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_BITS}"
            );
            faults.invalid(&field, &json!(hand), &why);
        }
    }
}
