use std::fmt;
use std::path::Path;

use crate::Error;

/// A group's place below every hierarchy's root: plain names joined by `/`, without a leading one.
///
/// Pod UIDs come from the API, so a path is checked once, here, and cannot leave the hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupPath(String);

/// More than the kernel's own limit would ever let through.
const MAX_LENGTH: usize = 1024;

impl GroupPath {
    /// Checks `path`: no absolute path, no empty, `.` or `..` component, no NUL or newline.
    pub fn new(path: &str) -> Result<GroupPath, Error> {
        let plain = |name: &str| {
            !name.is_empty()
                && name != "."
                && name != ".."
                && !name.contains(['\0', '\n'])
                && name.len() < 256
        };
        if path.len() > MAX_LENGTH || !path.split('/').all(plain) {
            return Err(Error::InvalidPath { path: path.to_owned() });
        }
        Ok(GroupPath(path.to_owned()))
    }

    /// The group called `name` inside this one.
    pub fn join(&self, name: &str) -> Result<GroupPath, Error> {
        GroupPath::new(&format!("{}/{name}", self.0))
    }

    /// The path as text, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `a`, `a/b`, `a/b/c`: every group on the way, the outermost first.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &Path> {
        let ends = self.0.match_indices('/').map(|(i, _)| i).chain([self.0.len()]);
        ends.map(|end| Path::new(&self.0[..end]))
    }
}

impl AsRef<Path> for GroupPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for GroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "a/../b", "..", "a/./b", "a\0b", "a\nb"] {
            assert!(GroupPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(GroupPath::new(&"x/".repeat(600)).is_err());
        assert_eq!(GroupPath::new("skiff/pod1").unwrap().as_str(), "skiff/pod1");
    }

    #[test]
    fn prefixes_go_from_the_outermost_inwards() {
        let path = GroupPath::new("a/b/c").unwrap();
        let prefixes: Vec<_> = path.prefixes().collect();
        assert_eq!(prefixes, [Path::new("a"), Path::new("a/b"), Path::new("a/b/c")]);
    }
}
