//! The shim's loop: one `poll` over signals, the socket, its connections and the container's output.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use rustix::process::{Pid, Signal as KillSignal, WaitOptions, WaitStatus};
use skiff_cgroup::{Cgroups, Group};

use super::attach::{Attachments, Stream};
use super::log::{Line, Log};
use super::start::{ConsoleSocket, Started, Streams, not_installed, read_pid};
use crate::protocol::{self, Answer, Exit, Request, ShimConfig};
use crate::record::now_ns;
use crate::runc;

/// More callers than a node ever is; the oldest wait.
const MAX_CONNECTIONS: usize = 64;
/// Exits seen before it is known whose they are: between an exec's end and that of the command that ran it.
const MAX_UNCLAIMED: usize = 256;
/// For output that something keeps open after the container's end.
const DRAIN_TIME: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 32 << 10;

/// The signals that the loop waits for.
struct Signals(SignalFd);

impl Signals {
    /// From here on they wait for the loop instead of interrupting. Children start with none blocked.
    fn block() -> io::Result<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }
}

pub(super) struct Shim {
    directory: PathBuf,
    config: ShimConfig,
    pid: i32,
    started_at_ns: i64,
    signals: Signals,
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    outputs: Vec<Output>,
    terminal: Option<OwnedFd>,
    /// The write end of the container's standard input: it is open for as long as somebody may attach.
    stdin: Option<OwnedFd>,
    attachments: Attachments,
    log: Log,
    group: Option<Group>,
    execs: Vec<Exec>,
    unclaimed: BTreeMap<i32, i32>,
    exit_code: Option<i32>,
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    watches: bool,
    /// Its end is that of the container's standard input.
    ends_stdin: bool,
}

struct Output {
    from: OwnedFd,
    stream: Stream,
    line: Line,
}

/// A process that someone runs in the container beside its own.
struct Exec {
    connection: u64,
    /// The OCI runtime's command, until it has ended.
    command: Option<i32>,
    pid: Option<i32>,
    console: Option<ConsoleSocket>,
    /// The prefix of its files in the shim's directory.
    name: String,
}

/// What a round of `poll` found.
#[derive(Default)]
struct Ready {
    signals: bool,
    listener: bool,
    connections: Vec<u64>,
    outputs: Vec<usize>,
    readers: Vec<usize>,
}

/// What must be there before the container is: failing afterwards would leave it without a log or a socket.
pub(super) struct Prepared {
    log: Log,
    listener: UnixListener,
    signals: Signals,
}

impl Prepared {
    pub(super) fn new(directory: &Path, config: &ShimConfig) -> io::Result<Prepared> {
        let signals = Signals::block()?;
        let log = Log::open(config.log_path.clone())?;
        let own = File::open(directory)?;
        let socket = protocol::socket_path(own.as_fd(), "shim.sock");
        let _not_there = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        Ok(Prepared { log, listener, signals })
    }
}

impl Shim {
    pub(super) fn new(
        directory: &Path,
        config: ShimConfig,
        prepared: Prepared,
        started: Started,
    ) -> io::Result<Shim> {
        let Prepared { log, listener, signals } = prepared;
        let group = Cgroups::detect().and_then(|cgroups| cgroups.group(&config.cgroup)).ok();
        let (outputs, terminal) = outputs(started.streams)?;
        Ok(Shim {
            directory: directory.to_owned(),
            config,
            pid: started.pid,
            started_at_ns: started.started_at_ns,
            signals,
            listener,
            connections: BTreeMap::new(),
            next_connection: 0,
            outputs,
            terminal,
            stdin: started.stdin,
            attachments: Attachments::default(),
            log,
            group,
            execs: Vec::new(),
            unclaimed: BTreeMap::new(),
            exit_code: None,
        })
    }

    pub(super) fn running(&self) -> Answer {
        Answer::Running { pid: self.pid, started_at_ns: self.started_at_ns }
    }

    /// Until the container has ended and all it wrote is in the log.
    pub(super) fn serve(mut self) -> io::Result<()> {
        // Whatever ended before signals were waited for.
        self.reap()?;
        let mut deadline = None;
        loop {
            if self.exit_code.is_some() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_TIME);
                let all_is_said =
                    self.outputs.is_empty() && self.execs.is_empty() && self.attachments.are_settled();
                if all_is_said || Instant::now() >= deadline {
                    return self.finish();
                }
            }
            let ready = self.wait(deadline)?;
            self.attachments.go_on(&ready.readers);
            for connection in self.attachments.overdue(Instant::now()) {
                self.hang_up(connection);
            }
            if ready.signals {
                while let Ok(Some(_)) = self.signals.0.read_signal() {}
                self.reap()?;
            }
            let ended: Vec<_> = ready.outputs.into_iter().filter(|index| self.read_output(*index)).collect();
            for index in ended.into_iter().rev() {
                self.outputs.remove(index);
            }
            for connection in ready.connections {
                self.hear(connection);
            }
            if ready.listener {
                self.accept();
            }
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> io::Result<Ready> {
        let earliest = deadline.into_iter().chain(self.attachments.deadline()).min();
        let timeout = match earliest {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO)
            }
            None => PollTimeout::NONE,
        };
        let mut polled = vec![PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN)];
        let wanted =
            if self.connections.len() < MAX_CONNECTIONS { PollFlags::POLLIN } else { PollFlags::empty() };
        polled.push(PollFd::new(self.listener.as_fd(), wanted));
        let fds = self.connections.values().map(|connection| connection.stream.as_fd());
        polled.extend(fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // An output that is held back is not asked about: its end would be answered again and again.
        let asked = |index: &usize| !self.attachments.hold_back(self.outputs[*index].stream);
        let outputs: Vec<usize> = (0..self.outputs.len()).filter(asked).collect();
        let fds = outputs.iter().map(|index| self.outputs[*index].from.as_fd());
        polled.extend(fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let readers: Vec<usize> = self.attachments.waited_for().map(|(place, _)| place).collect();
        polled.extend(self.attachments.waited_for().map(|(_, fd)| PollFd::new(fd, PollFlags::POLLOUT)));
        match nix::poll::poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
        let mut any = polled.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        let mut next = || any.next().unwrap_or(false);
        let mut ready = Ready { signals: next(), listener: next(), ..Ready::default() };
        ready.connections = self.connections.keys().copied().filter(|_| next()).collect();
        ready.outputs = outputs.into_iter().filter(|_| next()).collect();
        ready.readers = readers.into_iter().filter(|_| next()).collect();
        Ok(ready)
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let connection = Connection {
            stream,
            buffer: Vec::new(),
            descriptors: Vec::new(),
            watches: false,
            ends_stdin: false,
        };
        self.connections.insert(self.next_connection, connection);
        self.next_connection += 1;
    }

    /// Whether that was its end.
    fn read_output(&mut self, index: usize) -> bool {
        let mut buffer = [0; READ_BYTES];
        let output = &mut self.outputs[index];
        match rustix::io::read(&output.from, &mut buffer) {
            // A terminal whose other side is closed answers EIO.
            Ok(0) | Err(Errno::IO) => {
                self.log.end(&mut output.line);
                true
            }
            Ok(n) => {
                self.log.add(&mut output.line, &buffer[..n]);
                self.attachments.give(output.stream, &buffer[..n]);
                false
            }
            Err(_) => false,
        }
    }

    fn hear(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let request = match protocol::receive(
            &connection.stream,
            &mut connection.buffer,
            &mut connection.descriptors,
        ) {
            Ok(0) => return self.hang_up(id),
            Ok(_) => protocol::unframe::<Request>(&mut connection.buffer),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
            Err(err) => Err(err),
        };
        match request {
            Ok(Some(request)) => self.act(id, request),
            Ok(None) => {}
            Err(err) => {
                self.answer(id, &Answer::Failed { message: err.to_string() }, None);
                self.hang_up(id);
            }
        }
    }

    fn act(&mut self, id: u64, request: Request) {
        let result = match request {
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watches = true;
                }
                return self.answer(id, &self.running(), None);
            }
            Request::Kill { signal } => {
                self.signal(signal);
                Ok(())
            }
            Request::ReopenLog => self.log.reopen(),
            Request::Resize { width, height } => match &self.terminal {
                Some(terminal) => resize(terminal.as_fd(), width, height),
                None => Ok(()),
            },
            Request::Attach { stdin, stdout, stderr } => match self.attach(id, stdin, [stdout, stderr]) {
                Ok(input) => return self.answer(id, &Answer::Attached, input),
                Err(err) => {
                    self.attachments.remove(id);
                    Err(err)
                }
            },
            Request::CloseStdin if self.ends_with_a_client() => {
                self.end_stdin(id);
                Ok(())
            }
            // As with upstream's runtimes: whoever has no more to say to a container that goes on listening is done with it.
            Request::CloseStdin => return self.hang_up(id),
            Request::Exec { process, tty, stdin, stdout, stderr } => {
                let wanted = [stdin, stdout, stderr];
                match self.exec(id, &process, tty, wanted) {
                    // Answered when the command has ended.
                    Ok(()) => return,
                    Err(err) => Err(err),
                }
            }
        };
        let answer = match result {
            Ok(()) => Answer::Ok,
            Err(err) => Answer::Failed { message: err.to_string() },
        };
        self.answer(id, &answer, None);
    }

    /// To the container's first process, which is this process's child: its ID cannot be another's.
    fn signal(&self, signal: i32) {
        if self.exit_code.is_none() {
            // SAFETY: `kill` takes two integers and touches no memory of ours. The safe wrappers know no
            // real-time signals, which an image may name as its stop signal.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// The descriptor to write input to, if there is one; that of a terminal, also for its size.
    fn attach(&mut self, id: u64, stdin: bool, wanted: [bool; 2]) -> io::Result<Option<OwnedFd>> {
        if self.exit_code.is_some() {
            return Err(io::Error::other("container is not running"));
        }
        let ends_with_a_client = self.ends_with_a_client();
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(None) };
        connection.ends_stdin |= stdin && ends_with_a_client;
        let given = std::mem::take(&mut connection.descriptors);
        let wanted = [Stream::Stdout, Stream::Stderr].into_iter().zip(wanted).filter(|(_, wanted)| *wanted);
        for ((stream, _), to) in wanted.zip(given) {
            self.attachments.add(id, stream, to)?;
        }
        let input = self.terminal.as_ref().or(self.stdin.as_ref().filter(|_| stdin));
        input.map(OwnedFd::try_clone).transpose()
    }

    /// Whether the container's input is that of the first client who attaches. A terminal stays open.
    fn ends_with_a_client(&self) -> bool {
        self.config.stdin_once && !self.config.tty
    }

    /// Of a container whose input was to end with the first who attaches.
    fn end_stdin(&mut self, id: u64) {
        if self.connections.get(&id).is_some_and(|connection| connection.ends_stdin) {
            self.stdin = None;
        }
    }

    fn exec(&mut self, id: u64, process: &str, tty: bool, wanted: [bool; 3]) -> io::Result<()> {
        if self.exit_code.is_some() {
            return Err(io::Error::other("container is not running"));
        }
        let name = format!("exec-{id}-{}", self.execs.len());
        let file = |suffix: &str| self.directory.join(format!("{name}.{suffix}"));
        fs::write(file("json"), process)?;
        let mut command = runc::command(&self.config.runc, &self.config.runc_root, Some(&file("log")));
        command.args(["exec", "--detach", "--pid-file"]).arg(file("pid")).arg("--process").arg(file("json"));
        let given =
            self.connections.get_mut(&id).map(|connection| std::mem::take(&mut connection.descriptors));
        let mut given = given.unwrap_or_default().into_iter();
        let mut console = None;
        if tty {
            let listener = ConsoleSocket::listen(&self.directory, &format!("{name}.sock"))?;
            command.arg("--console-socket").arg(listener.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            console = Some(listener);
        } else {
            let mut next = |wanted: bool| {
                if wanted { given.next().map_or_else(Stdio::null, Stdio::from) } else { Stdio::null() }
            };
            command.stdin(next(wanted[0])).stdout(next(wanted[1])).stderr(next(wanted[2]));
        }
        command.arg(&self.config.id);
        let child = command.spawn().map_err(|err| not_installed(&self.config.runc, err))?;
        let command = i32::try_from(child.id()).ok();
        self.execs.push(Exec { connection: id, command, pid: None, console, name });
        Ok(())
    }

    /// Takes all exits that there are. A child may be the container's first process, the command of an exec,
    /// an exec's process, or an orphan of the container.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(pid.as_raw_nonzero().get(), code(status)),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
        }
    }

    fn ended(&mut self, pid: i32, code: i32) {
        if pid == self.pid && self.exit_code.is_none() {
            self.exit_code = Some(code);
            self.end_leftovers();
        } else if let Some(index) = self.execs.iter().position(|exec| exec.command == Some(pid)) {
            self.exec_started(index, code);
        } else if let Some(index) = self.execs.iter().position(|exec| exec.pid == Some(pid)) {
            let exec = self.execs.remove(index);
            self.answer(exec.connection, &Answer::ExecExited { code }, None);
        } else if self.execs.iter().any(|exec| exec.command.is_some()) && self.unclaimed.len() < MAX_UNCLAIMED
        {
            self.unclaimed.insert(pid, code);
        }
    }

    /// The command of an exec has ended: the process runs, has ended already, or never was.
    fn exec_started(&mut self, index: usize, code: i32) {
        let exec = &mut self.execs[index];
        exec.command = None;
        let file = |suffix: &str| self.directory.join(format!("{}.{suffix}", exec.name));
        let outcome = if code == 0 {
            let terminal = exec.console.take().map(ConsoleSocket::receive).transpose();
            terminal.and_then(|terminal| Ok((read_pid(&file("pid"))?, terminal)))
        } else {
            let told = runc::error_of(&file("log"));
            Err(io::Error::other(told.unwrap_or_else(|| format!("exit status {code}"))))
        };
        for suffix in ["json", "log", "pid"] {
            let _not_there = fs::remove_file(file(suffix));
        }
        let connection = exec.connection;
        match outcome {
            Ok((pid, terminal)) => {
                exec.pid = Some(pid);
                self.answer(connection, &Answer::ExecStarted { pid }, terminal);
                if !self.connections.contains_key(&connection) {
                    kill(pid);
                }
                if let Some(code) = self.unclaimed.remove(&pid) {
                    self.ended(pid, code);
                }
            }
            Err(err) => {
                self.execs.remove(index);
                self.answer(connection, &Answer::Failed { message: err.to_string() }, None);
            }
        }
        if self.execs.iter().all(|exec| exec.command.is_none()) {
            self.unclaimed.clear();
        }
    }

    /// Without a PID namespace of its own a container's processes outlive its first.
    fn end_leftovers(&self) {
        if let Some(group) = &self.group
            && let Err(err) = group.kill()
        {
            eprintln!("shim: {err}");
        }
    }

    fn answer(&mut self, id: u64, answer: &Answer, descriptor: Option<OwnedFd>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
        let sent = protocol::frame(answer)
            .and_then(|bytes| Ok((protocol::send(&connection.stream, &bytes, &descriptors)?, bytes.len())));
        // Answers are small: a caller with a full socket has stopped reading.
        if !matches!(sent, Ok((sent, length)) if sent == length) {
            self.hang_up(id);
        }
    }

    /// A caller that goes away ends what it runs.
    fn hang_up(&mut self, id: u64) {
        self.end_stdin(id);
        self.attachments.remove(id);
        self.connections.remove(&id);
        for exec in &self.execs {
            if let (true, Some(pid)) = (exec.connection == id, exec.pid) {
                kill(pid);
            }
        }
    }

    fn finish(mut self) -> io::Result<()> {
        for mut output in std::mem::take(&mut self.outputs) {
            self.log.end(&mut output.line);
        }
        let usage = self.group.as_ref().map(Group::usage);
        let exit = Exit {
            started_at_ns: self.started_at_ns,
            finished_at_ns: now_ns(),
            exit_code: self.exit_code.unwrap_or_default(),
            oom_killed: matches!(usage, Some(Ok(usage)) if usage.n_oom_kills > 0),
            lost: false,
        };
        exit.write(&self.directory)?;
        let _gone = fs::remove_file(self.directory.join("shim.sock"));
        let watching: Vec<_> =
            self.connections.iter().filter(|(_, one)| one.watches).map(|(id, _)| *id).collect();
        for id in watching {
            self.answer(id, &Answer::Exited(exit.clone()), None);
        }
        Ok(())
    }
}

fn outputs(streams: Streams) -> io::Result<(Vec<Output>, Option<OwnedFd>)> {
    let output = |from: OwnedFd, stream| -> io::Result<Output> {
        rustix::io::ioctl_fionbio(&from, true)?;
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        Ok(Output { from, stream, line: Line::new(name) })
    };
    match streams {
        Streams::Pipes { stdout, stderr } => {
            Ok((vec![output(stdout, Stream::Stdout)?, output(stderr, Stream::Stderr)?], None))
        }
        Streams::Terminal(terminal) => {
            let reader = terminal.try_clone()?;
            Ok((vec![output(reader, Stream::Stdout)?], Some(terminal)))
        }
    }
}

fn resize(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).map_err(Into::into)
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone = rustix::process::kill_process(pid, KillSignal::KILL);
    }
}

/// As a shell tells it: 128 and the number for a signal.
fn code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}
