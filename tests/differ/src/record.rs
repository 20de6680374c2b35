//! Cases with upstream's answers, in a file that needs no second server to be replayed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::case::Case;

/// A case and what upstream answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    #[serde(flatten)]
    pub case: Case,
    pub answer: Answer,
}

pub fn write(path: &Path, all: &[Recorded]) -> Result<()> {
    let what = || format!("writing {}", path.display());
    let mut file = GzEncoder::new(File::create(path).with_context(what)?, Compression::best());
    for recorded in all {
        let line = serde_json::to_string(recorded)?;
        file.write_all(line.as_bytes()).and_then(|()| file.write_all(b"\n")).with_context(what)?;
    }
    file.finish().with_context(what).map(drop)
}

pub fn read(path: &Path) -> Result<Vec<Recorded>> {
    let what = || format!("reading {}", path.display());
    let file = BufReader::new(GzDecoder::new(File::open(path).with_context(what)?));
    file.lines().map(|line| serde_json::from_str(&line.with_context(what)?).with_context(what)).collect()
}
