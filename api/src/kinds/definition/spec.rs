//! What is wrong with a definition, but for its schemas.
//!
//! Source: `validation.go` of apiextensions-apiserver's `pkg/apis/apiextensions/validation`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::faults::{invalid, invalid_shown, invalid_text, label, one_of, subdomain};
use super::options::Options;
use super::view::{Spec, at, has_status};
use super::{conversion, fields, open_api, shown};
use crate::Cause;
use crate::kinds::builtin::rules::path::{Faults, Path, has, is_true, list, text};

pub(super) fn check(faults: &mut Faults, spec: &Spec<'_>, options: &Options<'_>) {
    let root = Path::ROOT;
    let path = root.child("spec");
    let value = spec.value;
    group(faults, text(value, "group"), &path.child("group"));
    one_of(faults, &path.child("scope"), text(value, "scope"), &["Cluster", "Namespaced"]);
    let options = &schemas(faults, spec, options, &path);
    versions(faults, spec, options, &path);
    let names_at = path.child("names");
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(at(value, "names"), name).is_empty() {
            faults.required(&names_at.child(name), "");
        }
    }
    names(faults, at(value, "names"), &names_at);
    let any_status = spec.versions.iter().any(|version| has_status(at(version, "subresources")));
    let first = options.for_version(spec.versions.first().map_or("", |first| text(first, "name")));
    open_api::check(faults, spec.for_all("schema"), any_status, &first, &path.child("validation"));
    fields::subresources(faults, spec.for_all("subresources"), &path.child("subresources"));
    columns(faults, spec.for_all("additionalPrinterColumns"), &path);
    for_all_selectable(faults, spec, options, &path);
    conversion::check(faults, spec, options, &path.child("conversion"));
}

fn group(faults: &mut Faults, group: &str, path: &Path<'_>) {
    let ill_formed = subdomain(group);
    if group.is_empty() {
        faults.required(path, "");
    } else if !ill_formed.is_empty() {
        invalid_text(faults, path, group, &ill_formed.join(","));
    } else if !group.contains('.') {
        invalid_text(faults, path, group, "should be a domain with at least one dot");
    }
}

/// Which schemas there must be, and what is expected of them.
fn schemas<'o>(faults: &mut Faults, spec: &Spec<'_>, options: &Options<'o>, path: &Path<'_>) -> Options<'o> {
    let mut options = options.clone();
    let preserves = spec.preserves();
    options.structural |= !preserves;
    let of_all = at(spec.for_all("schema"), "openAPIV3Schema");
    if of_all.is_null() {
        let field = path.child("versions");
        for (index, version) in spec.versions.iter().enumerate() {
            if !at(spec.of_one(version, "schema"), "openAPIV3Schema").is_null() {
                continue;
            }
            let why = if options.schemas {
                ""
            } else if !preserves && is_true(version, "served") {
                "because otherwise all fields are pruned"
            } else {
                continue;
            };
            faults.required(&field.index(index).child("schema").child("openAPIV3Schema"), why);
        }
    }
    let any =
        |is: &mut dyn FnMut(&Value) -> bool| spec.schemas().any(|schema| super::view::any_schema(schema, is));
    if any(&mut |schema| has(schema, "default")) {
        options.structural = true;
        if preserves {
            let why = "must be false in order to use defaults in the schema";
            invalid(faults, &path.child("preserveUnknownFields"), &Value::Bool(true), why);
        }
    }
    options.structural |= any(&mut has_extension);
    options
}

fn has_extension(schema: &Value) -> bool {
    is_true(schema, "x-kubernetes-embedded-resource")
        || has(schema, "x-kubernetes-preserve-unknown-fields")
        || is_true(schema, "x-kubernetes-int-or-string")
        || !list(schema, "x-kubernetes-list-map-keys").is_empty()
        || has(schema, "x-kubernetes-list-type")
        || !list(schema, "x-kubernetes-validations").is_empty()
}

fn versions(faults: &mut Faults, spec: &Spec<'_>, options: &Options<'_>, path: &Path<'_>) {
    let field = path.child("versions");
    let (mut names, with_status) = (HashSet::new(), spec.with_status());
    let mut is_unique = true;
    for (index, version) in spec.versions.iter().enumerate() {
        let (path, name) = (field.index(index), text(version, "name"));
        is_unique &= names.insert(name);
        let ill_formed = label(name);
        if !ill_formed.is_empty() {
            invalid_text(faults, &path.child("name"), name, &ill_formed.join(","));
        }
        let status = with_status.contains(name);
        version_by_itself(faults, spec, version, status, options, &path);
    }
    // That versions say the same each for itself cannot be: then it is said for all.
    let shown = || shown::versions(spec.versions, |name| !spec.is_shared(name));
    if !is_unique {
        invalid_shown(faults, &field, &shown(), "must contain unique version names");
    }
    if spec.versions.iter().filter(|version| is_true(version, "storage")).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        invalid_shown(faults, &field, &shown(), why);
    }
    if let Some(first) = spec.versions.first() {
        let ill_formed = label(text(first, "name"));
        if !ill_formed.is_empty() && !text(first, "name").is_empty() {
            invalid_text(faults, &path.child("version"), text(first, "name"), &ill_formed.join(","));
        }
    }
}

fn version_by_itself(
    faults: &mut Faults,
    spec: &Spec<'_>,
    version: &Value,
    has_status: bool,
    options: &Options<'_>,
    path: &Path<'_>,
) {
    deprecation(faults, version, &path.child("deprecationWarning"));
    let own = |name: &str| if spec.is_shared(name) { &Value::Null } else { at(version, name) };
    let options = &options.for_version(text(version, "name"));
    open_api::check(faults, own("schema"), has_status, options, &path.child("schema"));
    fields::subresources(faults, own("subresources"), &path.child("subresources"));
    columns(faults, own("additionalPrinterColumns"), path);
    let selectable = own("selectableFields").as_array().map_or(&[][..], Vec::as_slice);
    if selectable.is_empty() {
        return;
    }
    let field = path.child("selectableFields");
    let schema = at(own("schema"), "openAPIV3Schema");
    if schema.is_null() {
        let why = "may only be set when `version.schema.openAPIV3Schema` is not included";
        return invalid_text(faults, &field, "", why);
    }
    if let Err(why) = super::structural::read(schema) {
        invalid_text(faults, &path.child("schema.openAPIV3Schema"), "", &why);
    }
    let may_be_many = options.may_have_many_selectable(Some(text(version, "name")));
    fields::selectable(faults, selectable, schema, may_be_many, &field);
}

fn for_all_selectable(faults: &mut Faults, spec: &Spec<'_>, options: &Options<'_>, path: &Path<'_>) {
    let selectable = spec.for_all("selectableFields").as_array().map_or(&[][..], Vec::as_slice);
    if selectable.is_empty() {
        return;
    }
    let field = path.child("selectableFields");
    let validation = spec.for_all("schema");
    if validation.is_null() {
        return invalid_text(faults, &field, "", "may only be set when validations.schema is included");
    }
    let schema = at(validation, "openAPIV3Schema");
    if let Err(why) = super::structural::read(schema) {
        invalid_text(faults, &path.child("schema.openAPIV3Schema"), "", &why);
    }
    fields::selectable(faults, selectable, schema, options.may_have_many_selectable(None), &field);
}

fn columns(faults: &mut Faults, columns: &Value, path: &Path<'_>) {
    let field = path.child("additionalPrinterColumns");
    for (index, column) in columns.as_array().into_iter().flatten().enumerate() {
        fields::column(faults, column, &field.index(index));
    }
}

fn deprecation(faults: &mut Faults, version: &Value, path: &Path<'_>) {
    const MAX_BYTES: usize = 256;
    let Some(warning) = at(version, "deprecationWarning").as_str() else { return };
    let mut fault = |why: &str| invalid_shown(faults, path, &shown::json(&warning.into()), why);
    if !is_true(version, "deprecated") {
        return fault("can only be set for deprecated versions");
    }
    if warning.len() > MAX_BYTES {
        fault(&format!("must be <= {MAX_BYTES} characters long"));
    }
    if warning.is_empty() {
        fault("must not be an empty string");
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| !shown::is_printed(*c)) {
        fault(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        ));
    }
}

/// Names as they are wished for in `spec` and granted in `status`.
pub(super) fn names(faults: &mut Faults, names: &Value, path: &Path<'_>) {
    let (kind, list_kind) = (text(names, "kind"), text(names, "listKind"));
    for (field, name, before) in [
        ("plural", text(names, "plural"), ""),
        ("singular", text(names, "singular"), ""),
        ("kind", kind, "may have mixed case, but should otherwise match: "),
        ("listKind", list_kind, "may have mixed case, but should otherwise match: "),
    ] {
        let ill_formed = if before.is_empty() { label(name) } else { label(&name.to_lowercase()) };
        if !name.is_empty() && !ill_formed.is_empty() {
            invalid_text(faults, &path.child(field), name, &format!("{before}{}", ill_formed.join(",")));
        }
    }
    each_label(faults, list(names, "shortNames"), &path.child("shortNames"));
    if !kind.is_empty() && kind == list_kind {
        invalid_text(faults, &path.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
    each_label(faults, list(names, "categories"), &path.child("categories"));
}

fn each_label(faults: &mut Faults, names: &[Value], path: &Path<'_>) {
    for (index, name) in names.iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        let ill_formed = label(name);
        if !ill_formed.is_empty() {
            invalid_text(faults, &path.index(index), name, &ill_formed.join(","));
        }
    }
}

/// The versions in which objects may lie in the store must be there.
pub(super) fn stored_versions(faults: &mut Faults, status: &Value, spec: &Spec<'_>) {
    let root = Path::ROOT;
    let path = root.child("status");
    let field = path.child("storedVersions");
    let stored = list(status, "storedVersions");
    let shown = shown::json(at(status, "storedVersions"));
    if stored.is_empty() {
        return invalid_shown(faults, &field, &shown, "must have at least one stored version");
    }
    let mut missing: HashMap<&str, usize> =
        stored.iter().enumerate().map(|(index, name)| (name.as_str().unwrap_or_default(), index)).collect();
    for version in spec.versions {
        let name = text(version, "name");
        if missing.remove(name).is_none() && is_true(version, "storage") {
            invalid_shown(faults, &field, &shown, &format!("must have the storage version {name}"));
        }
    }
    let mut missing: Vec<(&str, usize)> = missing.into_iter().collect();
    missing.sort_by_key(|(_, index)| *index);
    for (name, index) in missing {
        let why = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a \
             storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        invalid_text(faults, &field.index(index), name, &why);
    }
}

/// Groups of the community need its approval.
pub(super) fn approval(faults: &mut Faults, definition: &Value, old: Option<&Value>) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let group = text(at(definition, "spec"), "group");
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let annotation = |of: &'_ Value| text(at(at(of, "metadata"), "annotations"), ANNOTATION).to_owned();
    let given = annotation(definition);
    if !is_protected || old.is_some_and(|old| Approval::of(&annotation(old)) == Approval::of(&given)) {
        return;
    }
    let root = Path::ROOT;
    let (metadata, before) = (root.child("metadata"), "protected groups must have approval annotation");
    let field = metadata.child("annotations");
    let field = field.key(ANNOTATION);
    match Approval::of(&given) {
        Approval::Given | Approval::Bypassed => {}
        Approval::Missing => faults.required(&field, &format!("{before} {ANNOTATION:?}, {SEE}")),
        Approval::Invalid => {
            let why = format!(
                "{before} {ANNOTATION:?} with either a URL or a reason starting with \"unapproved\", {SEE}"
            );
            invalid_text(faults, &field, &given, &why);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Given,
    Invalid,
}

impl Approval {
    fn of(annotation: &str) -> Approval {
        if annotation.is_empty() {
            return Approval::Missing;
        }
        if annotation.starts_with("unapproved") {
            return Approval::Bypassed;
        }
        let (scheme, rest) = annotation.split_once("://").unwrap_or_default();
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        let is_odd = annotation.contains(|c: char| c.is_control() || c == ' ');
        if is_scheme && !host.is_empty() && !is_odd { Approval::Given } else { Approval::Invalid }
    }
}

/// What may not change: where the objects are stored, and what they are.
pub(super) fn immutable(faults: &mut Faults, new: &Value, old: &Value, is_established: bool) {
    let root = Path::ROOT;
    let path = root.child("spec");
    let names = path.child("names");
    let mut keep = |new: &Value, old: &Value, name: &str, path: &Path<'_>| {
        if text(new, name) != text(old, name) {
            invalid_text(faults, path, text(new, name), "field is immutable");
        }
    };
    let (new_names, old_names) = (at(new, "names"), at(old, "names"));
    if is_established {
        keep(new, old, "scope", &path.child("scope"));
        keep(new_names, old_names, "kind", &names.child("kind"));
    }
    keep(new, old, "group", &path.child("group"));
    keep(new_names, old_names, "plural", &names.child("plural"));
}

/// Fields that no schema names can be kept by schemas alone.
pub(super) fn preserve(faults: &mut Faults, spec: &Spec<'_>, old: Option<&Spec<'_>>) {
    if old.is_some_and(Spec::preserves) || !spec.preserves() {
        return;
    }
    let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
    faults.push(Cause::invalid("spec.preserveUnknownFields", &Value::Bool(true), why));
}
