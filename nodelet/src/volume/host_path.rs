//! `hostPath`: the checks that its type asks for.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path};

use crate::volume::VolumeError;

pub(crate) fn check(path: &Path, type_: &str) -> Result<(), VolumeError> {
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(VolumeError::Content(format!(
            "invalid HostPath `{}`: must be absolute and must not contain '..'",
            path.display()
        )));
    }
    let wrong = |what: &str| {
        Err(VolumeError::Content(format!("hostPath type check failed: {} is not {what}", path.display())))
    };
    let found = |test: fn(&FileType) -> bool| fs::metadata(path).is_ok_and(|m| test(&m.file_type()));
    match type_ {
        "" => Ok(()),
        "DirectoryOrCreate" => {
            if !path.exists() {
                let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
                made.map_err(VolumeError::host("create the directory", path))?;
            }
            if found(FileType::is_dir) { Ok(()) } else { wrong("a directory") }
        }
        "FileOrCreate" => {
            let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
            match made {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(VolumeError::host("create the file", path)(error));
                }
                _ => {}
            }
            if found(FileType::is_file) { Ok(()) } else { wrong("a file") }
        }
        "Directory" if !found(FileType::is_dir) => wrong("a directory"),
        "File" if !found(FileType::is_file) => wrong("a file"),
        "Socket" if !found(|t| t.is_socket()) => wrong("a socket file"),
        "CharDevice" if !found(|t| t.is_char_device()) => wrong("a character device"),
        "BlockDevice" if !found(|t| t.is_block_device()) => wrong("a block device"),
        "Directory" | "File" | "Socket" | "CharDevice" | "BlockDevice" => Ok(()),
        other => Err(VolumeError::Content(format!("{other} is an invalid volume type"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_path_of_another_type_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        check(&file, "FileOrCreate").unwrap();
        check(&file, "File").unwrap();
        let error = check(&file, "Directory").unwrap_err().to_string();
        assert_eq!(error, format!("hostPath type check failed: {} is not a directory", file.display()));
        check(&dir.path().join("new"), "DirectoryOrCreate").unwrap();
        assert!(check(Path::new("/tmp/../etc"), "").is_err());
    }
}
