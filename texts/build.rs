//! Packs the descriptions of the types that the schema has, as k8s-openapi's sources tell them (decision 19).

#[path = "build/described.rs"]
mod described;
#[path = "build/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use described::Described;
use flate2::Compression;
use flate2::write::DeflateEncoder;

/// The types that there are: texts of others could not be asked for.
const SCHEMA: &str = "../api/src/schema/builtin.txt";
/// Ends a type in a block.
const TYPE: char = '\u{1e}';
/// Ends a name or a text.
const PART: char = '\u{1f}';

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["build.rs", "build", SCHEMA] {
        println!("cargo::rerun-if-changed={path}");
    }
    let schema = fs::read_to_string(SCHEMA).map_err(|e| format!("reading {SCHEMA}: {e}"))?;
    let heads = schema.lines().filter(|line| line.starts_with("io."));
    let wanted: BTreeSet<&str> = heads.filter_map(|line| line.split(' ').next()).collect();

    // Types of one package are asked for together: each package is a block.
    let mut blocks: BTreeMap<String, Vec<Described>> = BTreeMap::new();
    for path in sources::files()? {
        let source = fs::read_to_string(&path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        let described = described::read(&source).map_err(|e| format!("{}: {e}", path.display()))?;
        if let Some(described) = described
            && wanted.contains(described.name.as_str())
        {
            let package = described.name.rsplit_once('.').map_or("", |(package, _)| package);
            blocks.entry(package.to_owned()).or_default().push(described);
        }
    }
    if blocks.is_empty() {
        return Err("the sources of k8s-openapi describe no type of the schema".into());
    }

    let (mut packed, mut index) = (Vec::new(), String::from("&[\n"));
    for (package, types) in &blocks {
        let start = packed.len();
        let mut encoder = DeflateEncoder::new(&mut packed, Compression::best());
        encoder.write_all(block(types).as_bytes())?;
        encoder.finish()?;
        writeln!(index, "    ({package:?}, {start}, {}),", packed.len())?;
    }
    index.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    fs::write(out.join("texts.bin"), packed)?;
    Ok(fs::write(out.join("index.rs"), index)?)
}

/// A type is its name, its text, and the name and the text of each field.
fn block(types: &[Described]) -> String {
    let mut out = String::new();
    for described in types {
        let fields = described.fields.iter().flat_map(|(name, text)| [name, text]);
        for part in [&described.name, &described.text].into_iter().chain(fields) {
            out.push_str(part);
            out.push(PART);
        }
        out.push(TYPE);
    }
    out
}
