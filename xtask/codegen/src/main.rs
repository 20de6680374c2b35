//! Writes `api/src/schema/builtin.txt`: the shape of every built-in type.
//!
//! Names, types and required fields come from k8s-openapi's JSON schemas; list types, map keys, patch
//! strategies, defaults and protobuf tags from the attributes and markers of k8s-pb, matched by name.
//! Facts only: no description is copied. `api/src/schema/parse.rs` says what a line means.
//!
//! Run by `cargo xtask codegen`, with the folder of k8s-pb's sources and the file to write as arguments.

mod facts;
mod roots;
mod shape;

use std::path::Path;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pb_sources, out] = args.as_slice() else { bail!("usage: skiff-codegen K8S_PB_SRC OUT") };
    let mut types = shape::from_json_schemas(roots::all())?;
    let facts = facts::read(Path::new(pb_sources))?;
    let unmatched = facts::merge(&mut types, &facts);
    for field in &unmatched {
        eprintln!("no protobuf facts for {field}");
    }
    std::fs::write(out, shape::render(&types)).with_context(|| format!("writing {out}"))?;
    eprintln!("{} types, {} fields without protobuf facts", types.len(), unmatched.len());
    Ok(())
}
