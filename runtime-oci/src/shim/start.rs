//! Starting the container, through one call of the OCI runtime.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use crate::protocol::{self, ShimConfig};
use crate::record::now_ns;
use crate::runc;

pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) started_at_ns: i64,
    pub(super) streams: Streams,
    /// The write end of the container's standard input, held open until someone attaches.
    pub(super) stdin: Option<OwnedFd>,
}

pub(super) enum Streams {
    Pipes { stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

/// Runs `runc run --detach` to its end. A failure is told in runc's own words.
pub(super) fn start(directory: &Path, config: &ShimConfig) -> io::Result<Started> {
    let log = directory.join("runc.log");
    let pid_file = directory.join("init.pid");
    for stale in [&log, &pid_file] {
        match fs::remove_file(stale) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
    }
    let mut command = runc::command(&config.runc, &config.runc_root, Some(&log));
    command.args(["run", "--detach", "--bundle"]).arg(&config.bundle).arg("--pid-file").arg(&pid_file);
    let mut console = None;
    let mut pipes = None;
    let mut stdin = None;
    if config.tty {
        let listener = ConsoleSocket::listen(directory, "console.sock")?;
        command.arg("--console-socket").arg(listener.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        console = Some(listener);
    } else {
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        command.stdout(stdout_writer).stderr(stderr_writer);
        if config.stdin {
            let (stdin_reader, writer) = io::pipe()?;
            command.stdin(stdin_reader);
            stdin = Some(OwnedFd::from(writer));
        } else {
            command.stdin(Stdio::null());
        }
        pipes = Some((OwnedFd::from(stdout), OwnedFd::from(stderr)));
    }
    command.arg(&config.id);
    let mut child = command.spawn().map_err(|err| not_installed(&config.runc, err))?;
    // The command holds the pipes' other ends, which must be the container's alone.
    drop(command);
    let status = child.wait()?;
    if !status.success() {
        return Err(failure(&log, status, pipes));
    }
    let started_at_ns = now_ns();
    let pid = read_pid(&pid_file)?;
    let streams = match (console, pipes) {
        (Some(console), _) => Streams::Terminal(console.receive()?),
        (None, Some((stdout, stderr))) => Streams::Pipes { stdout, stderr },
        (None, None) => return Err(io::Error::other("container has no output")),
    };
    Ok(Started { pid, started_at_ns, streams, stdin })
}

/// What went wrong: from the log; from what the runtime printed, if it died before it had a log.
fn failure(log: &Path, status: ExitStatus, pipes: Option<(OwnedFd, OwnedFd)>) -> io::Error {
    if let Some(message) = runc::error_of(log) {
        return io::Error::other(message);
    }
    let printed = pipes.and_then(|(_, stderr)| {
        rustix::io::ioctl_fionbio(&stderr, true).ok()?;
        let mut buffer = [0; 1024];
        let n = rustix::io::read(&stderr, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..n]).trim().to_owned()).filter(|text| !text.is_empty())
    });
    io::Error::other(match printed {
        Some(printed) => format!("{status}: {printed}"),
        None => status.to_string(),
    })
}

pub(super) fn not_installed(binary: &Path, err: io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("run {}: {err}", binary.display()))
}

pub(super) fn read_pid(file: &Path) -> io::Result<i32> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{} holds no process ID", file.display())))
}

/// Where the OCI runtime sends the terminal that it made.
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    /// Open, so that the path below stays short.
    directory: File,
    name: String,
}

impl ConsoleSocket {
    pub(super) fn listen(directory: &Path, name: &str) -> io::Result<ConsoleSocket> {
        let directory = File::open(directory)?;
        let path = protocol::socket_path(directory.as_fd(), name);
        let _not_there = fs::remove_file(&path);
        let listener = UnixListener::bind(path)?;
        Ok(ConsoleSocket { listener, directory, name: name.to_owned() })
    }

    /// As the runtime, another process, can name it.
    pub(super) fn path(&self) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        let directory = self.directory.as_raw_fd();
        format!("/proc/{}/fd/{directory}/{}", std::process::id(), self.name).into()
    }

    /// The terminal; the runtime has sent it by the time it exits.
    pub(super) fn receive(self) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (connection, _) = self.listener.accept()?;
        let _gone = fs::remove_file(protocol::socket_path(self.directory.as_fd(), &self.name));
        let mut descriptors = Vec::new();
        protocol::receive(&connection, &mut Vec::new(), &mut descriptors)?;
        descriptors.pop().ok_or_else(|| io::Error::other("the OCI runtime sent no terminal"))
    }
}
