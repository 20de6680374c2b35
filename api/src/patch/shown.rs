//! What a refused patch looks like in the refusal, and how long documents are.

use std::fmt::Write as _;
use std::io;

use serde_json::Value;

/// A document as Go's `%+v` writes a map of interfaces: `map[metadata:map[labels:map[a:b]] n:[1 2]]`.
pub(super) fn go_text(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// Recursion is bounded by [`crate::depth::MAX_DEPTH`]: only what was read is shown.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push_str("map[");
            for (at, (name, value)) in map.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                out.push_str(name);
                out.push(':');
                write(value, out);
            }
            out.push(']');
        }
        // Writing to a string cannot fail.
        scalar => _ = write!(out, "{scalar}"),
    }
}

/// Whether a document is longer than this many bytes of JSON; reads no further than that.
pub(super) fn is_longer_than(value: &Value, bytes: usize) -> bool {
    struct Counter {
        left: usize,
    }
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let left = self.left.checked_sub(bytes.len());
            self.left = left.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(Counter { left: bytes }, value).is_err()
}
