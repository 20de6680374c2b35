//! What clients of a server see: whole answers, answers that are cut, and what they may send.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::LONG;
use crate::guests;
use crate::node::{Netns, Node, Options};

const PORT: u16 = 8080;

/// A node with a server in a pod, whose container is `c`.
pub async fn serving(options: Options<'_>) -> (Node, Netns) {
    serving_by(&guests::serving(), options).await
}

pub async fn serving_by(component: &[u8], options: Options<'_>) -> (Node, Netns) {
    let (node, netns) = (Node::new().await, Netns::new());
    let netns_path = Some(netns.path.clone());
    node.run("c", component, Options { netns: netns_path, ..options }).await;
    (node, netns)
}

/// The same server as WASI 0.2 and 0.3 have it.
fn both() -> [Vec<u8>; 2] {
    [guests::serving(), guests::serving3()]
}

/// The log's lines once one of them has `text` in it.
pub async fn logged(node: &Node, text: &str) -> Vec<String> {
    let deadline = Instant::now() + LONG;
    loop {
        let lines = node.log("c");
        if lines.iter().any(|line| line.contains(text)) {
            return lines;
        }
        assert!(Instant::now() < deadline, "no {text:?} in {lines:?}");
        tokio::task::yield_now().await;
    }
}

pub async fn an_answer_that_is_cut_short_looks_so_and_the_log_says_why() {
    for component in both() {
        let (node, netns) = serving_by(&component, Options::default()).await;
        // What was written before comes, and no end after it.
        assert_eq!(netns.fetch(PORT, "/cut"), (200, "part".to_owned(), false));
        let lines = logged(&node, "falls_over").await;
        let at = lines.iter().position(|line| line.contains("response cut short")).unwrap();
        assert_eq!(
            lines[at],
            "stderr F response cut short: wasm trap: wasm `unreachable` instruction executed"
        );
        assert!(
            lines[at + 1].starts_with("stderr F     at ") && lines[at + 1].contains("falls_over"),
            "{lines:?}"
        );
        assert_eq!(netns.fetch(PORT, "/cut-length"), (200, "part".to_owned(), false));
        // HTTP/1.0 has no other end of a body than that of the connection.
        let (answer, ended) = netns.ask(PORT, "GET /cut HTTP/1.0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let (answer, ended) = netns.ask(PORT, "GET /hello HTTP/1.0\r\n\r\n");
        assert!(ended.is_ok() && answer.ends_with("hello\n"), "{answer}");

        // What a guest has finished is whole, whatever becomes of it afterwards.
        assert_eq!(netns.fetch(PORT, "/whole-then-trap"), (200, "part".to_owned(), true));
        assert_eq!(netns.fetch(PORT, "/hello"), (200, "hello\n".to_owned(), true));
        let (status, text, is_whole) = netns.fetch(PORT, "/trap");
        assert_eq!((status, is_whole), (500, true), "{text}");
        logged(&node, "request failed: wasm trap").await;
        node.end().await;
    }
}

pub async fn a_guest_that_asks_another_sees_that_its_answer_was_cut_short() {
    for component in both() {
        let (node, netns) = serving_by(&component, Options::default()).await;
        for (path, said) in [
            ("cut", "broken 4"),
            ("cut-length", "broken 4"),
            ("whole-then-trap", "whole 4"),
            ("hello", "whole 6"),
        ] {
            let fetched = netns.fetch(PORT, &format!("/fetch/127.0.0.1:{PORT}/{path}"));
            assert_eq!(fetched, (200, said.to_owned(), true), "{path}");
        }
        // And so does one that is asked by a guest that traps halfway.
        netns.fetch(PORT, &format!("/push/127.0.0.1:{PORT}"));
        logged(&node, "upload broken 4").await;
        node.end().await;
    }
}

pub async fn an_answer_over_http2_that_is_cut_short_is_reset() {
    for component in both() {
        let (node, netns) = serving_by(&component, Options::default()).await;
        let ask = |path: &'static str| {
            netns.inside(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let stream = tokio::net::TcpStream::connect(("127.0.0.1", PORT)).await.unwrap();
                    let io = TokioIo::new(stream);
                    let (mut sender, connection) =
                        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                    tokio::spawn(connection);
                    let uri = format!("http://pod.example:{PORT}{path}");
                    let request = http::Request::get(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
                    let mut answer = sender.send_request(request).await.unwrap();
                    let mut text = Vec::new();
                    let ended = loop {
                        match answer.frame().await {
                            None => break Ok(()),
                            Some(Err(err)) => break Err(format!("{err:?}")),
                            Some(Ok(frame)) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
                        }
                    };
                    (answer.status().as_u16(), String::from_utf8(text).unwrap(), ended)
                })
            })
        };
        assert_eq!(ask("/hello"), (200, "hello\n".to_owned(), Ok(())));
        assert_eq!(ask("/authority").1, format!("pod.example:{PORT}"));
        let (status, text, ended) = ask("/cut");
        assert_eq!((status, text.as_str()), (200, "part"));
        assert!(ended.as_ref().unwrap_err().contains("INTERNAL_ERROR"), "{ended:?}");
        assert_eq!(ask("/whole-then-trap"), (200, "part".to_owned(), Ok(())));
        node.end().await;
    }
}

pub async fn a_request_takes_as_long_as_its_pod_lets_it() {
    for component in both() {
        let annotations = [("skiff.dev/wasm-request-timeout", "300ms")];
        let (node, netns) =
            serving_by(&component, Options { annotations: &annotations, ..Options::default() }).await;
        let (status, text, is_whole) = netns.fetch(PORT, "/stream/1000/50");
        assert_eq!((status, is_whole), (200, false));
        assert!(text.starts_with("partpart"), "{text}");
        logged(&node, "response cut short: it took longer than 0.3 s").await;
        assert_eq!(netns.fetch(PORT, "/hang").0, 504);
        logged(&node, "request failed: it took longer than 0.3 s").await;
        assert_eq!(netns.fetch(PORT, "/hello"), (200, "hello\n".to_owned(), true));
        node.end().await;
    }
}

pub async fn a_request_says_whom_it_asks_as_its_version_wants_it() {
    let (node, netns) = serving(Options::default()).await;
    let ask = |request: &str| {
        let (answer, _) = netns.ask(PORT, request);
        (answer.lines().next().unwrap_or_default().to_owned(), answer)
    };
    for head in [
        "GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a/b\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: u@a\r\nconnection: close\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
    ] {
        let (first, answer) = ask(head);
        assert!(first.ends_with(" 400 Bad Request"), "{head}: {answer}");
    }
    let (first, answer) = ask("GET /authority HTTP/1.0\r\n\r\n");
    assert_eq!(first, "HTTP/1.0 200 OK");
    assert!(answer.ends_with(&format!("127.0.0.1:{PORT}")), "{answer}");
    let (_, answer) = ask("GET /authority HTTP/1.0\r\nhost: a.example\r\n\r\n");
    assert!(answer.ends_with("a.example"), "{answer}");
    let (_, answer) =
        ask("GET http://b.example/authority HTTP/1.1\r\nhost: b.example\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("b.example"), "{answer}");
    node.end().await;
}

pub async fn a_body_that_is_malformed_is_no_whole_one_and_one_that_is_half_closed_is() {
    for component in both() {
        let (node, netns) = serving_by(&component, Options::default()).await;
        let chunked = "POST /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let half_closed = |text: &str| {
            netns.inside(|| {
                let mut stream = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        };
        // A client that has said all it has to say still gets its answer.
        let answer = half_closed(&format!("{chunked}4\r\npart\r\n0\r\n\r\n"));
        assert!(answer.contains("whole 4"), "{answer}");
        let answer = half_closed("GET /hold/1/1500 HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(answer.contains("held 1"), "{answer}");
        // One that stops in the middle has not sent a whole body.
        half_closed(&format!("{chunked}4\r\npart\r\n"));
        logged(&node, "upload broken 4").await;
        for body in ["x\r\npart\r\n0\r\n\r\n", "4\r\npartial\r\n0\r\n\r\n", "fffffffffffffffff\r\npart"] {
            let (answer, _) = netns.ask(PORT, &format!("{chunked}{body}"));
            assert!(!answer.contains("whole"), "{body}: {answer}");
        }
        let both = "POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\npart";
        let (answer, _) = netns.ask(PORT, both);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        node.end().await;
    }
}

pub async fn the_time_between_two_parts_of_an_answer_is_as_the_guest_wants_it() {
    for component in both() {
        let (node, netns) = serving_by(&component, Options::default()).await;
        let asked = |path: &str| netns.fetch(PORT, &format!("/fetch-timely/127.0.0.1:{PORT}/{path}")).1;
        assert_eq!(asked("stream/10/40"), "whole 40");
        let began = Instant::now();
        assert_eq!(asked("hang-after"), "broken 4");
        assert!(began.elapsed() < Duration::from_secs(5));
        node.end().await;
    }
}

pub async fn clients_that_say_nothing_or_next_to_nothing_give_way() {
    let (node, netns) = serving(Options::default()).await;
    let connect = |say: &'static str, n: usize| {
        netns.inside(|| {
            let connect = |_| {
                let mut stream = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
                stream.write_all(say.as_bytes()).unwrap();
                stream
            };
            (0..n).map(connect).collect::<Vec<_>>()
        })
    };
    let in_turn = |what: &str| {
        let began = Instant::now();
        // Each try waits in line.
        while netns.fetch(PORT, "/hello").0 != 200 {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        }
        println!("a request had its turn after {:?}: {what}", began.elapsed());
        began.elapsed()
    };
    // Uploads that never go on take all places for requests.
    let slow = connect("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\npart", 128);
    assert!(in_turn("uploads") < Duration::from_secs(10));
    logged(&node, "request failed: its client was slow, and others waited").await;
    drop(slow);
    // So do those who do not take what they asked for. With small buffers that does not take long.
    netns.inside(|| {
        for buffers in ["/proc/sys/net/ipv4/tcp_wmem", "/proc/sys/net/ipv4/tcp_rmem"] {
            std::fs::write(buffers, "4096 16384 65536").unwrap();
        }
    });
    let slow = connect("GET /pour/64 HTTP/1.1\r\nhost: a\r\n\r\n", 128);
    in_turn("downloads");
    logged(&node, "response cut short: its client was slow, and others waited").await;
    drop(slow);
    // And those who have left a guest that does not notice.
    drop(connect("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n", 128));
    assert!(in_turn("gone") < Duration::from_secs(10));
    // Silent connections take all places for connections.
    let silent = connect("", 1030);
    assert!(in_turn("connections") < Duration::from_secs(10));
    drop(silent);
    node.end().await;
}
