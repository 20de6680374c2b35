//! What the fields of every object's `metadata` are for, as `kubectl explain` shows it.

/// Of the field that holds it.
pub(super) const STANDARD: &str =
    "Standard object's metadata: its name, its labels and what the server keeps about it.";

/// In the order of the names.
const DESCRIPTIONS: &[(&str, &str)] = &[
    (
        "annotations",
        "Annotations are texts by key that tools keep with the object. They cannot be selected by.",
    ),
    (
        "creationTimestamp",
        "CreationTimestamp is a timestamp of the moment at which the server made the object. It cannot be set.",
    ),
    (
        "deletionGracePeriodSeconds",
        "How many seconds the object has to end by itself, once it is being deleted.",
    ),
    (
        "deletionTimestamp",
        "DeletionTimestamp is the moment from which on the object may be gone. The server sets it when somebody deletes the object.",
    ),
    (
        "finalizers",
        "Who has to do something before the object may go. Each takes itself off the list; the object goes with the last.",
    ),
    ("generateName", "What a name begins with that the server makes where none is given."),
    ("generation", "A number that grows with each change of what is wanted. The server sets it."),
    ("labels", "Labels are short texts by key, by which objects are selected."),
    ("managedFields", "Who has set which fields, for server-side apply."),
    ("name", "Name tells the object from others of its kind in its namespace. It cannot be changed."),
    (
        "namespace",
        "Namespace is where names are told apart; empty for objects of the whole cluster. It cannot be changed.",
    ),
    ("ownerReferences", "The objects that this one belongs to. It is deleted once all of them are gone."),
    (
        "resourceVersion",
        "What changes with each write of the object, for watches and for writes that must not undo others. It means nothing else.",
    ),
    ("selfLink", "Not set any more."),
    (
        "uid",
        "UID tells the object from all others there ever were, even of the same name. The server sets it.",
    ),
];

pub(super) fn description(field: &str) -> Option<&'static str> {
    DESCRIPTIONS.iter().find(|(name, _)| *name == field).map(|(_, description)| *description)
}
