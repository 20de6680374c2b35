//! Tests of the conformance suite that another version calls otherwise: our lists of them keep up.
//!
//! Names end in words in brackets, whose order and number change from version to version.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result};

use crate::command::root;

const LISTS: [&str; 4] = ["passing.txt", "slice.txt", "vacuous.txt", "endless.txt"];

/// Calls the tests in the lists as they are called after a move; answers how many there were.
pub(super) fn rename(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<usize> {
    let names = renamed(before, after);
    for list in LISTS {
        let path = root().join("tests/conformance").join(list);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let new = |line: &str| names.get(line).copied().unwrap_or(line).to_owned();
        let mut changed: Vec<String> = text.lines().map(new).collect();
        // Comments stay where they are, at the top.
        let n_comments = changed.iter().take_while(|line| line.starts_with('#')).count();
        changed[n_comments..].sort();
        let text: String = changed.into_iter().map(|line| line + "\n").collect();
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(names.len())
}

/// What is called otherwise: told by the same words in brackets in another order or, if there is one such test only, by the rest.
fn renamed<'n>(before: &'n BTreeSet<String>, after: &'n BTreeSet<String>) -> BTreeMap<&'n str, &'n str> {
    let mut names = BTreeMap::new();
    for key in [all_words, words_outside] {
        let went = before.difference(after).filter(|name| !names.contains_key(name.as_str()));
        let mut went = by(key, went.collect());
        let taken: BTreeSet<&str> = names.values().copied().collect();
        let came = by(key, after.difference(before).filter(|name| !taken.contains(name.as_str())).collect());
        went.retain(|_, tests| tests.len() == 1);
        for (words, tests) in went {
            if let Some([new]) = came.get(&words).map(Vec::as_slice) {
                names.insert(tests[0], *new);
            }
        }
    }
    names
}

fn by(key: fn(&str) -> Vec<&str>, names: Vec<&String>) -> BTreeMap<Vec<&str>, Vec<&str>> {
    let mut found: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
    for name in names {
        found.entry(key(name)).or_default().push(name);
    }
    found
}

fn all_words(name: &str) -> Vec<&str> {
    let mut words: Vec<&str> = name.split(' ').collect();
    words.sort_unstable();
    words
}

fn words_outside(name: &str) -> Vec<&str> {
    name.split(' ').filter(|word| !(word.starts_with('[') && word.ends_with(']'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_known_by_its_words_whatever_is_in_brackets() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let before = set(&[
            "[a] x works [B] [C]",
            "[a] y works [Min:1] [C]",
            "[a] z works [C]",
            "[a] w [B]",
            "[a] w [D]",
        ]);
        let after =
            set(&["[a] x works [C] [B]", "[a] y works [C]", "[a] z works [C]", "[a] v works", "[a] w [E]"]);
        let names = renamed(&before, &after);
        assert_eq!(names["[a] x works [B] [C]"], "[a] x works [C] [B]");
        assert_eq!(names["[a] y works [Min:1] [C]"], "[a] y works [C]");
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
