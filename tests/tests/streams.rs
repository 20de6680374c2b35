//! Stories about streams into pods, with stock kubectl over both protocols that it speaks: a WebSocket, and SPDY where an
//! older one, or a client of another language, would speak it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{Terminal, TestCluster, has, http_get};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "nginx:alpine", ports: [{name: http, containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8000, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wasm}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "skiff/wasm-http:v1", ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "busybox:1.36", command: [nc, -ll, -p, "9000", -e, cat]}]
---
apiVersion: v1
kind: Pod
metadata: {name: loud}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1.36
    command: [sh, -c, "trap exit TERM; n=0; while true; do n=$((n+1)); echo out $n; echo err $n >&2; sleep 0.05; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "busybox:1.36", command: [sh], stdin: true, tty: true}]
"#;

/// What kubectl speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    WebSocket,
    Spdy,
}

const BOTH: [Protocol; 2] = [Protocol::WebSocket, Protocol::Spdy];

impl Protocol {
    fn kubectl(self, cluster: &TestCluster, args: &[&str]) -> Command {
        let mut command = cluster.kubectl_command(args);
        let websockets = if self == Protocol::WebSocket { "true" } else { "false" };
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        command
    }
}

/// A running `kubectl port-forward`.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(mut command: Command) -> Result<Forward> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().context("no output")?);
        stdout.read_line(&mut line)?;
        // It says more for each connection, and dies of nobody reading it.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        let port = port.and_then(|port| port.parse().ok());
        match port {
            Some(port) => Ok(Forward { child, port }),
            None => {
                let _ended = child.kill();
                let output = child.wait_with_output()?;
                anyhow::bail!("{line:?}, {}", String::from_utf8_lossy(&output.stderr))
            }
        }
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// Ends it; what it said of errors.
    fn stop(mut self) -> Result<String> {
        self.child.kill()?;
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text)?;
        }
        self.child.wait()?;
        Ok(text)
    }
}

fn ready(name: &str) -> Result<TestCluster> {
    let cluster = TestCluster::start(name)?;
    cluster.apply_text(PODS)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    Ok(cluster)
}

/// Bytes that repeat nowhere near.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn ports_of_pods_of_both_kinds_are_forwarded_byte_for_byte_over_many_connections() -> Result<()> {
    let cluster = ready("story-forward")?;
    for protocol in BOTH {
        for (target, port, answer) in [
            ("pod/web", "80", "nginx"),
            ("service/web", "8000", "nginx"),
            ("pod/wasm", "80", "hello from wasm"),
        ] {
            let command = protocol.kubectl(&cluster, &["port-forward", target, &format!(":{port}")]);
            let forward = Forward::start(command).with_context(|| format!("{protocol:?} to {target}"))?;
            let pages: Result<Vec<String>> = std::thread::scope(|scope| {
                let asking: Vec<_> =
                    (0..20).map(|_| scope.spawn(|| http_get("127.0.0.1", forward.port))).collect();
                asking.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("panicked"))?).collect()
            });
            for page in pages.with_context(|| format!("{protocol:?} to {target}"))? {
                has(&page.to_lowercase(), &[answer])?;
            }
            forward.stop()?;
        }

        // What was sent comes back whole, after this side has ended its own half.
        let forward = Forward::start(protocol.kubectl(&cluster, &["port-forward", "pod/echo", ":9000"]))?;
        let sent = bytes(24 << 20);
        let mut to = forward.connect()?;
        let mut from = to.try_clone()?;
        let mut seen = Vec::new();
        std::thread::scope(|scope| -> Result<()> {
            let writing = scope.spawn(|| -> Result<()> {
                to.write_all(&sent)?;
                to.shutdown(Shutdown::Write)?;
                Ok(())
            });
            from.read_to_end(&mut seen)?;
            writing.join().map_err(|_| anyhow::anyhow!("panicked"))?
        })?;
        ensure!(seen == sent, "{protocol:?}: {} bytes of {} came back, or others", seen.len(), sent.len());
        forward.stop()?;

        // Nobody listens: the client is told why, and not left waiting.
        let forward = Forward::start(protocol.kubectl(&cluster, &["port-forward", "pod/echo", ":9001"]))?;
        let mut end = Vec::new();
        let mut refused = forward.connect()?;
        refused.write_all(b"anybody?")?;
        let _reset_or_end = refused.read_to_end(&mut end);
        ensure!(end.is_empty(), "{protocol:?}: {end:?}");
        let said = forward.stop()?;
        has(
            &said,
            &["error forwarding port 9001 to pod echo", "failed to connect to localhost:9001 inside the pod"],
        )
        .with_context(|| format!("{protocol:?}"))?;
    }
    cluster.stop()
}

#[test]
fn a_client_that_attaches_sees_what_is_written_from_then_on_and_leaves_the_container_running() -> Result<()> {
    let cluster = ready("story-attach")?;
    for protocol in BOTH {
        let mut command = protocol.kubectl(&cluster, &["attach", "loud"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let numbers = |from: Box<dyn std::io::Read>, word: &str| -> Result<Vec<u32>> {
            let lines = BufReader::new(from).lines().map_while(Result::ok);
            let lines = lines.filter_map(|line| line.strip_prefix(word)?.trim().parse().ok());
            Ok(lines.take(20).collect())
        };
        let out = numbers(Box::new(child.stdout.take().context("no output")?), "out")?;
        let err = numbers(Box::new(child.stderr.take().context("no errors")?), "err")?;
        child.kill()?;
        child.wait()?;
        for seen in [&out, &err] {
            ensure!(seen.len() == 20, "{protocol:?}: {seen:?}");
            ensure!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{protocol:?}: {seen:?}");
        }

        // A Wasm container's output is its log's.
        let mut command = protocol.kubectl(&cluster, &["attach", "wasm"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let (sender, lines) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let page = format!("/{protocol:?}");
        let address =
            cluster.get(&["pod", "wasm"])?["status"]["podIP"].as_str().context("no address")?.to_owned();
        cluster.wait_for("the request in what the guest writes", || {
            cluster.kubectl(&[
                "exec",
                "loud",
                "--",
                "wget",
                "-q",
                "-O",
                "-",
                &format!("http://{address}{page}"),
            ])?;
            Ok(lines.try_iter().any(|line| line.contains(&page)).then_some(()))
        })?;
        child.kill()?;
        child.wait()?;
        drop(lines);
        reading.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    }
    for pod in ["loud", "wasm"] {
        let status = &cluster.get(&["pod", pod])?["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 0 && status["ready"] == true, "{pod}: {status}");
    }
    cluster.stop()
}

#[test]
fn a_terminal_is_attached_to_resized_left_and_attached_to_again() -> Result<()> {
    let cluster = ready("story-attach-tty")?;
    for protocol in BOTH {
        let attach = protocol.kubectl(&cluster, &["attach", "-it", "shell"]);
        let terminal = Terminal::start(&attach, 40, 132)?;
        let size = |wanted: &str| {
            cluster.wait_for(&format!("a terminal of {wanted} over {protocol:?}"), || {
                terminal.type_in("stty size\n")?;
                Ok(terminal.shown().contains(wanted).then_some(()))
            })
        };
        size("40 132")?;
        terminal.resize(50, 100)?;
        size("50 100")?;
        terminal.type_in(&format!("seen={protocol:?}\n"))?;
        cluster.wait_for("the shell to have heard it", || {
            terminal.type_in("echo heard-$seen\n")?;
            Ok(terminal.shown().contains(&format!("heard-{protocol:?}")).then_some(()))
        })?;
        drop(terminal);
        // The shell is the same one: it remembers.
        let terminal = Terminal::start(&attach, 30, 90)?;
        cluster.wait_for("what the shell remembers", || {
            terminal.type_in("echo seen-by-$seen\n")?;
            Ok(terminal.shown().contains(&format!("seen-by-{protocol:?}")).then_some(()))
        })?;
    }
    let status = &cluster.get(&["pod", "shell"])?["status"]["containerStatuses"][0];
    ensure!(status["restartCount"] == 0 && status["ready"] == true, "{status}");
    cluster.stop()
}

/// Runs it with an input; what it wrote and its exit code.
fn run(mut command: Command, input: &[u8]) -> Result<(Vec<u8>, String, Option<i32>)> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    let output = std::thread::scope(|scope| -> Result<_> {
        let writing = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output()?;
        // A command that does not read its input is no fault.
        let _not_read = writing.join();
        Ok(output)
    })?;
    Ok((output.stdout, String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code()))
}

#[test]
fn run_exec_and_cp_carry_input_output_and_exit_codes_over_both_protocols() -> Result<()> {
    let cluster = ready("story-exec")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("sent");
    std::fs::write(&file, bytes(16 << 20))?;
    for protocol in BOTH {
        let doing = || format!("over {protocol:?}");
        let kubectl = |args: &[&str]| protocol.kubectl(&cluster, args);
        let (out, err, code) =
            run(kubectl(&["exec", "loud", "--", "sh", "-c", "echo a; echo b >&2; exit 7"]), b"")?;
        ensure!(out == b"a\n" && code == Some(7), "{out:?} {err} {code:?} {}", doing());
        has(&err, &["b\n", "exit code 7"]).with_context(doing)?;
        let (out, err, code) = run(kubectl(&["exec", "loud", "--", "none"]), b"")?;
        ensure!(out.is_empty() && code != Some(0), "{}", doing());
        has(&err, &["none"]).with_context(doing)?;
        let input = bytes(8 << 20);
        let (out, err, code) = run(kubectl(&["exec", "-i", "loud", "--", "cat"]), &input)?;
        ensure!(
            out == input && code == Some(0),
            "{} of {} bytes, {err} {code:?} {}",
            out.len(),
            input.len(),
            doing()
        );

        // The first who attaches is the only one, and its end of input is the container's.
        let name = format!("once-{protocol:?}").to_lowercase();
        let args = [
            "run",
            &name,
            "-i",
            "--rm",
            "--quiet",
            "--restart=Never",
            "--image=busybox:1.36",
            "--",
            "sh",
            "-c",
            "cat; exit 3",
        ];
        let (out, err, code) = run(kubectl(&args), b"through the pod\n")?;
        ensure!(
            out == b"through the pod\n",
            "{:?} {err} {code:?} {}",
            String::from_utf8_lossy(&out),
            doing()
        );
        ensure!(code == Some(3), "{err} {code:?} {}", doing());
        cluster.wait_for("the pod to be gone", || {
            Ok(cluster.kubectl_fails(&["get", "pod", &name])?.contains("NotFound").then_some(()))
        })?;

        // Without that a client whose input ends is done, and the container goes on.
        let name = format!("open-{protocol:?}").to_lowercase();
        let args = [
            "run",
            &name,
            "-i",
            "--quiet",
            "--leave-stdin-open",
            "--restart=Never",
            "--image=busybox:1.36",
            "--",
            "sh",
            "-c",
            "cat; echo closed",
        ];
        let (_, err, code) = run(kubectl(&args), b"some input\n")?;
        ensure!(code == Some(0), "{err} {code:?} {}", doing());
        cluster.wait_for("the input in the log", || {
            Ok(cluster.kubectl(&["logs", &name])?.contains("some input").then_some(()))
        })?;
        ensure!(!cluster.kubectl(&["logs", &name])?.contains("closed"), "{}", doing());
        cluster.kubectl(&["delete", "pod", &name, "--grace-period=1"])?;

        let back = folder.path().join(format!("{protocol:?}"));
        let (from, to) = (file.to_str().context("no name")?, back.to_str().context("no name")?);
        for args in [["cp", from, "loud:/tmp/copied"], ["cp", "loud:/tmp/copied", to]] {
            let (_, err, code) = run(kubectl(&args), b"")?;
            ensure!(code == Some(0), "{args:?}: {err} {}", doing());
        }
        ensure!(std::fs::read(&file)? == std::fs::read(&back)?, "the copy differs {}", doing());
    }
    cluster.stop()
}
