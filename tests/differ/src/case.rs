//! One request, as its difference from an object.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Which part of an object a request is about, and whether it is meant.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A dry run of the object itself.
    #[default]
    Main,
    /// A dry run of its `status`.
    Status,
    /// A dry run of its `scale`.
    Scale,
    /// A creation that is meant: what is read afterwards is the answer, and then it is deleted.
    Real,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Main, Scope::Status, Scope::Scale, Scope::Real];

    pub fn is_main(&self) -> bool {
        *self == Scope::Main
    }

    /// What follows the object's path.
    pub fn subresource(self) -> &'static str {
        match self {
            Scope::Main | Scope::Real => "",
            Scope::Status => "/status",
            Scope::Scale => "/scale",
        }
    }

    /// What follows the kind in tables.
    pub fn text(self) -> &'static str {
        match self {
            Scope::Main => "",
            Scope::Status => "/status",
            Scope::Scale => "/scale",
            Scope::Real => ", written and read",
        }
    }
}

/// How the object is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    Create,
    Update,
    JsonPatch,
    MergePatch,
    StrategicPatch,
}

pub const OPERATIONS: [Operation; 5] = [
    Operation::Create,
    Operation::Update,
    Operation::JsonPatch,
    Operation::MergePatch,
    Operation::StrategicPatch,
];

impl Operation {
    pub fn content_type(self) -> &'static str {
        match self {
            Operation::Create | Operation::Update => "application/json",
            Operation::JsonPatch => "application/json-patch+json",
            Operation::MergePatch => "application/merge-patch+json",
            Operation::StrategicPatch => "application/strategic-merge-patch+json",
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::JsonPatch => "json patch",
            Operation::MergePatch => "merge patch",
            Operation::StrategicPatch => "strategic patch",
        }
    }
}

/// One change of a document: a value is set, or taken away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Edit {
    /// Keys and indexes from the root.
    pub at: Vec<Step>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub set: Option<Value>,
}

/// `null` is a value to set, which is not the same as none.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Step {
    Index(usize),
    Key(String),
}

impl Edit {
    /// Applies it to a document; nothing happens where the parent is not there.
    pub fn apply(&self, document: &mut Value) {
        let Some((last, parents)) = self.at.split_last() else { return };
        let mut at = document;
        for step in parents {
            let next = match step {
                Step::Index(index) => at.get_mut(*index),
                Step::Key(key) => at.get_mut(key.as_str()),
            };
            let Some(next) = next else { return };
            at = next;
        }
        match (at, last, &self.set) {
            (Value::Object(map), Step::Key(key), Some(value)) => {
                map.insert(key.clone(), value.clone());
            }
            (Value::Object(map), Step::Key(key), None) => {
                map.remove(key);
            }
            (Value::Array(list), Step::Index(index), Some(value)) if *index < list.len() => {
                list[*index] = value.clone();
            }
            (Value::Array(list), Step::Index(index), None) if *index < list.len() => {
                list.remove(*index);
            }
            _ => {}
        }
    }

    fn pointer(&self) -> String {
        let part = |step: &Step| match step {
            Step::Index(index) => index.to_string(),
            Step::Key(key) => key.replace('~', "~0").replace('/', "~1"),
        };
        self.at.iter().map(|step| format!("/{}", part(step))).collect()
    }

    /// As an operation of a JSON patch.
    fn operation(&self) -> Value {
        match &self.set {
            Some(value) if matches!(self.at.last(), Some(Step::Index(_))) => {
                json!({"op": "replace", "path": self.pointer(), "value": value})
            }
            Some(value) => json!({"op": "add", "path": self.pointer(), "value": value}),
            None => json!({"op": "remove", "path": self.pointer()}),
        }
    }

    /// Adds it to a merge patch: nested maps down to the value, or to the whole list that holds it.
    fn merge_into(&self, patch: &mut Value, changed: &Value) {
        let (mut at, mut source) = (patch, changed);
        for (n, step) in self.at.iter().enumerate() {
            let Step::Key(key) = step else { return };
            let ends = n + 1 == self.at.len() || matches!(self.at[n + 1], Step::Index(_));
            if !at.is_object() {
                *at = json!({});
            }
            let next = source.get(key.as_str()).unwrap_or(&Value::Null);
            if ends {
                at[key.as_str()] = next.clone();
                return;
            }
            at = &mut at[key.as_str()];
            source = next;
        }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Of a [`crate::objects::Subject`].
    pub subject: String,
    pub operation: Operation,
    pub edits: Vec<Edit>,
    /// Last, and not written where it says nothing new: the names of older cases stay.
    #[serde(default, skip_serializing_if = "Scope::is_main")]
    pub scope: Scope,
}

impl Case {
    /// The body: `authored` is the object as we wrote it, `stored` as the asked side has it.
    pub fn body(&self, authored: &Value, stored: &Value) -> Value {
        let mut changed = if self.operation == Operation::Create { authored } else { stored }.clone();
        self.edits.iter().for_each(|edit| edit.apply(&mut changed));
        match self.operation {
            Operation::Create | Operation::Update => changed,
            Operation::JsonPatch => self.edits.iter().map(Edit::operation).collect(),
            Operation::MergePatch | Operation::StrategicPatch => {
                let mut patch = json!({});
                self.edits.iter().for_each(|edit| edit.merge_into(&mut patch, &changed));
                patch
            }
        }
    }

    /// The same for the same case, in every version.
    pub fn id(&self) -> String {
        // FNV-1a: nobody chooses cases so that they collide.
        let text = serde_json::to_string(self).unwrap_or_default();
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// What it does, for people.
    pub fn text(&self) -> String {
        let edit = |edit: &Edit| match &edit.set {
            Some(value) => {
                let value: String = value.to_string().chars().take(120).collect();
                format!("{} = {value}", edit.pointer())
            }
            None => format!("{} away", edit.pointer()),
        };
        let edits: Vec<String> = self.edits.iter().map(edit).collect();
        format!("{} {}{}: {}", self.operation.text(), self.subject, self.scope.text(), edits.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_is_the_same_in_every_form() {
        let object = json!({"a": {"b": [{"c": 1}], "d~/e": 2}});
        let case = |operation, edits| Case { subject: String::new(), operation, edits, scope: Scope::Main };
        let key = |key: &str| Step::Key(key.into());
        let set = Edit { at: vec![key("a"), key("b"), Step::Index(0), key("c")], set: Some(json!(null)) };
        let removal = Edit { at: vec![key("a"), key("d~/e")], set: None };
        let edits = vec![set, removal];
        assert_eq!(
            case(Operation::Create, edits.clone()).body(&object, &Value::Null),
            json!({"a": {"b": [{"c": null}]}})
        );
        assert_eq!(
            case(Operation::JsonPatch, edits.clone()).body(&Value::Null, &object),
            json!([{"op": "add", "path": "/a/b/0/c", "value": null}, {"op": "remove", "path": "/a/d~0~1e"}])
        );
        assert_eq!(
            case(Operation::MergePatch, edits.clone()).body(&Value::Null, &object),
            json!({"a": {"b": [{"c": null}], "d~/e": null}})
        );
        let text = serde_json::to_string(&edits).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Edit>>(&text).unwrap(), edits);
    }
}
