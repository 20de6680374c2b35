//! How soon a pod that failed is replaced: a node that refuses pods must not be sent one after the other.
//!
//! Source: upstream's `failedPodsBackoff`.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Of one set, by node.
#[derive(Default)]
pub(super) struct Backoffs {
    /// Of the set when these were counted; another one is another try.
    generation: Option<i64>,
    nodes: HashMap<String, (Duration, Instant)>,
}

impl Backoffs {
    /// Forgets what no longer counts: all of another generation, and what was long ago.
    pub(super) fn refresh(&mut self, generation: Option<i64>) {
        if self.generation != generation {
            self.nodes.clear();
        }
        self.generation = generation;
        self.nodes.retain(|_, (_, since)| since.elapsed() <= 2 * LONGEST);
    }

    /// Whether a pod of the node may be replaced now; if not, when.
    pub(super) fn attempt(&mut self, node: &str) -> Result<(), Duration> {
        let known = self.nodes.get(node).copied();
        if let Some(left) = known.and_then(|(delay, since)| delay.checked_sub(since.elapsed()))
            && !left.is_zero()
        {
            return Err(left);
        }
        let next = known.map_or(FIRST, |(delay, _)| delay.saturating_mul(2).min(LONGEST));
        self.nodes.insert(node.to_owned(), (next, Instant::now()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_failure_on_a_node_waits_twice_as_long_as_the_one_before() {
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.attempt("a"), Ok(()));
        assert_eq!(backoffs.attempt("a"), Err(FIRST));
        assert_eq!(backoffs.attempt("b"), Ok(()), "another node has its own");
        tokio::time::advance(FIRST).await;
        assert_eq!(backoffs.attempt("a"), Ok(()));
        tokio::time::advance(FIRST).await;
        assert_eq!(backoffs.attempt("a"), Err(FIRST), "two in all, of which one has passed");
    }

    #[tokio::test(start_paused = true)]
    async fn another_generation_begins_anew() {
        let mut backoffs = Backoffs::default();
        backoffs.refresh(Some(1));
        assert_eq!(backoffs.attempt("a"), Ok(()));
        backoffs.refresh(Some(1));
        assert!(backoffs.attempt("a").is_err());
        backoffs.refresh(Some(2));
        assert_eq!(backoffs.attempt("a"), Ok(()));
    }
}
