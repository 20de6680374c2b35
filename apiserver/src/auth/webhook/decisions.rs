//! What a webhook has said of late: so many decisions, the least recently used forgotten first, each for so long.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use skiff_webhook::authorization::Answer;
use tokio::time::Instant;

/// As many are remembered as upstream does.
pub(super) const MAX_DECISIONS: usize = 8192;

/// A question: the digest of its document, so that the longest takes no more room than the shortest.
pub(super) type Key = [u8; 32];

struct Remembered {
    answer: Answer,
    until: Instant,
    used: u64,
}

#[derive(Default)]
pub(super) struct Remembrance {
    by_key: HashMap<Key, Remembered>,
    /// By when they were last used.
    by_use: BTreeMap<u64, Key>,
    now: u64,
}

impl Remembrance {
    pub(super) fn get(&mut self, key: &Key) -> Option<Answer> {
        let found = self.by_key.get_mut(key)?;
        self.by_use.remove(&found.used);
        if found.until <= Instant::now() {
            self.by_key.remove(key);
            return None;
        }
        self.now += 1;
        found.used = self.now;
        self.by_use.insert(self.now, *key);
        Some(found.answer.clone())
    }

    pub(super) fn insert(&mut self, key: Key, answer: Answer, ttl: Duration) {
        let Some(until) = Instant::now().checked_add(ttl).filter(|_| !ttl.is_zero()) else { return };
        if let Some(before) = self.by_key.remove(&key) {
            self.by_use.remove(&before.used);
        }
        if self.by_key.len() >= MAX_DECISIONS
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.by_key.remove(&oldest);
        }
        self.now += 1;
        self.by_use.insert(self.now, key);
        self.by_key.insert(key, Remembered { answer, until, used: self.now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(n: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[tokio::test(start_paused = true)]
    async fn the_decision_that_was_not_asked_for_longest_is_forgotten_and_each_after_its_time() {
        let mut remembered = Remembrance::default();
        for n in 0..MAX_DECISIONS {
            remembered.insert(key(n), Answer::default(), HOUR);
        }
        assert!(remembered.get(&key(0)).is_some());
        remembered.insert(key(MAX_DECISIONS), Answer::default(), HOUR);
        assert!(remembered.get(&key(0)).is_some());
        assert!(remembered.get(&key(1)).is_none());
        assert_eq!((remembered.by_key.len(), remembered.by_use.len()), (MAX_DECISIONS, MAX_DECISIONS));
        tokio::time::advance(HOUR).await;
        assert!(remembered.get(&key(0)).is_none());
        assert_eq!(
            (remembered.by_key.len(), remembered.by_use.len()),
            (MAX_DECISIONS - 1, MAX_DECISIONS - 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_to_be_remembered_is_not() {
        let mut remembered = Remembrance::default();
        remembered.insert(key(0), Answer::default(), Duration::ZERO);
        assert!(remembered.get(&key(0)).is_none());
    }
}
