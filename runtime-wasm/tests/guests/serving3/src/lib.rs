//! A server of WASI 0.3 that does what its path says. The paths are those of `serving`, which does the same in 0.2.

use std::hint::black_box;

use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::exports::http::handler::Guest;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme, Trailers};
use wasip3::wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};
use wasip3::{spawn_local, wit_future, wit_stream};

wasip3::http::service::export!(Serving);

struct Serving;

const MS: u64 = 1_000_000;
const MIB: usize = 1 << 20;

type Ending = Result<Option<Trailers>, ErrorCode>;

impl Guest for Serving {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let words: Vec<String> = path.trim_matches('/').split('/').map(str::to_owned).collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        let (first, second) = (number(1), number(2));
        match words[0].as_str() {
            "trap" => falls_over(),
            "refuse" => return Err(ErrorCode::InternalError(Some("not today".to_owned()))),
            "hang" => wait_for(3_600_000 * MS).await,
            // Begins an answer and traps.
            "cut" | "cut-length" => {
                let (mut answer, response) = begin((words[0] == "cut-length").then_some(100));
                spawn_local(async move {
                    answer.part(b"part").await;
                    // In another turn: whoever reads has it by now.
                    wait_for(50 * MS).await;
                    falls_over();
                });
                return Ok(response);
            }
            "whole-then-trap" => {
                let (answer, response) = begin(None);
                spawn_local(async move {
                    answer.finish(b"part", None).await;
                    falls_over();
                });
                return Ok(response);
            }
            "hang-after" => {
                let (mut answer, response) = begin(None);
                spawn_local(async move {
                    answer.part(b"part").await;
                    wait_for(3_600_000 * MS).await;
                });
                return Ok(response);
            }
            // So many parts, so many milliseconds apart.
            "stream" => {
                let (mut answer, response) = begin(None);
                spawn_local(async move {
                    for _ in 0..first {
                        answer.part(b"part").await;
                        wait_for(second * MS).await;
                    }
                    answer.finish(b"", None).await;
                });
                return Ok(response);
            }
            // So many MiB, as fast as they are taken.
            "pour" => {
                let (mut answer, response) = begin(None);
                spawn_local(async move {
                    for _ in 0..first * 16 {
                        if !answer.part(&[b'x'; 65536]).await {
                            break;
                        }
                    }
                    answer.finish(b"", None).await;
                });
                return Ok(response);
            }
            // What comes, goes, with its trailers.
            "echo" => {
                let (body, trailers) = Request::consume_body(request, unread());
                let headers = Fields::from_list(&[("trailer".to_owned(), b"x-sum".to_vec())]).unwrap();
                return Ok(Response::new(headers, Some(body), trailers).0);
            }
            "trailers" => {
                let (answer, response) = begin(None);
                spawn_local(async move {
                    let trailers = Fields::from_list(&[("x-sum".to_owned(), b"7".to_vec())]).unwrap();
                    answer.finish(b"part", Some(trailers)).await;
                });
                return Ok(response);
            }
            // Touches so many MiB, and keeps them for so many milliseconds.
            "hold" => {
                let mut held: Vec<u8> = Vec::with_capacity(first as usize * MIB);
                held.resize(held.capacity(), 1);
                black_box(&held);
                wait_for(second * MS).await;
                return Ok(say(format!("held {}\n", black_box(held).len() / MIB)));
            }
            "authority" => return Ok(say(request.get_authority().unwrap_or_default())),
            "upload" => {
                let (body, ending) = Request::consume_body(request, unread());
                let said = read(body, ending).await;
                println!("upload {said}");
                return Ok(say(said));
            }
            "fetch" | "fetch-timely" => {
                let options = (words[0] == "fetch-timely").then(RequestOptions::new);
                if let Some(options) = &options {
                    options.set_between_bytes_timeout(Some(200 * MS)).unwrap();
                }
                let (ending, trailers) = wit_future::new(|| Ok(None));
                drop(ending);
                let request = ask(Method::Get, &words[1], &words[2..].join("/"), None, trailers, options);
                return Ok(say(match client::send(request).await {
                    Ok(response) => {
                        let (body, ending) = Response::consume_body(response, unread());
                        read(body, ending).await
                    }
                    Err(code) => format!("failed: {code}"),
                }));
            }
            // Sends a part of a request's body and traps.
            "push" => {
                let (mut answer, body, trailers) = Answer::new();
                let request = ask(Method::Post, &words[1], "upload", Some(body), trailers, None);
                spawn_local(async move {
                    answer.part(b"part").await;
                    wait_for(100 * MS).await;
                    falls_over();
                });
                let answered = client::send(request).await;
                black_box(answered.is_ok());
            }
            // Makes fields of so many KiB each until it is stopped, and keeps them all.
            "fields" => {
                let mut all = Vec::new();
                loop {
                    let value = vec![b'x'; first as usize * 1024];
                    all.push(Fields::from_list(&[("x".to_owned(), value)]).unwrap());
                    black_box(&all);
                }
            }
            _ => {}
        }
        Ok(say("hello\n".to_owned()))
    }
}

#[inline(never)]
fn falls_over() -> ! {
    core::arch::wasm32::unreachable()
}

/// Nothing is said about how a body was read.
fn unread() -> FutureReader<Result<(), ErrorCode>> {
    wit_future::new(|| Ok(())).1
}

struct Answer {
    body: StreamWriter<u8>,
    ending: FutureWriter<Ending>,
}

impl Answer {
    fn new() -> (Answer, StreamReader<u8>, FutureReader<Ending>) {
        let (body, read) = wit_stream::new();
        let (ending, trailers) = wit_future::new(|| Ok(None));
        (Answer { body, ending }, read, trailers)
    }

    /// Whether it was taken.
    async fn part(&mut self, text: &[u8]) -> bool {
        self.body.write_all(text.to_vec()).await.is_empty()
    }

    async fn finish(mut self, text: &[u8], trailers: Option<Trailers>) {
        if !text.is_empty() {
            self.part(text).await;
        }
        drop(self.body);
        // Nobody may be there to read it.
        _ = self.ending.write(Ok(trailers)).await;
    }
}

fn begin(length: Option<u64>) -> (Answer, Response) {
    let headers = Fields::new();
    if let Some(length) = length {
        headers.append("content-length", length.to_string().as_bytes()).unwrap();
    }
    let (answer, body, trailers) = Answer::new();
    (answer, Response::new(headers, Some(body), trailers).0)
}

fn say(text: String) -> Response {
    let (answer, response) = begin(None);
    spawn_local(answer.finish_owned(text));
    response
}

impl Answer {
    async fn finish_owned(self, text: String) {
        self.finish(text.as_bytes(), None).await;
    }
}

fn ask(
    method: Method,
    authority: &str,
    path: &str,
    body: Option<StreamReader<u8>>,
    trailers: FutureReader<Ending>,
    options: Option<RequestOptions>,
) -> Request {
    let (request, _) = Request::new(Fields::new(), body, trailers, options);
    request.set_method(&method).unwrap();
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some(authority)).unwrap();
    request.set_path_with_query(Some(&format!("/{path}"))).unwrap();
    request
}

/// How much of a body there was, and how it ended.
async fn read(mut body: StreamReader<u8>, ending: FutureReader<Ending>) -> String {
    let mut n_bytes = 0;
    loop {
        let (result, part) = body.read(Vec::with_capacity(65536)).await;
        n_bytes += part.len();
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    drop(body);
    match ending.await {
        Ok(_) => format!("whole {n_bytes}"),
        Err(_) => format!("broken {n_bytes}"),
    }
}
