//! The recorded cases that are known to differ, and in what. The list may only shrink: a case that agrees is taken out of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::compare::Verdict;
use crate::report::{Judged, sort};

/// The list: a line for each case, its id and in what it differs.
pub fn write(all: &[Judged]) -> String {
    let mut lines: Vec<(String, String)> = all
        .iter()
        .filter(|judged| judged.verdict != Verdict::Same)
        .map(|judged| (sort(judged).replace('\n', " "), judged.case.id()))
        .collect();
    lines.sort();
    let mut text = String::from(
        "# Recorded requests that Skiff answers otherwise than upstream does: case, and what differs (upstream / Skiff).\n\
         # Written by `skiff-differ --replay FILE --known FILE`; the test of the recorded answers fails if it could be shorter.\n",
    );
    for (what, id) in lines {
        let _ = writeln!(text, "{id} {what}");
    }
    text
}

/// In what each case of the list differs, by the case's id.
pub fn read(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' ')).collect()
}
