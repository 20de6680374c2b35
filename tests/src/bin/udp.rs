//! `udp PORT`: answers each datagram with this host's name and what it said. For stories about UDP, which no shell of a
//! test image speaks.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result};

const MAX_BYTES: usize = 1400;

fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("usage: udp PORT")?.parse().context("no port")?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host name")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening")?;
    let mut buffer = [0; MAX_BYTES];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).context("receiving")?;
        let answer = format!("{} {}", host.trim(), String::from_utf8_lossy(&buffer[..length]));
        // Who asked may have gone.
        let _ = socket.send_to(answer.as_bytes(), from);
    }
}
