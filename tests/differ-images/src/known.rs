//! What differs from containerd on purpose, each with its reason.
//!
//! A case that differs is known only if it is alike once just that is taken out of it, so that nothing else hides behind it.

use anyhow::Result;

use crate::case::Image;
use crate::judge::{Judge, Judged};

pub struct Known {
    pub what: &'static str,
    pub reason: &'static str,
    /// Takes it out of an image; whether it was there.
    take_out: fn(&mut Image) -> bool,
}

pub const KNOWN: &[Known] = &[];

pub enum Explained {
    /// It is alike without these.
    By(Vec<&'static Known>),
    /// Nothing that is known explains it: what is left of it.
    Not(Box<Judged>),
}

pub async fn explain(judge: &Judge, judged: Judged) -> Result<Explained> {
    let (mut left, mut taken) = (judged, Vec::new());
    for known in KNOWN {
        let mut image = left.image.clone();
        if !(known.take_out)(&mut image) {
            continue;
        }
        let without = judge.judge(&image).await?;
        taken.push(known);
        if without.verdict.agrees() {
            return Ok(Explained::By(taken));
        }
        left = without;
    }
    Ok(Explained::Not(Box::new(left)))
}
