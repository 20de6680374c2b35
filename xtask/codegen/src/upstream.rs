//! What upstream's own Go types say: field numbers, presence, and the types that k8s-openapi lacks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shape::{Field, Types};

/// The folder of the Go program beside this one.
fn program() -> Command {
    let mut go = Command::new("go");
    go.args(["run", "."]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("upstream"));
    go
}

/// Writes the golden objects that protobuf is tested with.
pub fn corpus(out: &Path) -> Result<()> {
    let status = program().arg("corpus").arg(out).status().context("running `go run . corpus`")?;
    if !status.success() {
        bail!("`go run . corpus`: {status}");
    }
    Ok(())
}

/// Adds field numbers and presence to the fields; answers where the two sources differ.
pub fn merge(types: &mut Types) -> Result<Vec<String>> {
    let output = program().arg("facts").output().context("running `go run . facts`")?;
    if !output.status.success() {
        bail!("`go run . facts`: {}", String::from_utf8_lossy(&output.stderr));
    }
    let upstream = parse(&String::from_utf8(output.stdout)?)?;
    let mut differing = Vec::new();
    for (name, fields) in &upstream {
        let Some(known) = types.get_mut(name) else {
            types.insert(name.clone(), fields.iter().map(|(n, f)| (n.clone(), f.clone())).collect());
            continue;
        };
        for (field, facts) in fields {
            let Some(known) = known.get_mut(field) else {
                differing.push(format!("{name}.{field} is unknown to k8s-openapi"));
                known.insert(field.clone(), facts.clone());
                continue;
            };
            if known.shape != facts.shape && known.shape != "any" {
                differing.push(format!("{name}.{field} is {} or {}", known.shape, facts.shape));
            }
            *known = Field { required: known.required, ..facts.clone() };
        }
    }
    for (name, fields) in types {
        let without =
            fields.iter().filter(|(n, f)| f.tag.is_none() && !matches!(n.as_str(), "kind" | "apiVersion"));
        differing.extend(without.map(|(field, _)| format!("{name}.{field} has no number")));
    }
    Ok(differing)
}

fn parse(text: &str) -> Result<Types> {
    let mut types = Types::new();
    let mut name = String::new();
    for line in text.lines() {
        if !line.starts_with(' ') {
            name = line.to_owned();
            types.entry(name.clone()).or_default();
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(field), Some(shape)) = (words.next(), words.next()) else {
            bail!("a short line: {line:?}")
        };
        let place = Some(types.get(&name).map_or(0, |fields| fields.len()));
        let mut facts = Field { shape: shape.to_owned(), place, ..Field::default() };
        for word in words {
            match word.split_once('=') {
                _ if word.starts_with('#') => facts.tag = Some(word[1..].to_owned()),
                None | Some(("go", _)) => facts.wire.push(word.to_owned()),
                Some((key, value)) => facts.facts.push((key.to_owned(), value.to_owned())),
            }
        }
        types.entry(name.clone()).or_default().insert(field.to_owned(), facts);
    }
    Ok(types)
}
