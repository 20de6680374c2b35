//! What the engine does for one kind and not for another: data of the kind, so that nothing but its declaration names it.

use super::Generation;

/// [`Traits::DEFAULT`] is what most kinds have.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    pub names: Names,
    pub prefix: Prefix,
    /// A new object that has no name is given one.
    pub is_named_by_server: bool,
    /// Finalizers need not be qualified by a domain.
    pub takes_any_finalizer: bool,
    /// A PUT creates what is not there.
    pub creates_on_update: bool,
    /// An update has to say which version it is of.
    pub needs_version: bool,
    /// A new object brings its `status` with it.
    pub keeps_status: bool,
    /// What of the metadata stays as it was when a status is written.
    pub kept_metadata: &'static [&'static str],
    pub generation: Generation,
    /// What of the metadata counts as a change, besides what [`Generation`] says.
    pub counts_metadata: Option<&'static str>,
    /// Objects that are never deleted.
    pub protected: &'static [&'static str],
    /// A deletion answers with the object instead of a `Status`.
    pub returns_deleted: bool,
    /// A deletion leaves dependents behind unless it says otherwise.
    pub orphans: bool,
    /// Objects go by themselves, as long after their last change as the server is told.
    pub expires: bool,
    pub beat: Beat,
    /// Of several versions, the one that is stored.
    pub is_stored_version: bool,
    /// What Go leaves out of JSON counts when an object is compared with what it replaces.
    pub compares_off: bool,
    /// Faults of its own rules hide those of the metadata of a new object.
    pub hides_metadata: bool,
    /// Annotations with which an object is a default; in a table of a list the one that counts is told by a word.
    pub default_marks: &'static [&'static str],
}

impl Traits {
    pub const DEFAULT: Traits = Traits {
        names: Names::Subdomain,
        prefix: Prefix::AsNames,
        is_named_by_server: false,
        takes_any_finalizer: false,
        creates_on_update: false,
        needs_version: false,
        keeps_status: false,
        kept_metadata: &[],
        generation: Generation::Spec,
        counts_metadata: None,
        protected: &[],
        returns_deleted: false,
        orphans: false,
        expires: false,
        beat: Beat::None,
        is_stored_version: false,
        compares_off: false,
        hides_metadata: false,
        default_marks: &[],
    };
}

/// What an object's name may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Subdomain,
    Label,
    /// Whatever can stand in a path.
    PathSegment,
    IpAddress,
    /// The kind's objects are not stored, or its own rules look at the name.
    Any,
}

/// What `generateName` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// What begins a name.
    AsNames,
    /// The same for new objects; updates do not look at it again, but for what no path can hold.
    AsNamesOnCreate,
    /// Whatever can stand in a path.
    PathSegment,
}

/// Which writes say no more than that somebody is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    None,
    /// `spec.renewTime`.
    Renewal,
    /// `lastHeartbeatTime` of the conditions.
    Conditions,
}
