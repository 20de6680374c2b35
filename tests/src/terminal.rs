//! A terminal that a program runs on, as on a person's screen.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program on a terminal of its own. Dropping it ends the program.
#[derive(Debug)]
pub struct Terminal {
    screen: OwnedFd,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts a program on a new terminal of so many rows and columns.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Result<Terminal> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let screen = openpt(flags).context("opening a terminal")?;
        grantpt(&screen)?;
        unlockpt(&screen)?;
        tcsetwinsize(&screen, winsize(rows, columns))?;
        let keyboard = ioctl_tiocgptpeer(&screen, flags)?;
        // The program must lead a session whose terminal this is, or no signal tells it of another size.
        let mut child = Command::new("setsid");
        child.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => child.env(name, value),
                None => child.env_remove(name),
            };
        }
        child.stdin(keyboard.try_clone()?).stdout(keyboard.try_clone()?).stderr(keyboard);
        let child = child.spawn().context("running setsid, of the package util-linux")?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reading, sink) = (std::fs::File::from(screen.try_clone()?), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails once nobody holds the other side.
            while let Ok(length @ 1..) = reading.read(&mut bytes) {
                let mut shown = sink.lock().unwrap_or_else(PoisonError::into_inner);
                shown.extend_from_slice(&bytes[..length]);
            }
        });
        Ok(Terminal { screen, child, shown })
    }

    /// All that was ever shown on it.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Makes the terminal another size, as when a window is dragged.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        tcsetwinsize(&self.screen, winsize(rows, columns)).context("resizing the terminal")
    }

    /// Types on its keyboard.
    pub fn type_in(&self, text: &str) -> Result<()> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let length = rustix::io::write(&self.screen, rest).context("typing on the terminal")?;
            rest = &rest[length..];
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The session ends with its terminal; who waits for it is ended here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
