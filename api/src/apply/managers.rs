//! `metadata.managedFields`: who owns which parts, since when, and by which operation.
//!
//! Source: `internal/managedfields.go`, `capmanagers.go` and `conflict.go` of apimachinery's `util/managedfields`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::element::ReadError;
use super::set::Set;

/// How many managers of updates an object keeps; the oldest become one.
const MAX_UPDATE_MANAGERS: usize = 10;
const OLDEST: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who a manager is. An applier is the same whatever version it applies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    /// Empty for appliers.
    api_version: String,
    pub(super) subresource: String,
}

impl Manager {
    pub(super) fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Manager {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Manager {
            name: name.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

impl Manager {
    /// In upstream's order a manager of a subresource comes before that of the whole.
    fn rank(&self) -> (&str, Operation, &str, bool, &str) {
        (&self.name, self.operation, &self.api_version, self.subresource.is_empty(), &self.subresource)
    }
}

impl PartialOrd for Manager {
    fn partial_cmp(&self, other: &Manager) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Manager {
    fn cmp(&self, other: &Manager) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// `"kubectl" with subresource "status" using apps/v1`
impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) set: Set,
    /// The version that the set is of.
    pub(super) api_version: String,
    /// RFC 3339, whole seconds; empty where it is not known.
    pub(super) time: String,
}

/// All managers of an object. Those that own nothing are not kept once a change is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Managers(pub(super) BTreeMap<Manager, Owned>);

/// Why the managers that an object tells cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManagersError {
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    #[error("apiVersion must not be empty")]
    ApiVersion,
    #[error("missing fieldsType in managed fields entry {0}")]
    NoType(usize),
    #[error("invalid fieldsType {found:?} in managed fields entry {at}")]
    Type { found: String, at: usize },
    #[error("the fields of managed fields entry {at} cannot be read: {source}")]
    Fields { at: usize, source: ReadError },
}

impl Managers {
    /// Reads `managedFields`; null is nobody.
    pub(super) fn read(entries: &Value) -> Result<Managers, ManagersError> {
        let mut managers = BTreeMap::new();
        for (at, entry) in entries.as_array().into_iter().flatten().enumerate() {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err(ManagersError::Operation),
            };
            let api_version = text("apiVersion").to_owned();
            if api_version.is_empty() {
                return Err(ManagersError::ApiVersion);
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(ManagersError::NoType(at)),
                found => return Err(ManagersError::Type { found: found.to_owned(), at }),
            }
            let set =
                Set::from_json(&entry["fieldsV1"]).map_err(|source| ManagersError::Fields { at, source })?;
            let manager = Manager::new(text("manager"), operation, &api_version, text("subresource"));
            managers.insert(manager, Owned { set, api_version, time: text("time").to_owned() });
        }
        Ok(Managers(managers))
    }

    /// As `managedFields`, in upstream's order; none where nobody owns anything.
    pub(super) fn write(&self) -> Option<Value> {
        let mut entries: Vec<(&Manager, &Owned)> = self.0.iter().collect();
        entries.sort_by_key(|(manager, owned)| {
            (manager.operation, &owned.time, &manager.name, &owned.api_version, &manager.subresource)
        });
        let entries: Vec<Value> = entries.into_iter().map(|(manager, owned)| entry(manager, owned)).collect();
        (!entries.is_empty()).then_some(Value::Array(entries))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets those that own nothing.
    pub(super) fn prune(&mut self) {
        self.0.retain(|_, owned| !owned.set.is_empty());
    }

    /// Makes one of the oldest managers of updates where there are too many.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(String, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.operation == Operation::Update)
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        let mut n_left = updaters.len();
        updaters.sort();
        let mut first_of_version: BTreeMap<String, Manager> = BTreeMap::new();
        for (_, manager) in updaters {
            if n_left <= MAX_UPDATE_MANAGERS {
                return;
            }
            let Some(version) = self.0.get(&manager).map(|owned| owned.api_version.clone()) else { continue };
            let Some(first) = first_of_version.get(&version) else {
                first_of_version.insert(version, manager);
                continue;
            };
            let bucket = Manager::new(OLDEST, Operation::Update, &version, "");
            if !self.0.contains_key(&bucket)
                && let Some(owned) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), owned);
            }
            if let Some(later) = self.0.remove(&manager) {
                let before = self.0.remove(&bucket).map(|owned| owned.set).unwrap_or_default();
                self.0.insert(bucket, Owned { set: before.union(later.set), ..later });
            }
            n_left -= 1;
        }
    }
}

fn entry(manager: &Manager, owned: &Owned) -> Value {
    let mut entry = Map::new();
    let mut insert = |field: &str, text: &str| {
        if !text.is_empty() {
            entry.insert(field.into(), text.into());
        }
    };
    insert("manager", &manager.name);
    insert("operation", manager.operation.as_str());
    insert("apiVersion", &owned.api_version);
    insert("time", &owned.time);
    insert("fieldsType", "FieldsV1");
    insert("subresource", &manager.subresource);
    entry.insert("fieldsV1".into(), owned.set.to_json());
    Value::Object(entry)
}

/// Whether a client asks for all managers to be forgotten: it sent a list of none, or of one that says nothing.
pub(super) fn is_reset(entries: &Value) -> bool {
    match entries.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([entry]) => *entry == json!({}),
        _ => false,
    }
}
