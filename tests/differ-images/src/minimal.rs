//! The least of an image that still shows a difference of the same sort.

use anyhow::Result;

use crate::case::{ConfigOdd, Ending, Entry, Form, Image, Kind, ManifestOdd, MediaType, Mood, Packing};
use crate::judge::{Judge, Judged};

/// Images that may be tried for one difference.
const MAX_TRIES: usize = 80;

pub async fn minimal(judge: &Judge, judged: Judged) -> Result<Judged> {
    let (mut least, mut tries, mut at) = (judged, 0, 0);
    let sort = least.sort();
    while tries < MAX_TRIES {
        let Some(smaller) = smaller(&least.image, at) else { break };
        let Some(smaller) = smaller else {
            at += 1;
            continue;
        };
        tries += 1;
        let tried = judge.judge(&smaller).await?;
        if tried.sort() == sort {
            // What comes after what was taken away has moved here.
            least = tried;
        } else {
            at += 1;
        }
    }
    Ok(least)
}

/// The step-th way to make it smaller: `Some(None)` if that changes nothing, `None` if there are no more.
fn smaller(image: &Image, step: usize) -> Option<Option<Image>> {
    let mut made = image.clone();
    let mut left = step;
    let mut take = |n: usize| {
        let within = left < n;
        let at = left;
        left = left.saturating_sub(n);
        within.then_some(at)
    };
    let n_entries: usize = image.layers.iter().map(|layer| layer.entries.len()).sum();
    if let Some(at) = take(image.layers.len()) {
        made.layers.remove(at);
    } else if let Some(at) = take(n_entries) {
        let mut left = at;
        for layer in &mut made.layers {
            if left < layer.entries.len() {
                layer.entries.remove(left);
                break;
            }
            left -= layer.entries.len();
        }
    } else if let Some(at) = take(5) {
        match at {
            0 => made.config = ConfigOdd::Plain,
            1 => made.manifest = ManifestOdd::Plain,
            2 => made.index = None,
            3 => made.mood = Mood::Plain,
            _ => made.by_digest = false,
        }
    } else if let Some(at) = take(image.index.as_ref().map_or(0, |index| index.entries.len())) {
        if let Some(index) = &mut made.index {
            index.entries.remove(at);
        }
    } else if let Some(at) = take(3 * image.layers.len()) {
        let layer = &mut made.layers[at / 3];
        match at % 3 {
            0 => layer.packing = Packing::Plain,
            1 => layer.media_type = MediaType::Right,
            _ => layer.ending = Ending::TwoBlocks,
        }
    } else if let Some(at) = take(PLAINER * n_entries) {
        let mut left = at / PLAINER;
        for layer in &mut made.layers {
            if left < layer.entries.len() {
                plainer(&mut layer.entries[left], at % PLAINER);
                break;
            }
            left -= layer.entries.len();
        }
    } else {
        return None;
    }
    Some((made != *image).then_some(made))
}

const PLAINER: usize = 6;

fn plainer(entry: &mut Entry, step: usize) {
    match step {
        0 => entry.odd.clear(),
        1 => entry.records.clear(),
        2 if !matches!(entry.kind, Kind::Sparse(_)) => entry.form = Form::Ustar,
        3 => entry.mode = 0o755,
        4 => (entry.uid, entry.gid) = (0, 0),
        5 => entry.mtime = 1_600_000_000,
        _ => {}
    }
}
