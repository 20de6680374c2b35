//! What a review of access asks, read from its `spec`.
//!
//! Source: kube-apiserver's `registry/authorization/util`.

use serde_json::Value;
use skiff_api::{Cause, FieldSelector, LabelSelector, Status};

use crate::auth::UserInfo;
use crate::auth::attributes::Attributes;
use crate::request::LabelTerm;

/// Whether a user may do something.
pub(super) struct Question<'s> {
    spec: &'s Value,
    user: &'s UserInfo,
    fields: Vec<(String, bool, String)>,
    labels: Vec<LabelTerm>,
    /// What of its selectors was not understood. They only narrow, so that without them more is asked for.
    pub(super) faults: Vec<String>,
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

impl<'s> Question<'s> {
    /// # Errors
    /// 422 for a review that asks of no resource and no path, or of both.
    pub(super) fn read(kind: &str, spec: &'s Value, user: &'s UserInfo) -> Result<Question<'s>, Status> {
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let mut causes = Vec::new();
        if resource.is_null() == path.is_null() {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            causes.push(Cause::invalid("spec.resourceAttributes", resource, why));
        }
        if user.name.is_empty() && user.groups.is_empty() {
            let why = "at least one of user or group must be specified";
            causes.push(Cause::invalid("spec.user", &Value::from(""), why));
        }
        if !causes.is_empty() {
            return Err(Status::invalid("authorization.k8s.io", kind, "", causes));
        }
        let mut question =
            Question { spec, user, fields: Vec::new(), labels: Vec::new(), faults: Vec::new() };
        let (fields, is_whole) = field_terms(&resource["fieldSelector"]);
        question.note(is_whole, "fieldSelector", fields.is_empty());
        let (labels, is_whole) = label_terms(&resource["labelSelector"]);
        question.note(is_whole, "labelSelector", labels.is_empty());
        Ok(Question { fields, labels, ..question })
    }

    fn note(&mut self, is_whole: bool, selector: &str, is_empty: bool) {
        if !is_whole {
            let how = if is_empty { "ignored" } else { "partially ignored" };
            self.faults.push(format!("spec.resourceAttributes.{selector} {how} due to parse error"));
        }
    }

    pub(super) fn namespace(&self) -> &str {
        text(&self.spec["resourceAttributes"], "namespace")
    }

    pub(super) fn attributes(&self) -> Attributes<'_> {
        let (resource, path) = (&self.spec["resourceAttributes"], &self.spec["nonResourceAttributes"]);
        let of = if resource.is_null() { path } else { resource };
        let version = Some(text(of, "version")).filter(|version| !version.is_empty());
        Attributes {
            is_resource: path.is_null(),
            version: version.unwrap_or("*"),
            subresource: text(of, "subresource"),
            namespace: text(of, "namespace"),
            name: text(of, "name"),
            path: text(of, "path"),
            fields: &self.fields,
            labels: &self.labels,
            ..Attributes::on(self.user, text(of, "verb"), text(of, "group"), text(of, "resource"))
        }
    }
}

/// The terms of a field selector, and whether all of it was understood.
fn field_terms(selector: &Value) -> (Vec<(String, bool, String)>, bool) {
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        return FieldSelector::parse(raw).map_or((Vec::new(), false), |parsed| (parsed.terms, true));
    }
    let (mut terms, mut is_whole) = (Vec::new(), true);
    for requirement in selector["requirements"].as_array().into_iter().flatten() {
        let must_equal = match text(requirement, "operator") {
            "In" => Some(true),
            "NotIn" => Some(false),
            _ => None,
        };
        match (must_equal, texts(&requirement["values"]).as_slice()) {
            (Some(must_equal), [one]) => {
                terms.push((text(requirement, "key").to_owned(), must_equal, one.clone()));
            }
            _ => is_whole = false,
        }
    }
    (terms, is_whole)
}

/// The same of a label selector.
fn label_terms(selector: &Value) -> (Vec<LabelTerm>, bool) {
    let raw = text(selector, "rawSelector");
    if !raw.is_empty() {
        let parsed = LabelSelector::parse(raw);
        return parsed.map_or((Vec::new(), false), |parsed| (LabelTerm::of(&parsed), true));
    }
    let (mut terms, mut is_whole) = (Vec::new(), true);
    for requirement in selector["requirements"].as_array().into_iter().flatten() {
        let values = texts(&requirement["values"]);
        let operator = match text(requirement, "operator") {
            "In" if !values.is_empty() => "In",
            "NotIn" if !values.is_empty() => "NotIn",
            "Exists" if values.is_empty() => "Exists",
            "DoesNotExist" if values.is_empty() => "DoesNotExist",
            _ => {
                is_whole = false;
                continue;
            }
        };
        terms.push(LabelTerm { key: text(requirement, "key").to_owned(), operator, values });
    }
    (terms, is_whole)
}

/// Whom a review asks about.
pub(super) fn user_of(spec: &Value) -> UserInfo {
    UserInfo {
        name: text(spec, "user").to_owned(),
        uid: text(spec, "uid").to_owned(),
        groups: texts(&spec["groups"]),
        extra: spec["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), texts(v))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_that_is_understood_in_part_narrows_by_that_part() {
        let user = UserInfo::new("u", &[]);
        let spec = json!({"resourceAttributes": {
            "verb": "list", "resource": "pods", "namespace": "a",
            "fieldSelector": {"requirements": [
                {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                {"key": "status.phase", "operator": "Exists"},
            ]},
            "labelSelector": {"requirements": [{"key": "x", "operator": "Like", "values": ["y"]}]},
        }});
        let question = Question::read("SubjectAccessReview", &spec, &user).expect("a question");
        let asked = question.attributes();
        assert_eq!(asked.fields, [("spec.nodeName".to_owned(), true, "n".to_owned())]);
        assert_eq!((asked.labels.len(), asked.version), (0, "*"));
        assert_eq!(
            question.faults,
            [
                "spec.resourceAttributes.fieldSelector partially ignored due to parse error",
                "spec.resourceAttributes.labelSelector ignored due to parse error",
            ]
        );
    }
}
