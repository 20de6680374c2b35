//! The second round: webhooks that want it are asked again where others have changed the object since.
//!
//! Source: `admission/reinvocation.go` and `mutating/reinvocationcontext.go` of upstream.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;

use skiff_api::Object;

/// What one request carries from the first round of its mutation to the second. There is no third.
#[derive(Debug, Default)]
pub struct Reinvocation {
    round: Round,
    is_wanted: bool,
    /// What webhooks have left the object as, while there are some that could be asked again.
    last: Option<Object>,
    /// Webhooks that want to be asked again, with nothing changed since.
    asked: BTreeSet<Arc<str>>,
    /// Those with something changed since.
    again: BTreeSet<Arc<str>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Round {
    #[default]
    First,
    Second,
}

impl Reinvocation {
    /// Whether the whole chain of mutating admission should run a second time: a webhook has changed something.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted && self.round == Round::First
    }

    /// Asks for a second round, as others than webhooks may: policies that mutate.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// What follows is the second round.
    pub fn begin_again(&mut self) {
        self.round = Round::Second;
    }

    pub(super) fn round(&self) -> Round {
        self.round
    }

    /// A round of webhooks or policies begins with this object.
    pub fn begin(&mut self, object: Option<&Object>) {
        if self.round == Round::Second && !self.asked.is_empty() && self.last.as_ref() != object {
            self.changed();
        }
        self.last = None;
    }

    /// A round of them has ended with this object.
    pub fn end(&mut self, object: Option<&Object>) {
        if !self.asked.is_empty() && self.round == Round::First {
            self.last = object.cloned();
        }
    }

    /// One of them has changed the object, or somebody has between the rounds.
    pub fn changed(&mut self) {
        self.again.extend(mem::take(&mut self.asked));
    }

    /// One was asked that wants to be again.
    pub fn asked(&mut self, uid: &Arc<str>) {
        self.asked.insert(uid.clone());
    }

    /// Whether one is asked in this round.
    pub fn is_asked_now(&self, uid: &str) -> bool {
        self.round == Round::First || self.again.contains(uid)
    }
}
