//! Prints its arguments and the environment variable `GREETING`, then exits with the code that
//! `--exit CODE` gives, 0 without one.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    println!("args: {}", args.join(" "));
    match std::env::var("GREETING") {
        Ok(greeting) => println!("GREETING: {greeting}"),
        Err(_) => println!("GREETING is not set"),
    }
    let code = args.iter().position(|arg| arg == "--exit").and_then(|at| args.get(at + 1));
    match code.map(|code| code.parse::<u8>()) {
        None => ExitCode::SUCCESS,
        Some(Ok(code)) => ExitCode::from(code),
        Some(Err(err)) => {
            eprintln!("--exit takes a number from 0 to 255: {err}");
            ExitCode::from(2)
        }
    }
}
