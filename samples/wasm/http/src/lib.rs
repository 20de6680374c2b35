//! Answers every request with `hello from wasm`, and logs its method and path.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        println!("{:?} {path}", request.method());

        let headers = Fields::new();
        // Both are valid, and headers that are not sent do not keep the answer back.
        _ = headers.append("content-type", b"text/plain; charset=utf-8");
        let response = OutgoingResponse::new(headers);
        let body = response.body();
        ResponseOutparam::set(out, Ok(response));

        // A client that has gone is no fault of ours: there is no one left to tell.
        let Ok(body) = body else { return };
        if let Ok(stream) = body.write() {
            _ = stream.blocking_write_and_flush(b"hello from wasm\n");
        }
        _ = OutgoingBody::finish(body, None);
    }
}
