//! The kinds that a CustomResourceDefinition declares.
//!
//! Source: apiextensions-apiserver's `pkg/apiserver/customresource_handler.go`.

use std::cmp::Ordering;
use std::sync::Arc;

use serde_json::Value;

use super::{Generation, Kind, Origin, Scope, Storage, Traits};
use crate::Object;
use crate::meta::Meta;
use crate::schema::{ReadError, Schema, TypeId, TypeRef};
use crate::strategy::Plain;
use crate::table::{Cell, Column};

/// What only a kind of a CustomResourceDefinition has, in one version.
pub struct Custom {
    /// The name of the definition.
    pub definition: Arc<str>,
    /// The `uid` of the definition.
    pub uid: Arc<str>,
    pub list_kind: String,
    pub is_served: bool,
    /// Objects are stored in this version.
    pub is_stored: bool,
    /// What whoever uses the version is warned of.
    pub deprecation: Option<String>,
    /// The schema as its author wrote it.
    pub open_api: Arc<Value>,
    pub scale: Option<Scaled>,
    pub conversion: Arc<Conversion>,
    /// The selectable fields of all versions: what a cache notes of each object, whatever version is asked for.
    pub selectable: Arc<[Arc<str>]>,
}

/// Where the `scale` of an object lies in it: names of fields, from the outermost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scaled {
    pub wanted: Box<[Box<str>]>,
    pub counted: Box<[Box<str>]>,
    pub selector: Option<Box<[Box<str>]>>,
}

/// How objects get from one version of their kind to another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Nothing but their `apiVersion` changes.
    None,
    /// A webhook is asked: `spec.conversion.webhook` of the definition.
    Webhook(Value),
}

#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("{definition} has no {field}")]
    Missing { definition: String, field: &'static str },
    #[error("the schema of version {version} of {definition} cannot be read")]
    Schema { definition: String, version: String, source: ReadError },
}

/// The kinds that an accepted definition declares, one a version, those that are not served too. The names are those that it
/// was given, which may not be all it asks for; the versions are in the order of discovery.
pub fn kinds_of(definition: &Object) -> Result<Vec<Kind>, DefinitionError> {
    let spec = &definition["spec"];
    let mut versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    versions.sort_by(|a, b| priority(text(a, "name")).cmp(&priority(text(b, "name"))).reverse());
    let conversion = match text(&spec["conversion"], "strategy") {
        "Webhook" => Conversion::Webhook(spec["conversion"]["webhook"].clone()),
        _ => Conversion::None,
    };
    let mut fields: Vec<Arc<str>> = versions.iter().flat_map(|version| selectable(version)).collect();
    fields.sort();
    fields.dedup();
    let shared = Shared { conversion: Arc::new(conversion), selectable: fields.into() };
    versions.iter().map(|version| kind_of(definition, version, &versions, &shared)).collect()
}

/// What all versions of a definition have in common.
struct Shared {
    conversion: Arc<Conversion>,
    selectable: Arc<[Arc<str>]>,
}

fn selectable(version: &Value) -> Vec<Arc<str>> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields.map(|field| text(field, "jsonPath").trim_start_matches('.').into()).collect()
}

fn kind_of(
    definition: &Object,
    version: &Value,
    versions: &[&Value],
    shared: &Shared,
) -> Result<Kind, DefinitionError> {
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let missing = |field| DefinitionError::Missing { definition: definition.name().to_owned(), field };
    let needed = |value: &Value, name: &str, field| match text(value, name) {
        "" => Err(missing(field)),
        text => Ok(text.to_owned()),
    };
    let group = needed(spec, "group", "spec.group")?;
    let kind = needed(names, "kind", "status.acceptedNames.kind")?;
    let plural = needed(names, "plural", "status.acceptedNames.plural")?;
    let name = needed(version, "name", "spec.versions.name")?;
    let open_api = Arc::new(version["schema"]["openAPIV3Schema"].clone());
    let schema = Schema::of_custom(&open_api).map_err(|source| DefinitionError::Schema {
        definition: definition.name().to_owned(),
        version: name.clone(),
        source,
    })?;
    let root = root_of(&schema).ok_or_else(|| missing("schema of an object"))?;
    let mut columns = vec![Column::name()];
    match version["additionalPrinterColumns"].as_array().filter(|columns| !columns.is_empty()) {
        Some(declared) => columns.extend(declared.iter().map(column)),
        None => columns.push(Column { kind: "date".into(), ..Column::age() }),
    }
    let subresources = &version["subresources"];
    let offered = ["scale", "status"].into_iter().filter(|name| subresources[*name].is_object());
    let custom = Custom {
        definition: definition.name().into(),
        uid: definition.uid().into(),
        list_kind: needed(names, "listKind", "status.acceptedNames.listKind")?,
        is_served: version["served"] == true,
        is_stored: version["storage"] == true,
        deprecation: deprecation(spec, version, versions),
        open_api,
        scale: scaled(&subresources["scale"]),
        conversion: shared.conversion.clone(),
        selectable: shared.selectable.clone(),
    };
    Ok(Kind {
        version: name,
        singular: text(names, "singular").to_owned(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        scope: if spec["scope"] == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        storage: Storage::Stored,
        subresources: offered.map(str::to_owned).collect(),
        registry_folder: format!("{group}/{plural}"),
        schema: TypeRef { schema: Arc::new(schema), id: root },
        columns,
        selectable: selectable(version),
        traits: TRAITS,
        strategy: &Plain,
        origin: Origin::Custom(Box::new(custom)),
        group,
        kind,
        plural,
    })
}

/// As the strategy of `pkg/registry/customresource` has it.
const TRAITS: Traits = Traits {
    takes_any_finalizer: true,
    needs_version: true,
    kept_metadata: &["labels", "annotations", "finalizers", "generateName"],
    generation: Generation::Content,
    ..Traits::DEFAULT
};

fn root_of(schema: &Schema) -> Option<TypeId> {
    match schema.root()?.shape {
        crate::schema::Shape::Object(id) => Some(id),
        _ => None,
    }
}

fn column(declared: &Value) -> Column {
    let (path, type_) = (text(declared, "jsonPath"), text(declared, "type").to_owned());
    let path = crate::table::JsonPath::parse(path).ok();
    Column {
        name: text(declared, "name").to_owned().into(),
        kind: type_.clone().into(),
        format: text(declared, "format").to_owned().into(),
        description: Some(text(declared, "description").into()),
        priority: declared["priority"].as_i64().unwrap_or_default(),
        cell: Cell::Read(Arc::new(move |object, now_s| match &path {
            Some(path) => path.cell(&type_, object, now_s),
            None => Value::Null,
        })),
    }
}

fn scaled(scale: &Value) -> Option<Scaled> {
    let path = |field| -> Option<Box<[Box<str>]>> {
        let path = text(scale, field).trim_start_matches('.');
        (!path.is_empty()).then(|| path.split('.').map(Box::from).collect())
    };
    Some(Scaled {
        wanted: path("specReplicasPath")?,
        counted: path("statusReplicasPath")?,
        selector: path("labelSelectorPath"),
    })
}

/// What to use instead of an old version: the newest that is neither old nor older.
fn deprecation(spec: &Value, version: &Value, versions: &[&Value]) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    if let Some(told) = version["deprecationWarning"].as_str() {
        return Some(told.to_owned());
    }
    let (group, kind) = (text(spec, "group"), text(&spec["names"], "kind"));
    let name = text(version, "name");
    let is_better = |other: &&&Value| {
        other["served"] == true
            && other["deprecated"] != true
            && priority(text(other, "name")) > priority(name)
    };
    let mut warning = format!("{group}/{name} {kind} is deprecated");
    if let Some(better) = versions.iter().find(is_better) {
        warning.push_str(&format!("; use {group}/{} {kind}", text(better, "name")));
    }
    Some(warning)
}

/// How clients rank versions: `v2`, `v1`, `v1beta1`, `v1alpha1`, then others by name backwards.
///
/// Source: `CompareKubeAwareVersionStrings` of apimachinery's `pkg/version`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Priority<'n> {
    Other(std::cmp::Reverse<&'n str>),
    /// How stable, then the numbers.
    Version(u8, u64, u64),
}

fn priority(name: &str) -> Priority<'_> {
    known_version(name).unwrap_or(Priority::Other(std::cmp::Reverse(name)))
}

fn known_version(name: &str) -> Option<Priority<'_>> {
    let number = |text: &str| {
        let is_number =
            !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        if is_number { text.parse::<u64>().ok() } else { None }
    };
    let rest = name.strip_prefix('v')?;
    for (stage, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(stage) {
            return Some(Priority::Version(stability, number(major)?, number(minor)?));
        }
    }
    Some(Priority::Version(2, number(rest)?, 0))
}

/// How discovery orders the versions of a group: what is ranked first comes first.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    priority(a).cmp(&priority(b)).reverse()
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked_as_clients_rank_them() {
        let ranked =
            ["v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "foo1", "foo10"];
        let mut shuffled = ranked;
        shuffled.sort_unstable();
        shuffled.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(shuffled, ranked);
    }
}
