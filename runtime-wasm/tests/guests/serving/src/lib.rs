//! A server that does what its path says: answers, traps, hangs, takes memory, asks another server.

use std::hint::black_box;

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    RequestOptions, ResponseOutparam, Scheme,
};
use wasip2::io::streams::{OutputStream, StreamError};

wasip2::http::proxy::export!(Serving);

struct Serving;

const MS: u64 = 1_000_000;
const MIB: usize = 1 << 20;

impl Guest for Serving {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        match words[0] {
            "trap" => falls_over(),
            "hang" => pause(3_600_000),
            // Begins an answer and traps.
            "cut" => begin(out, None).write(b"part", falls_over),
            "cut-length" => begin(out, Some(100)).write(b"part", falls_over),
            "whole-then-trap" => {
                begin(out, None).finish(b"part");
                falls_over();
            }
            "hang-after" => begin(out, None).write(b"part", || pause(3_600_000)),
            // So many parts, so many milliseconds apart.
            "stream" => {
                let answer = begin(out, None);
                for _ in 0..number(1) {
                    answer.part(b"part");
                    pause(number(2));
                }
                answer.finish(b"");
            }
            // So many MiB, as fast as they are taken.
            "pour" => {
                let answer = begin(out, None);
                let n_taken = (0..number(1) * 256).take_while(|_| answer.part(&[b'x'; 4096])).count();
                black_box(n_taken);
                answer.finish(b"");
            }
            // Touches so many MiB, and keeps them for so many milliseconds.
            "hold" => {
                let mut held: Vec<u8> = Vec::with_capacity(number(1) as usize * MIB);
                held.resize(held.capacity(), 1);
                black_box(&held);
                pause(number(2));
                begin(out, None).finish(format!("held {}\n", black_box(held).len() / MIB).as_bytes());
            }
            "grow" => {
                let grown = core::arch::wasm32::memory_grow::<0>(number(1) as usize * MIB / 65536);
                begin(out, None).finish(format!("{}\n", grown as isize).as_bytes());
            }
            // Makes fields of so many KiB each until it is stopped, and keeps them all.
            "fields" => {
                let mut all = Vec::new();
                loop {
                    let value = vec![b'x'; number(1) as usize * 1024];
                    all.push(Fields::from_list(&[("x".to_owned(), value)]).unwrap());
                    black_box(&all);
                }
            }
            // Begins so many requests, and writes a part of a body for each that nobody takes.
            "bodies" => {
                let mut all = Vec::new();
                for _ in 0..number(1) {
                    let request = OutgoingRequest::new(Fields::new());
                    let body = request.body().unwrap();
                    let stream = body.write().unwrap();
                    if let Ok(room) = stream.check_write() {
                        _ = stream.write(&vec![b'x'; room.min(1 << 20) as usize]);
                    }
                    // In this order: a body outlives its stream.
                    all.push((stream, body, request));
                }
                begin(out, None).finish(format!("{}\n", black_box(all).len()).as_bytes());
            }
            "authority" => begin(out, None).finish(request.authority().unwrap_or_default().as_bytes()),
            "upload" => {
                let said = read(request.consume().unwrap());
                println!("upload {said}");
                begin(out, None).finish(said.as_bytes());
            }
            "fetch" | "fetch-timely" => {
                let options = (words[0] == "fetch-timely").then(RequestOptions::new);
                if let Some(options) = &options {
                    options.set_between_bytes_timeout(Some(200 * MS)).unwrap();
                }
                let request = ask(Method::Get, words[1], &words[2..].join("/"));
                let pending = outgoing_handler::handle(request, options).unwrap();
                pending.subscribe().block();
                let said = match pending.get().unwrap().unwrap() {
                    Ok(answer) => read(answer.consume().unwrap()),
                    Err(code) => format!("failed: {code}"),
                };
                begin(out, None).finish(said.as_bytes());
            }
            // Sends a part of a request's body and traps.
            "push" => {
                let request = ask(Method::Post, words[1], "upload");
                let body = request.body().unwrap();
                let pending = outgoing_handler::handle(request, None).unwrap();
                let stream = body.write().unwrap();
                stream.blocking_write_and_flush(b"part").unwrap();
                pause(100);
                black_box((&pending, &body, &stream));
                falls_over();
            }
            _ => begin(out, None).finish(b"hello\n"),
        }
    }
}

#[inline(never)]
fn falls_over() {
    core::arch::wasm32::unreachable()
}

fn pause(ms: u64) {
    subscribe_duration(ms * MS).block();
}

struct Answer {
    body: OutgoingBody,
    stream: OutputStream,
}

fn begin(out: ResponseOutparam, length: Option<u64>) -> Answer {
    let headers = Fields::new();
    if let Some(length) = length {
        headers.append("content-length", length.to_string().as_bytes()).unwrap();
    }
    let response = OutgoingResponse::new(headers);
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().unwrap();
    Answer { body, stream }
}

impl Answer {
    /// Whether the client still takes it. One that has gone is no fault of ours.
    fn part(&self, text: &[u8]) -> bool {
        self.stream.blocking_write_and_flush(text).is_ok()
    }

    fn write(self, text: &[u8], then: impl Fn()) {
        self.part(text);
        then();
        self.finish(b"");
    }

    fn finish(self, text: &[u8]) {
        if !text.is_empty() {
            self.part(text);
        }
        drop(self.stream);
        _ = OutgoingBody::finish(self.body, None);
    }
}

fn ask(method: Method, authority: &str, path: &str) -> OutgoingRequest {
    let request = OutgoingRequest::new(Fields::new());
    request.set_method(&method).unwrap();
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some(authority)).unwrap();
    request.set_path_with_query(Some(&format!("/{path}"))).unwrap();
    request
}

/// How much of a body there was, and how it ended.
fn read(body: IncomingBody) -> String {
    let stream = body.stream().unwrap();
    let mut n_bytes = 0;
    loop {
        match stream.blocking_read(65536) {
            Ok(part) => n_bytes += part.len(),
            Err(StreamError::Closed) => return format!("whole {n_bytes}"),
            Err(StreamError::LastOperationFailed(_)) => return format!("broken {n_bytes}"),
        }
    }
}
