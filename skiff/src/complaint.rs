//! What is waited for is said at once, and again every minute: whoever looks at the log of the moment sees why nothing happens.

use std::time::Duration;

use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Complaint {
    said: Option<Instant>,
}

impl Complaint {
    pub(crate) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.said.is_none_or(|said| now.duration_since(said) >= EVERY);
        if is_due {
            self.said = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_waits_says_so_every_minute_and_no_more_often() {
        let (start, mut complaint, mut n) = (Instant::now(), Complaint::default(), 0);
        while start.elapsed() < Duration::from_secs(300) {
            n += usize::from(complaint.is_due());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(n, 5);
    }
}
