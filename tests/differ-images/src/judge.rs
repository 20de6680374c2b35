//! One image for both sides, and what their outcomes have in common.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};

use crate::build::Held;
use crate::case::Image;
use crate::registry::Registry;
use crate::sides::{Containerd, Outcome, Skiff};
use crate::tree::{Difference, differences};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Both make the same tree of it.
    Alike,
    /// Both refuse it, in whatever words.
    RefusedAlike,
    /// The trees differ.
    Tree,
    /// containerd refuses it, Skiff does not.
    Accepted,
    /// Skiff refuses it, containerd does not.
    Refused,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Alike => "trees alike",
            Verdict::RefusedAlike => "refused alike",
            Verdict::Tree => "other tree",
            Verdict::Accepted => "accepted here",
            Verdict::Refused => "refused here",
        }
    }

    pub fn agrees(self) -> bool {
        matches!(self, Verdict::Alike | Verdict::RefusedAlike)
    }
}

#[derive(Clone, Debug)]
pub struct Judged {
    pub image: Image,
    pub verdict: Verdict,
    /// Of the trees.
    pub differences: Vec<Difference>,
    /// Why each refuses.
    pub containerd: Option<String>,
    pub skiff: Option<String>,
}

impl Judged {
    /// Of which sort the difference is, without what is this image's alone.
    pub fn sort(&self) -> String {
        let what = match self.verdict {
            Verdict::Alike | Verdict::RefusedAlike => String::new(),
            Verdict::Tree => {
                let mut what: Vec<&str> = self.differences.iter().map(|difference| difference.what).collect();
                what.sort_unstable();
                what.dedup();
                what.join(", ")
            }
            Verdict::Accepted => self.reason(),
            Verdict::Refused => general(self.skiff.as_deref().unwrap_or_default()),
        };
        format!("{}: {what}", self.verdict.text())
    }

    /// Why containerd refuses it, without what is this image's alone.
    pub fn reason(&self) -> String {
        general(self.containerd.as_deref().unwrap_or_default())
    }

    /// What is seen of it, for people.
    pub fn words(&self) -> String {
        match self.verdict {
            Verdict::Alike | Verdict::RefusedAlike => self.verdict.text().to_owned(),
            Verdict::Accepted => format!("containerd: {}", self.containerd.as_deref().unwrap_or_default()),
            Verdict::Refused => format!("Skiff: {}", self.skiff.as_deref().unwrap_or_default()),
            Verdict::Tree => {
                let one = |d: &Difference| format!("{:?} {}: {} / {}", d.path, d.what, d.containerd, d.skiff);
                let shown: Vec<String> = self.differences.iter().take(4).map(one).collect();
                format!("containerd / Skiff: {}", shown.join("; "))
            }
        }
    }

    /// One line of the file of differences.
    pub fn to_json(&self) -> Value {
        json!({
            "verdict": self.verdict.text(), "sort": self.sort(), "text": self.image.text(), "id": self.image.id(),
            "containerd": self.containerd, "skiff": self.skiff, "differences": self.differences, "image": self.image,
        })
    }
}

/// Words without paths, numbers and digests, and without the name of the image.
fn general(text: &str) -> String {
    let named = ["failed to pull and unpack image", "failed to resolve reference"];
    let text = match text.split_once("\": ") {
        Some((before, after)) if named.iter().any(|words| before.contains(words)) => after,
        _ => text,
    };
    let word = |word: &str| match word.contains(['/', '\\']) || word.bytes().any(|byte| byte.is_ascii_digit())
    {
        true if word.contains("sha256:") => "DIGEST".to_owned(),
        true => "…".to_owned(),
        false => word.to_owned(),
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

pub struct Judge {
    registry: Registry,
    containerd: Arc<Containerd>,
    skiff: Skiff,
    n: AtomicU64,
}

impl Judge {
    pub async fn new(containerd: Containerd, directory: &Path) -> Result<Judge> {
        let registry = Registry::start().await?;
        let skiff = Skiff::new(directory);
        Ok(Judge { registry, containerd: Arc::new(containerd), skiff, n: AtomicU64::new(0) })
    }

    /// How many images were pulled by both.
    pub fn n(&self) -> u64 {
        self.n.load(Ordering::Relaxed)
    }

    pub async fn judge(&self, image: &Image) -> Result<Judged> {
        let name = self.n.fetch_add(1, Ordering::Relaxed).to_string();
        let held = Held::of(image)?;
        let digest = image.by_digest.then(|| held.target.clone());
        self.registry.put(&name, held);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The clock of a file system may be a moment behind.
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - 1;
        let password = image.mood.password();
        let [ours, theirs] =
            ["skiff", "containerd"].map(|side| self.registry.reference(side, &name, digest.as_deref()));
        let containerd = self.containerd.clone();
        let theirs = tokio::task::spawn_blocking(move || containerd.pull(&theirs, password));
        let (skiff, containerd) = tokio::join!(self.skiff.pull(&ours, password), theirs);
        self.registry.remove(&name);
        let (skiff, containerd) = (skiff?, containerd??);
        let mut judged = Judged {
            image: image.clone(),
            verdict: Verdict::RefusedAlike,
            differences: Vec::new(),
            containerd: refusal(&containerd),
            skiff: refusal(&skiff),
        };
        judged.verdict = match (&containerd, &skiff) {
            (Outcome::Refused(_), Outcome::Refused(_)) => Verdict::RefusedAlike,
            (Outcome::Refused(_), Outcome::Tree(_)) => Verdict::Accepted,
            (Outcome::Tree(_), Outcome::Refused(_)) => Verdict::Refused,
            (Outcome::Tree(a), Outcome::Tree(b)) => {
                judged.differences = differences(a, b, now_s);
                if judged.differences.is_empty() { Verdict::Alike } else { Verdict::Tree }
            }
        };
        Ok(judged)
    }
}

fn refusal(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Refused(why) => Some(why.clone()),
        Outcome::Tree(_) => None,
    }
}
