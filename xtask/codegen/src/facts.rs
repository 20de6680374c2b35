//! Markers out of the comments in k8s-pb's sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::{Attribute, Expr, Item, Lit, Meta};

use crate::shape::{Field, Types};

/// Type name in lower case to its message; a message is field name (lower case, no underscores) to facts.
pub type Messages = BTreeMap<String, BTreeMap<String, Facts>>;

#[derive(Clone, Default)]
pub struct Facts {
    /// The message this field holds, in lower case, where it is one in the same module.
    message: Option<String>,
    markers: Vec<(String, String)>,
}

pub fn read(sources: &Path) -> Result<Messages> {
    let mut files = Vec::new();
    find(sources, &mut files)?;
    let mut messages = Messages::new();
    for file in files {
        let relative = file.strip_prefix(sources)?.parent().unwrap_or(Path::new(""));
        let module: Vec<String> = relative.iter().map(|p| p.to_string_lossy().replace('_', "-")).collect();
        let module = module_name(&module);
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        for item in syn::parse_file(&text)?.items {
            let Item::Struct(item) = item else { continue };
            let mut fields = BTreeMap::new();
            for field in &item.fields {
                let Some(ident) = &field.ident else { continue };
                let name = ident.to_string().trim_start_matches("r#").replace('_', "").to_lowercase();
                let message = last_type(&field.ty).map(|t| format!("{module}.{t}").to_lowercase());
                fields.insert(name, Facts { message, markers: markers(&field.attrs) });
            }
            messages.insert(format!("{module}.{}", item.ident).to_lowercase(), fields);
        }
    }
    Ok(messages)
}

/// The module's name as OpenAPI spells it. Group folders use `-` in a few names.
fn module_name(path: &[String]) -> String {
    match path.first().map(String::as_str) {
        Some("apimachinery" | "api") => format!("io.k8s.{}", path.join(".")),
        _ => format!("io.k8s.{}", path.join(".")),
    }
}

/// Adds the facts to the fields; answers the fields that have none.
pub fn merge(types: &mut Types, messages: &Messages) -> Vec<String> {
    let mut unmatched = Vec::new();
    for (name, fields) in types {
        let Some(message) = messages.get(&name.to_lowercase()) else {
            unmatched.push(format!("type {name}"));
            continue;
        };
        for (field, facts) in fields {
            if facts.tag.is_none() {
                continue; // `kind` and `apiVersion`, which travel in the envelope.
            }
            // Upstream's own types say it where k8s-pb does not know the field.
            match lookup(messages, message, &field.to_lowercase().replace(['$', '-'], ""), 0) {
                Some(found) => set(facts, &found),
                None => unmatched.push(format!("{name}.{field}")),
            }
        }
    }
    unmatched
}

/// A field of a message, or of one that is inlined into it (`VolumeSource` in `Volume`).
fn lookup(messages: &Messages, message: &BTreeMap<String, Facts>, field: &str, depth: u8) -> Option<Facts> {
    if let Some(facts) = message.get(field) {
        return Some(facts.clone());
    }
    const INLINED: [&str; 10] = [
        "volumesource",
        "persistentvolumesource",
        "handler",
        "ephemeralcontainercommon",
        "localobjectreference",
        "rule",
        "rulewithoperations",
        "ingressrulevalue",
        "deviceconfiguration",
        "replicasetspec",
    ];
    if depth > 1 {
        return None;
    }
    message.iter().find_map(|(name, facts)| {
        let inner = INLINED.contains(&name.as_str()).then_some(facts.message.as_ref()).flatten()?;
        lookup(messages, messages.get(inner)?, field, depth + 1)
    })
}

fn set(field: &mut Field, facts: &Facts) {
    field.facts.clear();
    let values = |key: &str| -> Vec<&str> {
        facts.markers.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect()
    };
    let mut add = |key: &str, values: Vec<&str>| {
        if !values.is_empty() {
            field.facts.push((key.into(), values.join(",")));
        }
    };
    let mut list = values("listType");
    list.truncate(1);
    add("list", list);
    add("keys", values("listMapKey"));
    let strategy = values("patchStrategy");
    add("patch", strategy.into_iter().take(1).collect());
    add("merge-key", values("patchMergeKey").into_iter().take(1).collect());
    add("map", values("mapType").into_iter().chain(values("structType")).take(1).collect());
    let default: Vec<&str> =
        values("default").into_iter().filter(|d| !d.starts_with("ref(")).take(1).collect();
    add("default", default);
}

fn find(folder: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, out)?;
        } else if path.file_name().is_some_and(|n| n == "mod.rs") {
            out.push(path);
        }
    }
    out.sort();
    Ok(())
}

/// `+key=value` lines of the doc comment.
fn markers(attributes: &[Attribute]) -> Vec<(String, String)> {
    attributes
        .iter()
        .filter(|a| a.path().is_ident("doc"))
        .filter_map(|a| {
            let Meta::NameValue(doc) = &a.meta else { return None };
            let Expr::Lit(doc) = &doc.value else { return None };
            let Lit::Str(doc) = &doc.lit else { return None };
            let line = doc.value();
            let (key, value) = line.trim().strip_prefix('+')?.split_once('=')?;
            Some((key.trim().to_owned(), value.trim().replace(' ', "")))
        })
        .collect()
}

/// The last path segment inside `Option<…>`.
fn last_type(ty: &syn::Type) -> Option<String> {
    let syn::Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last()?;
    if let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments
        && let Some(syn::GenericArgument::Type(inner)) = arguments.args.first()
    {
        return last_type(inner);
    }
    Some(segment.ident.to_string())
}
