//! Answers every request with `hello from wasm`, and logs its method and path. `/fetch/NAME` answers with what
//! `http://NAME/` says, so that one can see the component find other Services.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

wasip2::http::proxy::export!(Hello);

struct Hello;

/// What is passed on of another's answer.
const MAX_BYTES: usize = 64 * 1024;

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        println!("{:?} {path}", request.method());
        let (status, text) = match path.strip_prefix("/fetch/") {
            None => (200, b"hello from wasm\n".to_vec()),
            Some(name) => match fetch(name) {
                Ok(body) => (200, body),
                Err(why) => (502, format!("wasm cannot fetch {name}: {why}\n").into_bytes()),
            },
        };

        let headers = Fields::new();
        // Both are valid, and headers that are not sent do not keep the answer back.
        _ = headers.append("content-type", b"text/plain; charset=utf-8");
        let response = OutgoingResponse::new(headers);
        _ = response.set_status_code(status);
        let body = response.body();
        ResponseOutparam::set(out, Ok(response));

        // A client that has gone is no fault of ours: there is no one left to tell.
        let Ok(body) = body else { return };
        if let Ok(stream) = body.write() {
            // As much as one call may write.
            for part in text.chunks(4096) {
                _ = stream.blocking_write_and_flush(part);
            }
        }
        _ = OutgoingBody::finish(body, None);
    }
}

fn fetch(authority: &str) -> Result<Vec<u8>, String> {
    let invalid = |()| "it is no host name".to_owned();
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(invalid)?;
    request.set_authority(Some(authority)).map_err(invalid)?;
    request.set_path_with_query(Some("/")).map_err(invalid)?;
    let pending = outgoing_handler::handle(request, None).map_err(|code| code.to_string())?;
    pending.subscribe().block();
    let answer = pending.get().and_then(Result::ok).ok_or("there is no answer")?;
    let response = answer.map_err(|code| code.to_string())?;
    let body = response.consume().map_err(|()| "the answer has no body")?;
    let stream = body.stream().map_err(|()| "the answer's body cannot be read")?;
    let mut read = Vec::new();
    while read.len() < MAX_BYTES {
        match stream.blocking_read(4096) {
            Ok(part) => read.extend(part),
            Err(StreamError::Closed) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(read)
}
