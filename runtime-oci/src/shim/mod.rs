//! The supervisor of one container, a process of its own.
//!
//! It starts the container through the OCI runtime, is the parent of the container's processes (subreaper),
//! owns their output, writes it to the log in CRI's format, records the exit, and answers on a socket. Plain
//! blocking code in one thread around `poll`: it must cost next to nothing and outlive whoever started it.
//!
//! ```text
//!            start                      init exits                   output drained
//!   (spawned) ──▶ report Running, serve ───────────▶ end leftovers ───────────────▶ exit.json, report, quit
//!        └─▶ report Failed, quit
//! ```

mod attach;
mod log;
mod serve;
mod start;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use skiff_cgroup::Cgroups;

use crate::protocol::{Answer, ShimConfig};

/// The shim's part of the program. `args` is what follows the configured shim command: the container's
/// directory.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(directory) = args.next() else {
        eprintln!("shim: the container's directory is missing");
        return ExitCode::from(2);
    };
    match run(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            let message = err.to_string();
            eprintln!("shim: {message}");
            report(&Answer::Failed { message });
            ExitCode::FAILURE
        }
    }
}

fn run(directory: &Path) -> io::Result<()> {
    // Out of the caller's session and process group: a terminal's signals are not for containers.
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::chdir("/")?;
    let config: ShimConfig = serde_json::from_slice(&std::fs::read(directory.join("shim.json"))?)?;
    leave_group(&config.shim_cgroup);
    let prepared = serve::Prepared::new(directory, &config)?;
    let started = start::start(directory, &config)?;
    let shim = serve::Shim::new(directory, config, prepared, started)?;
    report(&shim.running());
    detach_stdout()?;
    shim.serve()
}

/// Out of the caller's control group, too: an init system ends all that is in it when a unit or a login ends. A container
/// is started all the same where that is not possible.
fn leave_group(path: &str) {
    if path.is_empty() {
        return;
    }
    let left = Cgroups::detect().and_then(|cgroups| cgroups.group(path)?.adopt_this_process());
    if let Err(err) = left {
        eprintln!("shim: stay in the caller's control group: {err}");
    }
}

/// One line to whoever started the shim, who may be gone.
fn report(answer: &Answer) {
    if let Ok(mut line) = serde_json::to_vec(answer) {
        line.push(b'\n');
        let _nobody_there = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    }
}

/// Closes the pipe that the report went through: its reader waits for the end.
fn detach_stdout() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}
