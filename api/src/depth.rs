//! How deep documents may nest: one rule for everything that makes them.
//!
//! The reader of JSON gives up at 128 levels. What is stored must be readable again, by us and by every client, and it is
//! read inside of lists, events of watches, tables and reviews, which add levels of their own. So a document may have
//! [`MAX_DEPTH`] levels, whether it comes as JSON, YAML or protobuf or is the result of a patch.

use serde_json::Value;

use crate::Status;

/// Lists and objects that may stand in one another: `{"a": [1]}` has two levels.
pub const MAX_DEPTH: usize = 120;

/// A document that nests deeper than [`MAX_DEPTH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("exceeded max depth: lists and objects may be nested {MAX_DEPTH} deep; flatten the document")]
pub struct TooDeep;

impl From<TooDeep> for Status {
    /// That of a document as it was sent. A patch that makes such a document answers 422 instead.
    fn from(error: TooDeep) -> Status {
        Status::bad_request(error.to_string())
    }
}

/// Whether a value can be read again once it is written. Whoever stores a value asks this first.
///
/// # Errors
/// If it nests too deep. Looks no deeper than it has to.
pub fn check(value: &Value) -> Result<(), TooDeep> {
    levels(value, MAX_DEPTH).map(drop)
}

/// How many levels a value has, if they are no more than `at_most`.
pub(crate) fn levels(value: &Value, at_most: usize) -> Result<usize, TooDeep> {
    fn below<'v>(values: impl Iterator<Item = &'v Value>, at_most: usize) -> Result<usize, TooDeep> {
        let left = at_most.checked_sub(1).ok_or(TooDeep)?;
        let mut deepest = 0;
        for value in values {
            deepest = deepest.max(levels(value, left)?);
        }
        Ok(deepest + 1)
    }
    match value {
        Value::Array(items) => below(items.iter(), at_most),
        Value::Object(map) => below(map.values(), at_most),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    fn nested(levels: usize) -> String {
        format!("{}{}", "[".repeat(levels), "]".repeat(levels))
    }

    #[test]
    fn what_is_accepted_can_be_read_inside_of_all_that_it_is_sent_in() {
        let deepest = nested(MAX_DEPTH);
        let value = decode::parse(deepest.as_bytes()).unwrap();
        assert_eq!(levels(&value, MAX_DEPTH), Ok(MAX_DEPTH));
        // A row of a table in an event of a watch is the deepest wrapping there is.
        let wrapped = format!(r#"{{"object": {{"rows": [{{"object": {deepest}}}]}}}}"#);
        assert!(serde_json::from_str::<Value>(&wrapped).is_ok());
    }

    #[test]
    fn one_level_more_is_refused_before_it_is_made() {
        let error = decode::parse(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains("exceeded max depth"), "{error}");
        let mut value = Value::Null;
        for _ in 0..=MAX_DEPTH {
            value = Value::Array(vec![value]);
        }
        assert_eq!(check(&value), Err(TooDeep));
        assert_eq!(check(&value[0]), Ok(()));
    }
}
