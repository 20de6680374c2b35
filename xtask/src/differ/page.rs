//! `docs/differences.md`: each judge writes its own part, between two comments, and keeps those of the others.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command::{cache, root};

const TITLE: &str = "# Differences from upstream\n";

/// Where a judge writes its part to before it is put into the page.
pub(super) fn part(name: &str) -> Result<PathBuf> {
    let dir = cache()?.join("differ");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir.join(format!("{name}.md")))
}

/// Puts a part that was written into the page.
pub(super) fn put(name: &str, part: &Path) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let path = root().join("docs/differences.md");
    let text = with_part(&read(&path)?, name, &read(part)?);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// A page with one of its parts replaced, or added at its end.
fn with_part(page: &str, name: &str, part: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let (before, after) = match (page.find(&begin), page.find(&end)) {
        (Some(from), Some(to)) if from < to => (&page[..from], &page[to + end.len()..]),
        _ => (page, ""),
    };
    let before = if before.is_empty() { TITLE } else { before };
    let (gap, after_gap) =
        (if before.ends_with("\n\n") { "" } else { "\n" }, if after.is_empty() { "" } else { "\n" });
    format!("{before}{gap}{begin}\n{}\n\n{end}{after_gap}{}", part.trim(), after.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_replaced_and_the_others_stay() {
        let first = with_part("", "api", "one\n");
        assert_eq!(first, "# Differences from upstream\n\n<!-- api -->\n\none\n\n<!-- /api -->\n");
        let both = with_part(&first, "images", "two");
        assert!(
            both.starts_with(&first) && both.ends_with("<!-- images -->\n\ntwo\n\n<!-- /images -->\n"),
            "{both}"
        );
        let again = with_part(&both, "api", "ONE");
        assert_eq!(again, both.replace("one", "ONE"));
        assert_eq!(with_part(&again, "images", "two"), again);
    }
}
