//! A command of WASI 0.3 that does what its first argument says, and nothing by way of 0.2 that it could do by 0.3.

use wasip3::cli::{environment, exit, stderr, stdout};
use wasip3::clocks::{monotonic_clock, system_clock};
use wasip3::exports::cli::run::Guest;
use wasip3::filesystem::preopens;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip3::random::random;
use wasip3::sockets::ip_name_lookup;
use wasip3::sockets::types::{
    IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket, UdpSocket,
};
use wasip3::wit_bindgen::StreamReader;
use wasip3::{spawn_local, wit_stream};

wasip3::cli::command::export!(Program);

struct Program;

const MS: u64 = 1_000_000;

impl Guest for Program {
    async fn run() -> Result<(), ()> {
        let arguments = environment::get_arguments();
        match arguments.get(1).map_or("", String::as_str) {
            "everything" => everything().await,
            "fail" => return Err(()),
            "exit" => exit::exit_with_code(7),
            "trap" => core::arch::wasm32::unreachable(),
            "spin" => loop {
                std::hint::black_box(());
            },
            "open-forever" => open_forever().await,
            "streams-forever" => streams_forever().await,
            // Says something when it has returned.
            "late" => {
                spawn_local(async {
                    monotonic_clock::wait_for(100 * MS).await;
                    say("late").await;
                });
            }
            other => say(&format!("nothing to do for {other:?}")).await,
        }
        Ok(())
    }
}

fn bytes(text: &[u8]) -> StreamReader<u8> {
    let (mut writer, reader) = wit_stream::new();
    let text = text.to_vec();
    spawn_local(async move { drop(writer.write_all(text).await) });
    reader
}

async fn say(line: &str) {
    stdout::write_via_stream(bytes(format!("{line}\n").as_bytes())).await.unwrap();
}

/// The directory of the volume, which is the first.
fn directory() -> Descriptor {
    preopens::get_directories().remove(0).0
}

async fn everything() {
    let variables = environment::get_environment();
    let greeting = variables.iter().find(|(name, _)| name == "GREETING").map(|(_, value)| value.as_str());
    say(&format!("{} {}", greeting.unwrap_or("no greeting"), environment::get_arguments()[2..].join(" "))).await;
    stderr::write_via_stream(bytes(b"to stderr\n")).await.unwrap();

    let before = monotonic_clock::now();
    monotonic_clock::wait_for(20 * MS).await;
    assert!(monotonic_clock::now() - before >= 20 * MS);
    assert!(system_clock::now().seconds > 1_700_000_000);
    assert_eq!(random::get_random_bytes(16).len(), 16);

    let open = OpenFlags::CREATE | OpenFlags::TRUNCATE;
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    let file = directory().open_at(PathFlags::empty(), "made".to_owned(), open, flags).await.unwrap();
    file.write_via_stream(bytes(b"content of a file"), 0).await.unwrap();
    let (content, read) = file.read_via_stream(8);
    let content = String::from_utf8(content.collect().await).unwrap();
    read.await.unwrap();
    let (entries, listed) = directory().read_directory();
    let names: Vec<_> = entries.collect().await.into_iter().map(|entry| entry.name).collect();
    listed.await.unwrap();
    say(&format!("file {content:?} in {names:?}")).await;

    let loopback = |port| IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (127, 0, 0, 1) });
    let listener = TcpSocket::create(IpAddressFamily::Ipv4).unwrap();
    listener.bind(loopback(0)).unwrap();
    let mut accepted = listener.listen().unwrap();
    let client = TcpSocket::create(IpAddressFamily::Ipv4).unwrap();
    client.connect(listener.get_local_address().unwrap()).await.unwrap();
    client.send(bytes(b"over tcp")).await.unwrap();
    let server = accepted.next().await.unwrap();
    let (received, whole) = server.receive();
    let received = String::from_utf8(received.collect().await).unwrap();
    whole.await.unwrap();

    let (one, other) =
        (UdpSocket::create(IpAddressFamily::Ipv4).unwrap(), UdpSocket::create(IpAddressFamily::Ipv4).unwrap());
    one.bind(loopback(0)).unwrap();
    other.bind(loopback(0)).unwrap();
    one.send(b"over udp".to_vec(), Some(other.get_local_address().unwrap())).await.unwrap();
    let (datagram, _) = other.receive().await.unwrap();
    say(&format!("{received}, {}", String::from_utf8(datagram).unwrap())).await;
    let address = ip_name_lookup::resolve_addresses("127.0.0.1".to_owned()).await.unwrap();
    assert_eq!(address.len(), 1);
}

async fn open_forever() {
    let directory = directory();
    let mut all = Vec::new();
    loop {
        let (open, flags) = (OpenFlags::DIRECTORY, DescriptorFlags::READ);
        match directory.open_at(PathFlags::empty(), ".".to_owned(), open, flags).await {
            Ok(opened) => all.push(opened),
            Err(ErrorCode::InsufficientMemory) => return say(&format!("full at {}", all.len())).await,
            Err(code) => return say(&format!("failed: {code}")).await,
        }
    }
}

/// Opens files, and keeps of each only a stream.
async fn streams_forever() {
    let directory = directory();
    let mut all = Vec::new();
    loop {
        let (open, flags) = (OpenFlags::CREATE, DescriptorFlags::READ);
        match directory.open_at(PathFlags::empty(), "file".to_owned(), open, flags).await {
            Ok(opened) => all.push(opened.read_via_stream(0).0),
            Err(ErrorCode::InsufficientMemory) => return say(&format!("full at {}", all.len())).await,
            Err(code) => return say(&format!("failed: {code}")).await,
        }
    }
}
