//! Runs of a target: its corpus, and what is made of it.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use peak_alloc::PeakAlloc;

use crate::{Mutator, Target};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// As much memory may one input take, above what there was.
pub const MAX_BYTES: usize = 96 << 20;
/// The stack of the threads that serve requests.
const STACK_BYTES: usize = 2 << 20;

/// The inputs of a target that are kept.
///
/// # Errors
/// Where there are none.
pub fn corpus(target: &Target) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        files.push((path, bytes));
    }
    ensure!(!files.is_empty(), "{} has no inputs", folder.display());
    files.sort();
    Ok(files)
}

/// How long a run goes on.
#[derive(Clone, Copy, Debug)]
pub enum End {
    After(u64),
    At(Instant),
}

/// Gives a target its corpus, and then inputs made of it; how many there were.
///
/// # Errors
/// For the first input that breaks something, with what it takes to see it again. An overflow of the stack ends the process.
pub fn run(target: &Target, seed: u64, end: End) -> Result<u64> {
    let corpus = corpus(target)?;
    let on_small_stack = std::thread::Builder::new().name(target.name.into()).stack_size(STACK_BYTES);
    std::thread::scope(|scope| {
        let work = || -> Result<u64> {
            let give = (target.prepare)();
            for (path, bytes) in &corpus {
                check(&give, bytes).with_context(|| format!("{}: {}", target.name, path.display()))?;
            }
            let inputs: Vec<Vec<u8>> = corpus.iter().map(|(_, bytes)| bytes.clone()).collect();
            let mut mutator = Mutator::new(seed, &inputs);
            let mut n = 0;
            while match end {
                End::After(count) => n < count,
                End::At(end) => Instant::now() < end,
            } {
                let input = mutator.next_input();
                check(&give, &input).with_context(|| {
                    format!("{}: input {n} of seed {seed}: {}", target.name, shown(&input))
                })?;
                n += 1;
            }
            Ok(n)
        };
        let thread = on_small_stack.spawn_scoped(scope, work).context("starting a thread")?;
        thread.join().map_err(|_| anyhow!("{}: the run itself panicked", target.name))?
    })
}

/// An input as it may stand in a sentence.
fn shown(input: &[u8]) -> String {
    const MAX_CHARS: usize = 2000;
    let text = String::from_utf8_lossy(input);
    let shown: String = text.chars().take(MAX_CHARS).collect();
    let rest = if shown.len() < text.len() {
        format!(" and {} bytes more", text.len() - shown.len())
    } else {
        String::new()
    };
    format!("{shown:?}{rest}")
}

fn check(give: &dyn Fn(&[u8]) -> Result<()>, input: &[u8]) -> Result<()> {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| give(input)));
    let taken = MEMORY.peak_usage().saturating_sub(before);
    outcome.map_err(|_| anyhow!("panicked; the message is above"))??;
    ensure!(taken <= MAX_BYTES, "took {taken} bytes of memory");
    Ok(())
}
