//! Memory that is given back: what a burst of large requests took is the machine's again soon after it.
//!
//! The C library's allocator keeps what was freed, for next time; on a small machine next time may never come.

use std::fs;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(5);
/// Growth that is not worth a look.
const SLACK_PAGES: u64 = (4 << 20) / PAGE_BYTES;
const PAGE_BYTES: u64 = 4096;
/// From this size on memory is mapped, and given back at once when it is freed. Left to itself the allocator raises it to 32 MiB.
const MAPPED_BYTES: libc::c_int = 256 << 10;

/// Before anything is allocated in earnest.
pub(crate) fn prepare() {
    // SAFETY: `mallopt` takes two integers. That it fails changes nothing.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
}

/// Looks every few seconds whether this process has grown, and if so gives back what is free of that.
pub(crate) async fn give_back(stop: CancellationToken) {
    // What there was after the last trim, and whether the one before had left as much: during a burst none does.
    let (mut settled, mut is_settled) = (0_u64, false);
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        if is_settled && resident_pages().is_some_and(|now| now <= settled + SLACK_PAGES) {
            continue;
        }
        // Walks the heap: some milliseconds.
        let trimmed = tokio::task::spawn_blocking(|| {
            // SAFETY: `malloc_trim` takes the allocator's own locks and touches free memory only.
            unsafe { libc::malloc_trim(0) };
            resident_pages()
        });
        let now = trimmed.await.ok().flatten().unwrap_or_default();
        is_settled = now.abs_diff(settled) <= SLACK_PAGES;
        settled = now;
    }
}

fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_freed_is_given_back() {
        // Pieces that are too small to be mapped, of which every 64th stays: what is between them is free and held.
        let mut pieces: Vec<Vec<u8>> = (0..64 << 10).map(|_| vec![1; 2 << 10]).collect();
        let full = resident_pages().unwrap();
        let mut n = 0;
        pieces.retain(|_| {
            n += 1;
            n % 64 == 0
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(give_back(stop.clone()));
        let most = full - (64 << 20) / PAGE_BYTES;
        while resident_pages().unwrap() > most {
            tokio::time::sleep(PERIOD).await;
        }
        stop.cancel();
        task.await.unwrap();
        assert_eq!(pieces.len(), 1 << 10);
    }
}
