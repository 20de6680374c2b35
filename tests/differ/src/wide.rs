//! Changes of what objects have beside themselves: their `status`, their `scale`; and creations that are meant.

use std::collections::HashSet;

use serde_json::{Value, json};
use skiff_api::schema::{Shape, TypeRef};

use crate::case::{Case, Edit, OPERATIONS, Operation, Scope, Step};
use crate::mutate::{Corpus, Random, Walk};
use crate::objects::Subject;

/// How many whole statuses are made up for an object: most objects of ours have none to change.
const STATUSES: usize = 24;

/// Kinds of which a real object changes what others may be, or cannot be deleted again without controllers.
const LASTING: [&str; 16] = [
    "APIService",
    "CSIDriver",
    "FlowSchema",
    "IPAddress",
    "LimitRange",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "ResourceQuota",
    "ServiceAccount",
    "ServiceCIDR",
    "StorageClass",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// So many cases of a scope, other than that of the objects themselves.
pub fn cases(subjects: &[Subject], corpus: &Corpus, scope: Scope, seed: u64, count: usize) -> Vec<Case> {
    let mut random = Random::new(seed ^ scope as u64);
    let mut all = Vec::new();
    for subject in subjects {
        let edits = match scope {
            Scope::Main => Vec::new(),
            Scope::Status => status(subject, corpus, &mut random),
            Scope::Scale => scale(subject, corpus, &mut random),
            Scope::Real => whole(subject, corpus, &mut random),
        };
        for (n, edit) in edits.iter().enumerate() {
            let mut together = vec![edit.clone()];
            if n % 8 == 7 {
                together.push(random.of(&edits).clone());
            }
            let operation = match scope {
                Scope::Real => Operation::Create,
                _ => *random.of(&OPERATIONS[1..]),
            };
            all.push(Case { subject: subject.id.clone(), operation, edits: together, scope });
        }
    }
    random.shuffle(&mut all);
    // Two that are equal would meet under one name.
    let mut seen = HashSet::new();
    all.retain(|case| seen.insert(case.id()));
    all.truncate(count);
    all
}

fn key(name: &str) -> Step {
    Step::Key(name.into())
}

fn status(subject: &Subject, corpus: &Corpus, random: &mut Random) -> Vec<Edit> {
    let kind = &subject.kind;
    let schema = &kind.schema.schema;
    let Some(field) = schema.get(kind.schema.id).field("status").filter(|_| kind.has_subresource("status"))
    else {
        return Vec::new();
    };
    let walk = Walk { schema, corpus };
    let mut edits = Vec::new();
    for _ in 0..STATUSES {
        edits.push(Edit { at: vec![key("status")], set: Some(walk.some(&field.node.shape, random, 0)) });
    }
    let whole = walk.some(&field.node.shape, random, 0);
    walk.edits(&field.node.shape, &whole, &mut vec![key("status")], random, &mut edits);
    // What lies below a field that is not there changes nothing: the field comes with it.
    for edit in &mut edits {
        let mut changed = json!({ "status": whole });
        if edit.at.len() > 1 {
            edit.apply(&mut changed);
            *edit = Edit { at: vec![key("status")], set: changed.get("status").cloned() };
        }
    }
    // The rest of the object is not its status's.
    edits.push(Edit { at: vec![key("spec")], set: Some(json!({})) });
    for field in ["labels", "annotations"] {
        edits.push(Edit { at: vec![key("metadata"), key(field)], set: Some(json!({"k": "v"})) });
    }
    edits.push(Edit { at: vec![key("metadata"), key("finalizers")], set: Some(json!(["example.com/f"])) });
    edits
}

fn scale(subject: &Subject, corpus: &Corpus, random: &mut Random) -> Vec<Edit> {
    let Some(type_) =
        TypeRef::builtin("io.k8s.api.autoscaling.v1.Scale").filter(|_| subject.kind.has_subresource("scale"))
    else {
        return Vec::new();
    };
    let walk = Walk { schema: &type_.schema, corpus };
    let mut edits = Vec::new();
    let given =
        json!({"metadata": {"name": subject.name()}, "spec": {"replicas": 2}, "status": {"replicas": 0}});
    walk.edits(&Shape::Object(type_.id), &given, &mut Vec::new(), random, &mut edits);
    // Which version it is of differs from server to server.
    edits.retain(|edit| !edit.at.iter().any(|step| *step == key("resourceVersion") || *step == key("uid")));
    edits
}

fn whole(subject: &Subject, corpus: &Corpus, random: &mut Random) -> Vec<Edit> {
    let kind = &subject.kind;
    if LASTING.contains(&kind.kind.as_str()) {
        return Vec::new();
    }
    let walk = Walk { schema: &kind.schema.schema, corpus };
    let mut edits = Vec::new();
    walk.edits(&Shape::Object(kind.schema.id), &subject.object, &mut Vec::new(), random, &mut edits);
    // Its name is its own, what keeps it would keep it for ever, and it is not on any node.
    let is_kept =
        |edit: &Edit| edit.at.first() == Some(&key("metadata")) && edit.at.get(1) != Some(&key("labels"));
    edits.retain(|edit| !is_kept(edit) && edit.set != Some(Value::Null));
    edits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects;

    #[test]
    fn every_scope_has_cases_and_no_two_of_a_real_creation_meet() {
        let subjects = objects::all().unwrap();
        let corpus = Corpus::of(&subjects);
        for scope in [Scope::Status, Scope::Scale, Scope::Real] {
            let all = cases(&subjects, &corpus, scope, 1, 300);
            assert!(all.len() > 100, "{scope:?}: {}", all.len());
            assert!(all.iter().all(|case| case.scope == scope));
            assert_eq!(all, cases(&subjects, &corpus, scope, 1, 300));
        }
        let real = cases(&subjects, &corpus, Scope::Real, 2, 3000);
        let names: HashSet<String> = real.iter().map(Case::id).collect();
        assert_eq!(names.len(), real.len());
    }
}
