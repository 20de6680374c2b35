//! The corpus of every target, and inputs made of it. The seed changes with what is committed, not from run to run.

use anyhow::{Result, ensure};
use skiff_fuzz::run::{End, run};
use skiff_fuzz::{TARGETS, Target};

const SEED: u64 = 1;

/// One after the other: what each takes of memory is measured.
#[test]
fn nothing_that_others_write_breaks_whoever_reads_it() -> Result<()> {
    let mut broken = Vec::new();
    for target in TARGETS {
        match run(target, SEED, End::After(target.inputs)) {
            Ok(n) => ensure!(n == target.inputs, "{} was given {n} inputs", target.name),
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    ensure!(broken.is_empty(), "{} targets break:\n{}", broken.len(), broken.join("\n"));
    broken_targets_are_found()
}

/// That a target breaks is seen, whichever way.
fn broken_targets_are_found() -> Result<()> {
    let broken = [
        Target { name: "json", prepare: || Box::new(|_| panic!("on purpose")), inputs: 1 },
        Target { name: "json", prepare: || Box::new(|_| anyhow::bail!("on purpose")), inputs: 1 },
        Target {
            name: "json",
            prepare: || {
                Box::new(|_| {
                    ensure!(!std::hint::black_box(vec![1_u8; 200 << 20]).is_empty());
                    Ok(())
                })
            },
            inputs: 1,
        },
    ];
    for target in &broken {
        ensure!(run(target, SEED, End::After(1)).is_err(), "a broken target passes");
    }
    Ok(())
}
