//! Takes every descriptor that its host gives it, files and sockets, and keeps them for ever.

use std::fs::File;
use std::net::TcpListener;
use std::time::Duration;

/// More than any host has.
const MOST: usize = 100_000;
const AGAIN_AFTER: Duration = Duration::from_secs(1);

fn main() {
    let (mut files, mut sockets) = (Vec::new(), Vec::new());
    loop {
        while files.len() < MOST
            && let Ok(file) = File::create(format!("/data/{}", files.len()))
        {
            files.push(file);
        }
        while sockets.len() < MOST
            && let Ok(socket) = TcpListener::bind("0.0.0.0:0")
        {
            sockets.push(socket);
        }
        println!("{} files, {} sockets", files.len(), sockets.len());
        std::thread::sleep(AGAIN_AFTER);
    }
}
