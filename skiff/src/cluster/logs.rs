//! What the processes of a throw-away cluster say, appended to files that do not grow without end.
//!
//! They write to a descriptor that they were started with. Whoever looks after a file copies it aside and empties it: each
//! line is appended wherever the file then ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Of each log; as much again lies beside it.
const MAX_BYTES: u64 = 8 << 20;

/// Opens a log to write at its end: what has just crashed is to be read there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    bound(path)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Sets what is too long aside, in place of what was set aside before.
pub(crate) fn bound(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let aside = PathBuf::from(format!("{}.1", path.display()));
    let copied = fs::copy(path, &aside);
    // Where there is no room for the copy, there is none for the log.
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    copied.map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_is_appended_to_and_what_is_too_long_is_set_aside_under_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.log");
        writeln!(open(&path).unwrap(), "why it crashed").unwrap();
        let mut writer = open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "why it crashed\n");
        let line = vec![b'x'; 1 << 20];
        for _ in 0..=8 {
            writer.write_all(&line).unwrap();
        }
        bound(&path).unwrap();
        writeln!(writer, "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
        let aside = fs::read(directory.path().join("server.log.1")).unwrap();
        assert!(aside.starts_with(b"why it crashed\n"));
        assert_eq!(aside.len(), 9 * (1 << 20) + "why it crashed\n".len());
    }
}
