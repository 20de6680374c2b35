//! A guest for `wasm32-wasip2` that opens files or sockets without end, keeps them, and says how many it was given.

use std::fs::File;
use std::net::TcpListener;

fn main() {
    let what = std::env::args().last().unwrap_or_default();
    let (mut files, mut sockets) = (Vec::new(), Vec::new());
    let error = loop {
        let opened = match what.as_str() {
            "sockets" => TcpListener::bind("127.0.0.1:0").map(|socket| sockets.push(socket)),
            _ => File::open("/data/file").map(|file| files.push(file)),
        };
        if let Err(error) = opened {
            break error;
        }
    };
    println!("{} {}", files.len() + sockets.len(), error.raw_os_error().unwrap_or_default());
    // What was closed may be opened again.
    files.clear();
    sockets.clear();
    println!("{}", File::open("/data/file").is_ok());
}
