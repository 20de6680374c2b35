//! The query of `exec` and `attach`.

use crate::server::query_flag;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StreamQuery {
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl StreamQuery {
    /// Both the API's names and those that the API server uses towards nodes.
    pub(super) fn parse(query: &str) -> StreamQuery {
        let mut parsed = StreamQuery::default();
        for (key, value) in pairs(query) {
            let on = query_flag(Some(&value));
            match key {
                "command" => parsed.command.push(value),
                "stdin" | "input" => parsed.stdin |= on,
                "stdout" | "output" => parsed.stdout |= on,
                "stderr" | "error" => parsed.stderr |= on,
                "tty" => parsed.tty |= on,
                _ => {}
            }
        }
        // A terminal has one output stream.
        parsed.stderr &= !parsed.tty;
        parsed
    }

    pub(super) fn has_streams(&self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}

/// The pairs of a query, their values decoded.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, String)> {
    query.split('&').map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key, percent_decode(value))
    })
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_query_are_understood() {
        let expected = StreamQuery {
            command: vec!["sh".into(), "-c".into(), "echo a b".into()],
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        let text = "command=sh&command=-c&command=echo%20a+b&stdin=true&stdout=true&stderr=true&tty=true";
        assert_eq!(StreamQuery::parse(text), expected);
        let text = "command=sh&command=-c&command=echo+a%20b&input=1&output=1&error=1&tty=1";
        assert_eq!(StreamQuery::parse(text), expected);
    }

    #[test]
    fn booleans_of_a_query_are_false_where_upstreams_are() {
        for (text, expected) in [
            ("tty=false", false),
            ("tty=False", false),
            ("tty=FALSE", false),
            ("tty=0", false),
            ("", false),
            ("tty=true", true),
            ("tty=1", true),
            ("tty=", true),
            ("tty", true),
            ("tty=f", true),
        ] {
            assert_eq!(StreamQuery::parse(&format!("command=ls&{text}")).tty, expected, "{text:?}");
        }
    }
}
