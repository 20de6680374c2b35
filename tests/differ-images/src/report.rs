//! Agreement by what the images are odd in, what differs, and the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::case::{THEMES, Theme};
use crate::judge::{Judged, Verdict};
use crate::known::{KNOWN, Known};

#[derive(Clone, Copy, Default)]
pub struct Tally {
    pub images: usize,
    pub alike: usize,
    pub refused_alike: usize,
    pub known: usize,
    pub other_tree: usize,
    pub accepted: usize,
    pub refused: usize,
}

#[derive(Default)]
pub struct Report {
    tallies: BTreeMap<Theme, Tally>,
    known: BTreeMap<&'static str, usize>,
    refusals: BTreeMap<String, usize>,
    /// By sort: how often, and the first of them, minimised.
    differing: BTreeMap<String, (usize, Judged)>,
}

impl Report {
    fn tally(&mut self, theme: Theme) -> &mut Tally {
        let tally = self.tallies.entry(theme).or_default();
        tally.images += 1;
        tally
    }

    pub fn agrees(&mut self, theme: Theme, judged: &Judged) {
        let tally = self.tally(theme);
        match judged.verdict {
            Verdict::Alike => tally.alike += 1,
            _ => {
                tally.refused_alike += 1;
                *self.refusals.entry(judged.reason()).or_default() += 1;
            }
        }
    }

    /// Why containerd refused what both refuse, the most frequent first.
    pub fn refusals(&self) -> Vec<(usize, &str)> {
        let mut sorted: Vec<_> = self.refusals.iter().map(|(why, n)| (*n, why.as_str())).collect();
        sorted.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        sorted
    }

    pub fn is_known(&mut self, theme: Theme, by: &[&'static Known]) {
        self.tally(theme).known += 1;
        for known in by {
            *self.known.entry(known.what).or_default() += 1;
        }
    }

    /// Whether it is the first of its sort, which is worth to be minimised.
    pub fn is_new(&self, sort: &str) -> bool {
        !self.differing.contains_key(sort)
    }

    pub fn differs(&mut self, theme: Theme, judged: Judged) {
        let tally = self.tally(theme);
        match judged.verdict {
            Verdict::Accepted => tally.accepted += 1,
            Verdict::Refused => tally.refused += 1,
            _ => tally.other_tree += 1,
        }
        self.differing.entry(judged.sort()).or_insert_with(|| (0, judged)).0 += 1;
    }

    pub fn n_differing(&self) -> usize {
        self.differing.values().map(|(n, _)| n).sum()
    }

    /// The known differences that did not occur.
    pub fn not_seen(&self) -> Vec<&'static str> {
        KNOWN.iter().map(|known| known.what).filter(|what| !self.known.contains_key(what)).collect()
    }

    pub fn n_known(&self) -> usize {
        self.tallies.values().map(|tally| tally.known).sum()
    }

    /// The table, as Markdown that reads well as it is.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| odd in | images | trees alike | refused alike | known to differ | other tree | accepted here only | refused here only |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        let mut all = Tally::default();
        let mut row = |name: &str, t: &Tally| {
            let _ = writeln!(
                out,
                "| {name} | {} | {} | {} | {} | {} | {} | {} |",
                t.images, t.alike, t.refused_alike, t.known, t.other_tree, t.accepted, t.refused
            );
        };
        for theme in THEMES {
            let tally = self.tallies.get(&theme).copied().unwrap_or_default();
            row(theme.text(), &tally);
            all.images += tally.images;
            all.alike += tally.alike;
            all.refused_alike += tally.refused_alike;
            all.known += tally.known;
            all.other_tree += tally.other_tree;
            all.accepted += tally.accepted;
            all.refused += tally.refused;
        }
        row("all", &all);
        out
    }

    /// The first case of each sort that nothing explains, the most frequent first.
    pub fn differing(&self) -> Vec<(usize, &Judged)> {
        let mut sorted: Vec<_> = self.differing.values().map(|(n, judged)| (*n, judged)).collect();
        sorted.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.sort().cmp(&b.1.sort())));
        sorted
    }

    /// The known differences that occurred, with how often.
    pub fn known(&self) -> String {
        let mut out = String::new();
        for known in KNOWN {
            let n = self.known.get(known.what).copied().unwrap_or_default();
            let _ = writeln!(out, "- {} ({n}): {}", known.what, known.reason);
        }
        out
    }

    pub fn page(&self, seed: u64) -> String {
        let mut text = format!(
            "## Images\n\n\
             Written by `cargo xtask differ images --page`, seed {seed}: odd images, each pulled and unpacked by Skiff and by Debian's \
             containerd with its overlayfs snapshotter. A tree is alike if every entry has the same type, owner, mode, time, \
             attributes, device, content, target and hard links.\n\n{}\n\
             ### What differs on purpose\n\nWith how often a difference was explained by it:\n\n{}",
            self.table(),
            self.known()
        );
        let differing = self.differing();
        if !differing.is_empty() {
            text += "\n### What differs besides\n\nThe first image of each sort, as small as it could be made:\n\n";
            for (n, judged) in differing {
                let line = format!("{} — {}", judged.image.text(), judged.words());
                let _ = writeln!(text, "- {n}: {}", line.replace('|', "·"));
            }
        }
        text
    }
}
