//! Where a walk over a document is: a chain from each place to the one around it, on the stack of the walk. It costs nothing
//! until somebody asks for the text, so that a walk is linear however long the names are.

use std::fmt;

/// One place. Chains are as long as documents are deep, see [`crate::depth`].
#[derive(Clone, Copy)]
pub(super) enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

/// One step from a place to one in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Item(usize),
}

/// A place that outlives the walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Steps(pub(super) Vec<Step>);

impl Path<'_> {
    pub(super) fn is_root(&self) -> bool {
        matches!(self, Path::Root)
    }

    pub(super) fn steps(&self) -> Steps {
        let mut steps = Vec::new();
        let mut at = self;
        loop {
            at = match at {
                Path::Root => break,
                Path::Field(parent, name) => {
                    steps.push(Step::Field((*name).to_owned()));
                    parent
                }
                Path::Item(parent, index) => {
                    steps.push(Step::Item(*index));
                    parent
                }
            };
        }
        steps.reverse();
        Steps(steps)
    }

    fn bytes(&self) -> usize {
        let (mut bytes, mut at) = (0, self);
        loop {
            at = match at {
                Path::Root => return bytes,
                Path::Field(parent, name) => {
                    bytes += name.len() + 1;
                    parent
                }
                Path::Item(parent, _) => {
                    bytes += 4;
                    parent
                }
            };
        }
    }
}

/// `spec.containers[0].name`
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps().fmt(f)
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if at == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Item(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The places of faults, as many as are worth saying.
#[derive(Debug, Default)]
pub(super) struct Noted {
    pub(super) places: Vec<Steps>,
    bytes: usize,
}

impl Noted {
    /// As upstream, which names a hundred.
    const MAX_PLACES: usize = 100;
    /// Names may be as long as the body. The first place is kept whatever its length.
    const MAX_BYTES: usize = 64 << 10;

    pub(super) fn note(&mut self, path: &Path<'_>) {
        if self.places.len() >= Self::MAX_PLACES || self.bytes >= Self::MAX_BYTES {
            return;
        }
        self.bytes += path.bytes();
        self.places.push(path.steps());
    }
}
