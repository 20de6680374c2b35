//! The `Warning` headers of an answer, whoever warns: webhooks say what they like, and clients read only so much.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/filters/warning.go`.

use std::collections::HashSet;

/// As many characters of warnings an answer has, before they are cut; cut ones are added until there are as many again.
const MAX_CHARS: usize = 4 << 10;
/// As many characters a warning has where not all have room.
const MAX_CUT_CHARS: usize = 256;

/// The values of the `Warning` headers for all that a request is warned of, in order. Each is told once, and none with control
/// characters in it.
pub fn warning_headers<'w>(texts: impl IntoIterator<Item = &'w str>) -> Vec<String> {
    let mut headers = Headers::default();
    for text in texts {
        if !headers.add(text) {
            break;
        }
    }
    headers.values
}

#[derive(Default)]
struct Headers<'w> {
    seen: HashSet<&'w str>,
    ordered: Vec<&'w str>,
    values: Vec<String>,
    n_chars: usize,
    are_cut: bool,
}

impl<'w> Headers<'w> {
    /// Whether there is room for more.
    fn add(&mut self, text: &'w str) -> bool {
        if self.are_cut && self.n_chars >= MAX_CHARS {
            return false;
        }
        if text.is_empty() || !self.seen.insert(text) {
            return true;
        }
        self.ordered.push(text);
        let has_room = self.n_chars + text.chars().count() <= MAX_CHARS;
        if self.are_cut {
            self.write(cut(text));
        } else if has_room {
            self.write(text);
        } else if !text.chars().any(char::is_control) {
            self.are_cut = true;
            self.n_chars = 0;
            self.values.clear();
            for text in std::mem::take(&mut self.ordered) {
                self.write(cut(text));
            }
        }
        true
    }

    fn write(&mut self, text: &str) {
        if text.chars().any(char::is_control) {
            return;
        }
        self.n_chars += text.chars().count();
        self.values.push(format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
    }
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(MAX_CUT_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::Value;

    use super::*;

    #[test]
    fn headers_are_those_of_upstream() {
        let packed = include_bytes!("../../tests/calls/warnings.jsonl.gz");
        let mut lines = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut lines).expect("lines");
        for line in lines.lines() {
            let case: Value = serde_json::from_str(line).expect(line);
            let texts =
                |field: &str| -> Vec<String> { serde_json::from_value(case[field].clone()).expect(field) };
            let found = warning_headers(texts("texts").iter().map(String::as_str));
            assert_eq!(found, texts("headers"), "{:?}", texts("texts"));
        }
        assert_eq!(lines.lines().count(), 300);
    }
}
