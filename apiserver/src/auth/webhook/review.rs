//! The `SubjectAccessReview` that a webhook is sent of a question, and how match conditions see it.
//!
//! Source: `plugin/pkg/authorizer/webhook` of apiserver, and `convertObjectToUnstructured` of its `authorization/cel`.

use serde_json::{Map, Value, json};

use crate::auth::attributes::Attributes;

/// The version of the reviews that a webhook speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V1beta1,
}

impl Version {
    pub(crate) fn parse(text: &str) -> Option<Version> {
        match text {
            "v1" => Some(Version::V1),
            "v1beta1" => Some(Version::V1beta1),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V1beta1 => "v1beta1",
        }
    }

    fn groups(self) -> &'static str {
        match self {
            Version::V1 => "groups",
            Version::V1beta1 => "group",
        }
    }
}

/// What is asked, with every field, also those that say nothing; selectors only if there are such.
pub(super) fn spec(asked: &Attributes<'_>) -> Value {
    let user = asked.user;
    let mut spec = json!({"user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
    if !asked.is_resource {
        spec["nonResourceAttributes"] = json!({"path": asked.path, "verb": asked.verb});
        return spec;
    }
    let mut resource = json!({
        "namespace": asked.namespace, "verb": asked.verb, "group": asked.group, "version": asked.version,
        "resource": asked.resource, "subresource": asked.subresource, "name": asked.name,
    });
    let operator = |must_equal: bool| if must_equal { "In" } else { "NotIn" };
    let fields = asked.fields.iter().map(
        |(key, must_equal, value)| json!({"key": key, "operator": operator(*must_equal), "values": [value]}),
    );
    let labels = asked
        .labels
        .iter()
        .map(|term| json!({"key": term.key, "operator": term.operator, "values": term.values}));
    if !asked.fields.is_empty() {
        resource["fieldSelector"] = json!({"requirements": fields.collect::<Vec<_>>()});
    }
    if !asked.labels.is_empty() {
        resource["labelSelector"] = json!({"requirements": labels.collect::<Vec<_>>()});
    }
    spec["resourceAttributes"] = resource;
    spec
}

/// The document that is sent, of a [`spec`]: what says nothing is left out.
pub(super) fn document(mut spec: Value, version: Version) -> Value {
    for part in ["resourceAttributes", "nonResourceAttributes"] {
        if let Some(Value::Object(part)) = spec.get_mut(part) {
            leave_out_empty(part);
            let requirements = part.get_mut("labelSelector").map(|selector| &mut selector["requirements"]);
            let requirements = requirements.and_then(Value::as_array_mut).into_iter().flatten();
            requirements.filter_map(Value::as_object_mut).for_each(leave_out_empty);
        }
    }
    if let Value::Object(spec) = &mut spec {
        leave_out_empty(spec);
        if let Some(groups) = spec.remove("groups") {
            spec.insert(version.groups().to_owned(), groups);
        }
    }
    json!({
        "kind": "SubjectAccessReview",
        "apiVersion": format!("authorization.k8s.io/{}", version.as_str()),
        "metadata": {},
        "spec": spec,
        "status": {"allowed": false},
    })
}

fn leave_out_empty(map: &mut Map<String, Value>) {
    map.retain(|_, value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use crate::request::{Query, RequestInfo};

    #[test]
    fn a_webhook_is_told_who_asks_for_what_by_which_selectors() {
        let mut user = UserInfo { name: "ann".into(), groups: vec!["devs".into()], ..UserInfo::default() };
        user.extra.insert("scopes".into(), vec!["a".into()]);
        let query =
            "fieldSelector=spec.nodeName%3Dn,status.phase!%3DFailed&labelSelector=tier%20in%20(b,a),!old,new";
        let info = RequestInfo::parse("GET", "/api/v1/namespaces/x/pods", &Query::parse(query));
        let seen = spec(&Attributes::of(&user, &info));
        // Match conditions see every field, also those that say nothing.
        assert_eq!(
            seen["resourceAttributes"]["labelSelector"]["requirements"][0],
            json!({"key": "new", "operator": "Exists", "values": []})
        );
        assert_eq!((&seen["uid"], &seen["resourceAttributes"]["name"]), (&"".into(), &"".into()));
        let told = document(seen, Version::V1beta1);
        assert_eq!(told["apiVersion"], "authorization.k8s.io/v1beta1");
        assert_eq!(
            told["spec"],
            json!({
                "user": "ann", "group": ["devs"], "extra": {"scopes": ["a"]},
                "resourceAttributes": {
                    "namespace": "x", "verb": "list", "version": "v1", "resource": "pods",
                    "fieldSelector": {"requirements": [
                        {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                        {"key": "status.phase", "operator": "NotIn", "values": ["Failed"]},
                    ]},
                    "labelSelector": {"requirements": [
                        {"key": "new", "operator": "Exists"},
                        {"key": "old", "operator": "DoesNotExist"},
                        {"key": "tier", "operator": "In", "values": ["a", "b"]},
                    ]},
                },
            })
        );
        let info = RequestInfo::parse("GET", "/healthz", &Query::default());
        let told = document(spec(&Attributes::of(&user, &info)), Version::V1);
        assert_eq!(told["spec"]["nonResourceAttributes"], json!({"path": "/healthz", "verb": "get"}));
        assert_eq!(told["spec"]["groups"], json!(["devs"]));
    }
}
