//! Stored values that cannot be read: they stop whoever asks, and are never left out.
//!
//! Source: upstream's `StorageReadError` and unsafe deletion (KEP-3926).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use skiff_api::status::Details;
use skiff_api::{Cause, Kind, Status};

use crate::store::Revision;

/// How many keys a refusal names, as upstream.
const MAX_NAMED: usize = 100;

/// One value that is not what was written, or no object.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    pub(crate) mod_revision: Revision,
    pub(crate) why: Arc<str>,
}

/// By the key within the resource.
pub(crate) type Damaged = BTreeMap<Arc<str>, Damage>;

/// What was asked for cannot be read, or something of it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    group: String,
    plural: String,
    /// The keys in the store, and what is wrong with each.
    values: Vec<(String, Arc<str>)>,
}

impl Unreadable {
    pub(super) fn new<'d>(
        kind: &Kind,
        damaged: impl Iterator<Item = (&'d Arc<str>, &'d Damage)>,
    ) -> Unreadable {
        let prefix = kind.prefix(None);
        let values =
            damaged.take(MAX_NAMED).map(|(key, damage)| (format!("{prefix}{key}"), damage.why.clone()));
        Unreadable { group: kind.group.clone(), plural: kind.plural.clone(), values: values.collect() }
    }
}

/// What of `damaged` lies in a namespace, or anywhere.
pub(super) fn within<'d>(
    damaged: &'d Damaged,
    namespace: Option<&str>,
) -> impl Iterator<Item = (&'d Arc<str>, &'d Damage)> + use<'d> {
    let prefix = namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
    damaged.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(&prefix))
}

impl From<Unreadable> for Status {
    fn from(unreadable: Unreadable) -> Status {
        let Unreadable { group, plural, values } = unreadable;
        let qualified = if group.is_empty() { plural.clone() } else { format!("{plural}.{group}") };
        let causes = values.into_iter().map(|(key, why)| Cause {
            reason: "UnexpectedServerResponse",
            message: format!("StorageError: corrupt object, Key: {key}: {why}"),
            field: key,
        });
        let message = format!("failed to read one or more {qualified} from the storage");
        let mut status = Status::new(500, "StorageReadError", message);
        status.details =
            Some(Box::new(Details { group, kind: plural, causes: causes.collect(), ..Details::default() }));
        status
    }
}
