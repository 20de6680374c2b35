//! What two answers to one request have in common.

use crate::answer::Answer;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Status, reason, causes and stored object are the same.
    Same,
    /// The same but for the warnings.
    Warnings,
    /// Upstream refuses it, Skiff does not.
    Accepted,
    /// Skiff refuses it, upstream does not.
    Refused,
    /// Both refuse it, in other words.
    Why,
    /// Both accept it and store something else.
    Object,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Same => "same",
            Verdict::Warnings => "warnings",
            Verdict::Accepted => "accepted here",
            Verdict::Refused => "refused here",
            Verdict::Why => "other reason",
            Verdict::Object => "other object",
        }
    }
}

pub fn compare(upstream: &Answer, skiff: &Answer) -> Verdict {
    match (upstream.is_accepted(), skiff.is_accepted()) {
        (false, true) => Verdict::Accepted,
        (true, false) => Verdict::Refused,
        (false, false) => {
            let key = |answer: &Answer| (answer.code, answer.reason.clone(), answer.causes.clone());
            if key(upstream) == key(skiff) { Verdict::Same } else { Verdict::Why }
        }
        (true, true) if upstream.object != skiff.object || upstream.code != skiff.code => Verdict::Object,
        (true, true) if upstream.warnings != skiff.warnings => Verdict::Warnings,
        (true, true) => Verdict::Same,
    }
}
