//! The words of an expression.

use super::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'t> {
    Name(&'t str),
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    /// Operators and brackets, and `in`.
    Sign(&'static str),
    End,
}

/// Two characters before one: the first that fits is meant.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "-", "+", "*", "/", "%", ".", ",", "?", ":", "(", ")",
    "[", "]", "{", "}",
];

pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Error> {
    let mut rest = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    while let Some(token) = rest.next()? {
        tokens.push(token);
    }
    tokens.push(Token::End);
    Ok(tokens)
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.trim_start_matches(['\t', ' ', '\r', '\n', '\u{c}']);
            self.at += rest.len() - blank.len();
            if !blank.starts_with("//") {
                return;
            }
            self.at += blank.find('\n').unwrap_or(blank.len());
        }
    }

    fn next(&mut self) -> Result<Option<Token<'t>>, Error> {
        self.skip_blank();
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        if let Some(token) = self.quoted()? {
            return Ok(Some(token));
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.at += end;
            let name = &rest[..end];
            return Ok(Some(if name == "in" { Token::Sign("in") } else { Token::Name(name) }));
        }
        if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            return Ok(Some(self.number()));
        }
        // A name that is no word, in backquotes.
        if let Some(inner) = rest.strip_prefix('`') {
            let end = inner.find('`').ok_or(Error::Syntax)?;
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-/ ".contains(&b);
            if end == 0 || !inner[..end].bytes().all(is_plain) {
                return Err(Error::Syntax);
            }
            self.at += end + 2;
            return Ok(Some(Token::Name(&inner[..end])));
        }
        let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign)).ok_or(Error::Syntax)?;
        self.at += sign.len();
        Ok(Some(Token::Sign(sign)))
    }

    fn number(&mut self) -> Token<'t> {
        let bytes = self.rest().as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
        let hex = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if bytes.starts_with(b"0x") && hex(2) > 0 {
            self.at += 2 + hex(2);
            return self.integer();
        }
        let (mut end, mut is_integer) = (digits(0), true);
        if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
            is_integer = false;
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let signed = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if signed <= bytes.len() && digits(signed) > 0 {
                end = signed + digits(signed);
                is_integer = false;
            }
        }
        self.at += end;
        if is_integer { self.integer() } else { Token::Double }
    }

    /// Whether the digits that were just read are of a number without a sign.
    fn integer(&mut self) -> Token<'t> {
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            return Token::Uint;
        }
        Token::Int
    }

    /// A text or bytes; `None` if none begins here.
    fn quoted(&mut self) -> Result<Option<Token<'t>>, Error> {
        let rest = self.rest();
        let prefix = rest.bytes().take(2).take_while(|b| b"rRbB".contains(b)).count();
        let quote = match rest.as_bytes().get(prefix) {
            Some(b'"') => "\"",
            Some(b'\'') => "'",
            _ => return Ok(None),
        };
        let prefix_text = rest[..prefix].to_ascii_lowercase();
        let is_raw = prefix_text.contains('r');
        if matches!(prefix_text.as_str(), "rr" | "bb" | "rb") {
            return Ok(None);
        }
        let triple = quote.repeat(3);
        let body = &rest[prefix..];
        let mark = if body.starts_with(&triple) { triple.as_str() } else { quote };
        let mut at = mark.len();
        loop {
            let left = &body[at..];
            if left.starts_with(mark) {
                break;
            }
            let c = left.chars().next().ok_or(Error::Syntax)?;
            if matches!(c, '\n' | '\r') && mark.len() == 1 {
                return Err(Error::Syntax);
            }
            at += if c == '\\' && !is_raw { escape(left)? } else { c.len_utf8() };
        }
        self.at += prefix + at + mark.len();
        Ok(Some(if prefix_text.contains('b') { Token::Bytes } else { Token::Text }))
    }
}

/// How long the escape is that a text begins with.
fn escape(text: &str) -> Result<usize, Error> {
    let bytes = text.as_bytes();
    let hex = |n: usize| {
        let digits = bytes.get(2..2 + n).ok_or(Error::Syntax)?;
        if digits.iter().all(u8::is_ascii_hexdigit) { Ok(2 + n) } else { Err(Error::Syntax) }
    };
    match bytes.get(1) {
        Some(b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'`' | b'?' | b'\\') => Ok(2),
        Some(b'x' | b'X') => hex(2),
        Some(b'u') => hex(4),
        Some(b'U') => hex(8),
        Some(b'0'..=b'3') if bytes.len() >= 4 && bytes[2..4].iter().all(|b| (b'0'..=b'7').contains(b)) => {
            Ok(4)
        }
        _ => Err(Error::Syntax),
    }
}
