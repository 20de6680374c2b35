//! Where a walk over an object is: a chain from each value to the one around it, on the stack of the walk. Nobody pays for a text
//! until there is a fault.

/// One value. Chains are as long as documents are deep, see [`crate::depth`].
#[derive(Clone, Copy)]
pub(super) enum Place<'p> {
    Root,
    /// A field that the schema names.
    Field(&'p Place<'p>, &'p str),
    /// Of a map.
    Key(&'p Place<'p>, &'p str),
    Item(&'p Place<'p>, usize),
}

impl<'p> Place<'p> {
    fn steps(&self) -> Vec<Place<'p>> {
        let (mut steps, mut at) = (Vec::new(), *self);
        while let Place::Field(around, _) | Place::Key(around, _) | Place::Item(around, _) = at {
            steps.push(at);
            at = *around;
        }
        steps.reverse();
        steps
    }

    /// `spec.labels.app`, as unknown fields are named.
    pub(super) fn dotted(&self) -> String {
        self.checked().trim_start_matches('.').to_owned()
    }

    /// The same as validation of values writes it: with a dot before the key of a map, even if nothing is before that.
    pub(super) fn checked(&self) -> String {
        let mut out = String::new();
        for step in self.steps() {
            match step {
                Place::Root => {}
                Place::Field(_, name) if out.is_empty() => out.push_str(name),
                Place::Field(_, name) | Place::Key(_, name) => {
                    out.push('.');
                    out.push_str(name);
                }
                Place::Item(_, at) => out.push_str(&format!("[{at}]")),
            }
        }
        out
    }

    /// `spec.labels[app]`, as causes have it; upstream writes `<nil>` for the object itself.
    pub(super) fn field(&self) -> String {
        let mut out = String::new();
        for step in self.steps() {
            match step {
                Place::Root => {}
                Place::Field(_, name) => {
                    if !out.is_empty() && !name.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                }
                Place::Key(_, name) => out.push_str(&format!("[{name}]")),
                Place::Item(_, at) => out.push_str(&format!("[{at}]")),
            }
        }
        if matches!(self, Place::Root) { "<nil>".into() } else { out }
    }
}
