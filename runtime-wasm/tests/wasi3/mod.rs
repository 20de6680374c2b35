//! Guests of WASI 0.3: what is theirs alone. What they share with those of 0.2 has its tests in `serving`.

use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::TokioIo;
use skiff_cri::{ContainerRuntime, RuntimeState};

use crate::guests;
use crate::node::{Node, Options};
use crate::serving::{logged, serving_by};

const PORT: u16 = 8080;
const MIB: i64 = 1 << 20;

pub async fn a_command_has_all_interfaces_of_its_world() {
    let (node, volume) = (Node::new().await, tempfile::tempdir().unwrap());
    let options = Options {
        args: &["everything", "one", "two"],
        env: &[("GREETING", "hi")],
        mounts: &[(volume.path().to_str().unwrap(), "/data", false)],
        ..Options::default()
    };
    node.run("c", &guests::command3(), options).await;
    let ended = node.wait_exit("c").await;
    let lines = node.log("c");
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"), "{ended:?} {lines:?}");
    let said = [
        "stdout F hi one two",
        "stderr F to stderr",
        r#"stdout F file "of a file" in ["made"]"#,
        "stdout F over tcp, over udp",
    ];
    assert_eq!(lines, said);
    assert_eq!(std::fs::read(volume.path().join("made")).unwrap(), b"content of a file");
    node.end().await;
}

pub async fn a_command_ends_as_it_says_and_not_before_its_tasks() {
    let (node, component) = (Node::new().await, guests::command3());
    for (word, exit_code) in [("fail", 1), ("exit", 7), ("trap", 1), ("late", 0)] {
        node.run(word, &component, Options { args: &[word], ..Options::default() }).await;
        assert_eq!(node.wait_exit(word).await.exit_code, exit_code, "{word}");
    }
    assert_eq!(node.log("late"), ["stdout F late"]);
    assert!(node.log("trap")[0].contains("wasm trap: wasm `unreachable`"), "{:?}", node.log("trap"));
    node.run("spin", &component, Options { args: &["spin"], ..Options::default() }).await;
    node.runtime.stop("spin", std::time::Duration::ZERO).await.unwrap();
    assert_eq!(node.runtime.status("spin").await.unwrap().exit_code, 137);
    node.end().await;
}

pub async fn a_command_is_told_when_it_has_its_share_of_files() {
    let (node, component, volume) = (Node::new().await, guests::command3(), tempfile::tempdir().unwrap());
    let mounts = [(volume.path().to_str().unwrap(), "/data", false)];
    for word in ["open-forever", "streams-forever"] {
        node.run(word, &component, Options { args: &[word], mounts: &mounts, ..Options::default() }).await;
        assert_eq!(node.wait_exit(word).await.exit_code, 0, "{:?}", node.log(word));
        let lines = node.log(word);
        assert!(lines.len() == 1 && lines[0].starts_with("stdout F full at "), "{word}: {lines:?}");
    }
    node.end().await;
}

pub async fn bodies_and_trailers_go_through_a_handler_as_they_come() {
    let (node, netns) = serving_by(&guests::serving3(), Options::default()).await;
    let (text, trailers) = netns.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", PORT)).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let mut sum = http::HeaderMap::new();
            sum.insert("x-sum", "7".parse().unwrap());
            let (parts, body) = tokio::sync::mpsc::channel(1);
            let body = StreamBody::new(tokio_stream(body));
            let request = http::Request::post("/echo")
                .header("host", "a")
                .header("trailer", "x-sum")
                .header("te", "trailers")
                .body(body)
                .unwrap();
            let answer = tokio::spawn(sender.send_request(request));
            parts.send(Frame::data(Bytes::from_static(b"first "))).await.unwrap();
            let mut answer = answer.await.unwrap().unwrap();
            // The first part is here before the second has been sent.
            let first = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(first, "first ");
            parts.send(Frame::data(Bytes::from_static(b"second"))).await.unwrap();
            parts.send(Frame::trailers(sum)).await.unwrap();
            drop(parts);
            let rest = answer.collect().await.unwrap();
            let trailers = rest.trailers().cloned();
            (rest.to_bytes(), trailers)
        })
    });
    assert_eq!(text, "second");
    assert_eq!(trailers.unwrap().get("x-sum").unwrap(), "7");
    assert_eq!(netns.fetch(PORT, "/trailers"), (200, "part".to_owned(), true));
    assert_eq!(netns.fetch(PORT, "/pour/64").1.len(), 64 << 20);
    // A guest that answers with an error says which.
    assert_eq!(netns.fetch(PORT, "/refuse").0, 500);
    logged(&node, "not today").await;
    node.end().await;
}

fn tokio_stream(
    mut parts: tokio::sync::mpsc::Receiver<Frame<Bytes>>,
) -> impl futures::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> {
    futures::stream::poll_fn(move |context| parts.poll_recv(context).map(|part| part.map(Ok)))
}

pub async fn a_handler_that_is_refused_memory_fails_alone() {
    let (node, netns) =
        serving_by(&guests::serving3(), Options { memory: 32 * MIB, ..Options::default() }).await;
    assert_ne!(netns.fetch(PORT, "/hold/80/0").0, 200);
    assert_eq!(netns.fetch(PORT, "/hold/8/0").0, 200);
    assert_eq!(node.runtime.status("c").await.unwrap().state, RuntimeState::Running);
    node.end().await;
}
