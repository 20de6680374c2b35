//! `cargo xtask cel`.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{output, root, run};

/// Asks upstream's cel-go, in Kubernetes' environment, what the crate's tests compare with. It needs Go.
pub(crate) fn record() -> Result<()> {
    let tests = root().join("cel/tests");
    let mut go = Command::new("go");
    go.current_dir(root().join("tests/peers/cel")).args(["run", "."]).arg(tests.join("cases.txt"));
    let answers = output(&mut go)?;
    let path = tests.join("recorded.jsonl");
    std::fs::write(&path, answers).with_context(|| format!("writing {}", path.display()))?;
    run(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(&path))
}
