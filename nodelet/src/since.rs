//! How long ago something was of which only a time of the wall clock is known, such as the start of a container.
//!
//! The wall clock is asked once, when this process first hears of it; from then on the monotonic clock measures, so that a
//! clock that is set meanwhile ends no wait at once and prolongs none.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    at: Timestamp,
    /// How long ago it was when it was heard of; what lies in the future happens now.
    age: Duration,
    heard: Instant,
}

impl Since {
    pub(crate) fn new(at: Timestamp) -> Since {
        Since::heard(at, Timestamp::now(), Instant::now())
    }

    pub(crate) fn heard(at: Timestamp, wall: Timestamp, now: Instant) -> Since {
        Since { at, age: Duration::try_from(wall.duration_since(at)).unwrap_or_default(), heard: now }
    }

    pub(crate) fn is_of(&self, at: Timestamp) -> bool {
        self.at == at
    }

    pub(crate) fn age(&self) -> Duration {
        self.age.saturating_add(self.heard.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_first_look_is_at_the_wall_clock() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let passed = Since::heard(at(0), at(7), Instant::now());
        let future = Since::heard(at(3600), at(0), Instant::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((passed.age().as_secs(), future.age().as_secs()), (12, 5));
        assert!(passed.is_of(at(0)) && !passed.is_of(at(1)));
    }
}
