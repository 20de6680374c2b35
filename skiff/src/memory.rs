//! Memory that is given back: what a burst of large requests took is the machine's again soon after it.
//!
//! The C library's allocator keeps what was freed, for next time; on a small machine next time may never come.

use std::fs;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(5);
/// Growth, or what was freed, that is not worth a look.
const SLACK_BYTES: u64 = 4 << 20;
const SLACK_PAGES: u64 = SLACK_BYTES / PAGE_BYTES;
/// Every how many periods it is looked for what was freed since: that walks lists of the allocator.
const LOOK_EVERY: u32 = 3;
const PAGE_BYTES: u64 = 4096;
/// From this size on memory is mapped, and given back at once when it is freed. Left to itself the allocator raises it to 32 MiB.
const MAPPED_BYTES: libc::c_int = 256 << 10;

/// Before anything is allocated in earnest.
pub(crate) fn prepare() {
    // SAFETY: `mallopt` takes two integers. That it fails changes nothing.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
}

/// Looks every few seconds whether this process has grown, or has freed what it had when it was last looked at, and if so
/// gives back what is free.
pub(crate) async fn give_back(stop: CancellationToken) {
    // What there was after the last trim, and whether the one before had left as much: during a burst none does.
    let (mut settled, mut is_settled) = (0_u64, false);
    let (mut allocated_bytes, mut n_passed) = (0_u64, 0_u32);
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let has_grown = !is_settled || resident_pages().is_none_or(|now| now > settled + SLACK_PAGES);
        n_passed += 1;
        if !has_grown && n_passed < LOOK_EVERY {
            continue;
        }
        n_passed = 0;
        // Walks the heap: some milliseconds.
        let trimmed = tokio::task::spawn_blocking(move || {
            let now_bytes = allocated();
            if !has_grown && now_bytes + SLACK_BYTES > allocated_bytes {
                return None;
            }
            // SAFETY: `malloc_trim` takes the allocator's own locks and touches free memory only.
            unsafe { libc::malloc_trim(0) };
            Some((resident_pages()?, now_bytes))
        });
        let Some((now, now_bytes)) = trimmed.await.ok().flatten() else { continue };
        is_settled = now.abs_diff(settled) <= SLACK_PAGES;
        (settled, allocated_bytes) = (now, now_bytes);
    }
}

/// What is allocated and not freed.
fn allocated() -> u64 {
    // SAFETY: `mallinfo2` takes the allocator's own locks and answers numbers.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces that are too small to be mapped.
    fn pieces() -> Vec<Vec<u8>> {
        (0..64 << 10).map(|_| vec![1; 2 << 10]).collect()
    }

    /// Frees all but every 64th: what is between them is free and held.
    fn free_most(pieces: &mut Vec<Vec<u8>>) {
        let mut n = 0;
        pieces.retain(|_| {
            n += 1;
            n % 64 == 0
        });
    }

    const FREED_PAGES: u64 = (64 << 20) / PAGE_BYTES;

    async fn falls_to(pages: u64) -> bool {
        for _ in 0..20 {
            if resident_pages().unwrap() <= pages {
                return true;
            }
            tokio::time::sleep(PERIOD).await;
        }
        false
    }

    /// Both in one test: the other would free and allocate meanwhile.
    #[tokio::test(start_paused = true)]
    async fn what_was_freed_is_given_back() {
        let mut all = pieces();
        let full = resident_pages().unwrap();
        free_most(&mut all);
        let stop = CancellationToken::new();
        let task = tokio::spawn(give_back(stop.clone()));
        assert!(falls_to(full - FREED_PAGES).await);
        // The same where it was looked at while everything was in use, twice and more: it has not grown since.
        let mut more = pieces();
        tokio::time::sleep(10 * PERIOD).await;
        free_most(&mut more);
        assert!(falls_to(full - FREED_PAGES).await);
        stop.cancel();
        task.await.unwrap();
        assert_eq!((all.len(), more.len()), (1 << 10, 1 << 10));
    }
}
