//! The words of an expression.
//!
//! Source: the lexical rules of cel-spec's `doc/langdef.md`; which text is one word is as the longest match decides.

use crate::issue::Issue;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'t> {
    Name(&'t str),
    /// A name between back quotes.
    Quoted(&'t str),
    Int(&'t str),
    /// Without its suffix.
    Uint(&'t str),
    Double(&'t str),
    /// As it is written, with prefix and quotes.
    Text(&'t str),
    /// As it is written, without the `b` before it.
    Bytes(&'t str),
    Sign(&'static str),
    End,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'t> {
    pub kind: Kind<'t>,
    pub offset: usize,
}

/// Longer ones first, so that the first that fits is the longest.
const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];

pub(crate) fn tokens(source: &str) -> Result<Vec<Token<'_>>, Issue> {
    let mut tokens = Vec::new();
    let mut rest = source;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{c}']);
        let offset = source.len() - rest.len();
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.find('\n').map_or("", |end| &comment[end..]);
            continue;
        }
        let Some((kind, n_bytes)) = next(rest) else {
            if rest.is_empty() {
                tokens.push(Token { kind: Kind::End, offset });
                return Ok(tokens);
            }
            let shown = unread(rest);
            return Err(Issue::syntax(
                Some(offset),
                format!("Syntax error: token recognition error at: '{shown}'"),
            ));
        };
        tokens.push(Token { kind, offset });
        rest = &rest[n_bytes..];
    }
}

/// As far as something could be read that is no word: one letter, or a text that does not end.
fn unread(rest: &str) -> &str {
    let mut chars = rest.char_indices();
    let Some((_, first)) = chars.next() else { return rest };
    if !matches!(first, '"' | '\'') {
        // Half of a sign is told with what stands there instead of the other half.
        let n_letters = if matches!(first, '=' | '&' | '|') { 2 } else { 1 };
        return rest.char_indices().nth(n_letters).map_or(rest, |(end, _)| &rest[..end]);
    }
    let mut end = first.len_utf8();
    while let Some(next) = rest[end..].chars().next() {
        match next {
            '\n' | '\r' => break,
            '\\' => match escape_len(&rest[end..]) {
                Some(n_bytes) => end += n_bytes,
                None => return &rest[..end + 1 + rest[end + 1..].chars().next().map_or(0, char::len_utf8)],
            },
            next => end += next.len_utf8(),
        }
    }
    &rest[..end]
}

/// The word that a text begins with, and its length.
fn next(rest: &str) -> Option<(Kind<'_>, usize)> {
    let first = *rest.as_bytes().first()?;
    if let Some((text, n_bytes)) = quoted(rest) {
        return Some((Kind::Text(text), n_bytes));
    }
    if matches!(first, b'b' | b'B')
        && let Some((text, n_bytes)) = quoted(&rest[1..])
    {
        return Some((Kind::Bytes(text), n_bytes + 1));
    }
    match first {
        b'`' => {
            let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/ ".contains(&byte);
            let n_bytes = count(&rest[1..], is_inside);
            (n_bytes > 0 && rest[1 + n_bytes..].starts_with('`'))
                .then(|| (Kind::Quoted(&rest[1..1 + n_bytes]), n_bytes + 2))
        }
        b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
            let n_bytes = count(rest, |byte| byte.is_ascii_alphanumeric() || byte == b'_');
            Some((Kind::Name(&rest[..n_bytes]), n_bytes))
        }
        b'0'..=b'9' => Some(number(rest)),
        b'.' if rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit) => Some(number(rest)),
        _ => {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign))?;
            Some((Kind::Sign(sign), sign.len()))
        }
    }
}

fn count(text: &str, accepts: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| accepts(*byte)).count()
}

fn number(rest: &str) -> (Kind<'_>, usize) {
    let digits = |from: usize| count(&rest[from..], |byte| byte.is_ascii_digit());
    let is_unsigned = |end: usize| rest[end..].starts_with(['u', 'U']);
    if let Some(digits) = rest.strip_prefix("0x") {
        let n_hex = count(digits, |byte| byte.is_ascii_hexdigit());
        if n_hex > 0 {
            let end = 2 + n_hex;
            let text = &rest[..end];
            return if is_unsigned(end) { (Kind::Uint(text), end + 1) } else { (Kind::Int(text), end) };
        }
    }
    let mut end = digits(0);
    let mut is_double = false;
    if rest[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
        is_double = true;
    }
    if rest[end..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        let n_digits = digits(end + 1 + sign);
        if n_digits > 0 {
            end += 1 + sign + n_digits;
            is_double = true;
        }
    }
    match is_double {
        true => (Kind::Double(&rest[..end]), end),
        false if is_unsigned(end) => (Kind::Uint(&rest[..end]), end + 1),
        false => (Kind::Int(&rest[..end]), end),
    }
}

/// A text in quotes, raw or not, and its length.
fn quoted(rest: &str) -> Option<(&str, usize)> {
    let (is_raw, body) = match rest.strip_prefix(['r', 'R']) {
        Some(body) => (true, body),
        None => (false, rest),
    };
    let quote = body.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let triple = if quote == '"' { "\"\"\"" } else { "'''" };
    let long = body.starts_with(triple).then(|| close(body, triple, is_raw, true)).flatten();
    let n_bytes = long.or_else(|| close(body, &triple[..1], is_raw, false))?;
    let n_bytes = n_bytes + usize::from(is_raw);
    Some((&rest[..n_bytes], n_bytes))
}

/// Where a text ends whose opening quotes stand at its start.
fn close(body: &str, quotes: &str, is_raw: bool, many_lines: bool) -> Option<usize> {
    let bytes = body.as_bytes();
    let mut at = quotes.len();
    while at < bytes.len() {
        if body[at..].starts_with(quotes) {
            return Some(at + quotes.len());
        }
        match bytes[at] {
            b'\\' if !is_raw => at += escape_len(&body[at..])?,
            b'\n' | b'\r' if !many_lines => return None,
            _ => at += body[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    None
}

/// How long the escape is that a text begins with.
fn escape_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let all = |n: usize, accepts: fn(&u8) -> bool| {
        bytes.get(2..2 + n).filter(|digits| digits.iter().all(accepts)).map(|_| 2 + n)
    };
    match bytes.get(1)? {
        b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'\\' | b'?' | b'`' => Some(2),
        b'x' | b'X' => all(2, u8::is_ascii_hexdigit),
        b'u' => all(4, u8::is_ascii_hexdigit),
        b'U' => all(8, u8::is_ascii_hexdigit),
        b'0'..=b'3' => all(2, |byte| (b'0'..=b'7').contains(byte)),
        _ => None,
    }
}

/// What stands in quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Text,
    Bytes,
}

/// What a text in quotes says; of bytes, hexadecimal and octal escapes are bytes, not characters.
pub(crate) fn unquoted(written: &str, as_what: Written) -> Result<Vec<u8>, &'static str> {
    let (is_raw, body) = match written.strip_prefix(['r', 'R']) {
        Some(body) => (true, body),
        None => (false, written),
    };
    let n_quotes =
        if body.len() >= 6 && (body.starts_with("\"\"\"") || body.starts_with("'''")) { 3 } else { 1 };
    let mut rest = body.get(n_quotes..body.len().saturating_sub(n_quotes)).unwrap_or_default();
    let mut said = Vec::with_capacity(rest.len());
    while let Some(at) = rest.find('\\').filter(|_| !is_raw) {
        said.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        let n_bytes = escape_len(rest).ok_or("unable to unescape string")?;
        said_by(&rest[1..n_bytes], as_what, &mut said)?;
        rest = &rest[n_bytes..];
    }
    said.extend_from_slice(rest.as_bytes());
    Ok(said)
}

fn said_by(escape: &str, as_what: Written, said: &mut Vec<u8>) -> Result<(), &'static str> {
    let (kind, digits) = escape.split_at(1);
    let number =
        |text: &str, radix| u32::from_str_radix(text, radix).map_err(|_| "unable to unescape string");
    let code = match kind {
        "a" => 7,
        "b" => 8,
        "f" => 12,
        "n" => 10,
        "r" => 13,
        "t" => 9,
        "v" => 11,
        "x" | "X" => number(digits, 16)?,
        "u" | "U" if as_what == Written::Bytes => return Err("unable to unescape string"),
        "u" | "U" => number(digits, 16)?,
        "0" | "1" | "2" | "3" => number(escape, 8)?,
        _ => u32::from(kind.as_bytes()[0]),
    };
    if as_what == Written::Bytes {
        said.push(u8::try_from(code).map_err(|_| "unable to unescape string")?);
        return Ok(());
    }
    let character = char::from_u32(code).ok_or("invalid unicode code point")?;
    said.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}
