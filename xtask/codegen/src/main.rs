//! Writes `api/src/schema/builtin.txt`: the shape of every built-in type; and the golden objects that its
//! protobuf is tested with.
//!
//! Names, types and required fields come from k8s-openapi's JSON schemas; list types, map keys, patch
//! strategies and defaults from the markers in k8s-pb, matched by name; field numbers and what is on the wire
//! of a field that is not set from upstream's Go types, which the program in `upstream` walks (so this needs
//! Go). Facts only: no description is copied. `api/src/schema/parse.rs` says what a line means.
//!
//! Run by `cargo xtask codegen`, with the folder of k8s-pb's sources and the file to write as arguments.

mod facts;
mod roots;
mod shape;
mod upstream;

use std::path::Path;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pb_sources, out] = args.as_slice() else { bail!("usage: skiff-codegen K8S_PB_SRC OUT") };
    let mut types = shape::from_json_schemas(roots::all())?;
    for difference in upstream::merge(&mut types)? {
        eprintln!("upstream: {difference}");
    }
    let facts = facts::read(Path::new(pb_sources))?;
    for field in facts::merge(&mut types, &facts) {
        eprintln!("no markers for {field}");
    }
    std::fs::write(out, shape::render(&types)).with_context(|| format!("writing {out}"))?;
    upstream::corpus(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../api/tests/golden.jsonl.gz"))?;
    eprintln!("{} types", types.len());
    Ok(())
}
