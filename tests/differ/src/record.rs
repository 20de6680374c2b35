//! Cases with upstream's answers, in a file that needs no second server to be replayed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
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

/// The most that a recording may weigh: it lies in the repository.
const MAX_BYTES: u64 = 1700 << 10;

/// Adds cases that are not there yet; answers how many there were.
///
/// # Errors
/// Where the file would grow past its bound: then it is left as it was.
pub fn append(path: &Path, more: &[Recorded]) -> Result<usize> {
    let mut all = read(path)?;
    let before = all.len();
    let mut known: HashSet<String> = all.iter().map(|recorded| recorded.case.id()).collect();
    all.extend(more.iter().filter(|recorded| known.insert(recorded.case.id())).cloned());
    let partial = path.with_extension("partial");
    write(&partial, &all)?;
    let bytes = partial.metadata().with_context(|| format!("reading {}", partial.display()))?.len();
    if bytes > MAX_BYTES {
        fs::remove_file(&partial).with_context(|| format!("removing {}", partial.display()))?;
        bail!("{} would weigh {bytes} bytes, and may weigh {MAX_BYTES}", path.display());
    }
    fs::rename(&partial, path).with_context(|| format!("naming {}", path.display()))?;
    Ok(all.len() - before)
}

/// The cases of a file of differences.
pub fn read_cases(path: &Path) -> Result<Vec<Case>> {
    #[derive(Deserialize)]
    struct Difference {
        case: Case,
    }
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let case = |line: &str| -> Result<Case> {
        let found: Difference =
            serde_json::from_str(line).with_context(|| format!("reading {}", path.display()))?;
        Ok(found.case)
    };
    text.lines().map(case).collect()
}

pub fn read(path: &Path) -> Result<Vec<Recorded>> {
    let what = || format!("reading {}", path.display());
    let file = BufReader::new(GzDecoder::new(File::open(path).with_context(what)?));
    file.lines().map(|line| serde_json::from_str(&line.with_context(what)?).with_context(what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Operation, Scope};

    #[test]
    fn a_case_is_recorded_once_and_no_recording_grows_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl.gz");
        let recorded = |subject: &str| Recorded {
            case: Case {
                subject: subject.into(),
                operation: Operation::Create,
                edits: Vec::new(),
                scope: Scope::Main,
            },
            answer: Answer::default(),
        };
        write(&path, &[recorded("a")]).unwrap();
        assert_eq!(append(&path, &[recorded("a"), recorded("b"), recorded("b")]).unwrap(), 1);
        assert_eq!(read(&path).unwrap(), [recorded("a"), recorded("b")]);
        let mut random = crate::mutate::Random::new(1);
        let noise: Vec<Recorded> =
            (0..130_000).map(|_| recorded(&format!("{:x}{:x}", random.next(), random.next()))).collect();
        assert!(append(&path, &noise).is_err());
        assert_eq!(read(&path).unwrap().len(), 2, "left as it was");
    }
}
