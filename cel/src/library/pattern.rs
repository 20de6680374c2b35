//! Regular expressions as RE2 reads them.
//!
//! # Guarantees
//! A pattern takes a bounded amount of memory, and matching is linear in the text.

use regex::{Regex, RegexBuilder};

use super::{Function, Host, no_overload, texts};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::Value;

/// What a pattern becomes may take as much memory.
const MAX_BYTES: usize = 1 << 20;
/// Nothing is repeated more often, as in RE2.
const MAX_REPEATS: u32 = 1000;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "matches" => matches,
        "find" => find,
        "findAll" => find_all,
        _ => return None,
    })
}

/// A regular expression.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles a pattern; the words of the error are not upstream's.
    ///
    /// # Errors
    /// If it is none, or takes too much memory.
    pub fn new(pattern: &str) -> Result<Pattern, String> {
        let fault = |why: &str| format!("error parsing regexp: {why}: `{pattern}`");
        let translated = translated(pattern).map_err(|why| format!("error parsing regexp: {why}"))?;
        let regex = RegexBuilder::new(&translated).size_limit(MAX_BYTES).octal(true).build();
        regex.map(Pattern).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => fault("expression too large"),
            _ => fault("invalid expression"),
        })
    }

    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

fn of<'c>(call: &'c Call, pattern: &str) -> Result<std::borrow::Cow<'c, Regex>, String> {
    match &call.pattern {
        Some(pattern) => Ok(std::borrow::Cow::Borrowed(&pattern.0)),
        None => Pattern::new(pattern).map(|pattern| std::borrow::Cow::Owned(pattern.0)),
    }
}

fn illegal(why: String) -> Fault {
    Fault::other(format!("Illegal regex: {why}"))
}

fn matches<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [Value::Text(text), Value::Text(pattern)] => {
            Ok(Value::Bool(of(call, pattern).map_err(Fault::other)?.is_match(text)))
        }
        [Value::Text(_) | Value::Duration(_) | Value::Timestamp(_), _] => Err(Fault::NoSuchOverload),
        _ => Err(Fault::NoOverloadOf(call.name.clone())),
    }
}

fn find<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [Value::Text(text), Value::Text(pattern)] => {
            let regex = of(call, pattern).map_err(illegal)?;
            Ok(Value::text(regex.find(text).map_or("", |found| found.as_str())))
        }
        _ => Err(no_overload(call, args)),
    }
}

fn find_all<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (text, pattern, limit) = match args {
        [Value::Text(text), Value::Text(pattern)] => (text, pattern, -1),
        [Value::Text(text), Value::Text(pattern), Value::Int(limit)] => (text, pattern, *limit),
        _ => return Err(no_overload(call, args)),
    };
    let regex = of(call, pattern).map_err(illegal)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    texts(regex.find_iter(text).take(limit).map(|found| found.as_str()))
}

/// A pattern of RE2 as the `regex` crate reads it: classes by a letter are ASCII, and brackets within brackets are letters.
fn translated(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars();
    // Where the class begins that is open, and how many brackets are.
    let (mut class, mut n_open) = (None, 0_usize);
    // Whether the last thing was a sign that repeats, so that another one is too much.
    let mut repeats = 0;
    while let Some(c) = chars.next() {
        let before = std::mem::take(&mut repeats);
        let is_class = class.is_some();
        match c {
            '\\' => {
                let letter = chars.next().ok_or("trailing backslash at end of expression: ``")?;
                if letter == 'Q' && !is_class {
                    quoted(&mut chars, &mut out);
                } else {
                    escape(letter, is_class, &mut out);
                }
            }
            '[' if !is_class => {
                class = Some(pattern.len() - chars.as_str().len() - 1);
                out.push('[');
                if passed(&mut chars, '^') {
                    out.push('^');
                }
                // A bracket that comes first stands for itself.
                if passed(&mut chars, ']') {
                    out.push_str("\\]");
                }
            }
            '[' if chars.as_str().starts_with(':') => named(&mut chars, &mut out),
            '[' => out.push_str("\\["),
            ']' if is_class => {
                class = None;
                out.push(']');
            }
            ']' => out.push(']'),
            '&' | '~' if is_class => out.extend(['\\', c]),
            '-' if is_class && chars.as_str().starts_with('-') => out.push_str("\\-"),
            // A group may begin with what it is.
            '?' if out.ends_with('(') && !out.ends_with("\\(") => out.push(c),
            '*' | '+' | '?' if !is_class => {
                // One `?` makes a repetition lazy, more repeat what repeats.
                if before == 2 || before == 1 && c != '?' {
                    return Err(format!(
                        "invalid nested repetition operator: `{}`",
                        last_two(pattern, &chars)
                    ));
                }
                if out.is_empty()
                    || out.ends_with(['(', '|']) && !out.ends_with("\\(") && !out.ends_with("\\|")
                {
                    return Err(format!("missing argument to repetition operator: `{c}`"));
                }
                repeats = before + 1;
                out.push(c);
            }
            '{' if !is_class => {
                let Some(counts) = repetition(&chars) else {
                    out.push_str("\\{");
                    continue;
                };
                if before > 0 {
                    return Err(format!("invalid nested repetition operator: `{{{counts}}}`"));
                }
                if counts.split(',').filter_map(|n| n.parse::<u32>().ok()).any(|n| n > MAX_REPEATS) {
                    return Err(format!("invalid repeat count: `{{{counts}}}`"));
                }
                out.push('{');
                out.push_str(&counts);
                out.push('}');
                for _ in 0..=counts.len() {
                    chars.next();
                }
                repeats = 1;
            }
            '}' if !is_class => out.push_str("\\}"),
            '(' if !is_class => {
                n_open += 1;
                out.push(c);
            }
            ')' if !is_class => {
                n_open = n_open.checked_sub(1).ok_or_else(|| format!("unexpected ): `{pattern}`"))?;
                out.push(c);
            }
            c => out.push(c),
        }
    }
    match class {
        Some(start) => Err(format!("missing closing ]: `{}`", &pattern[start..])),
        None if n_open > 0 => Err(format!("missing closing ): `{pattern}`")),
        None => Ok(out),
    }
}

type Chars<'p> = std::str::Chars<'p>;

/// Passes a letter if it comes next.
fn passed(chars: &mut Chars<'_>, letter: char) -> bool {
    let rest = chars.as_str().strip_prefix(letter);
    if let Some(rest) = rest {
        *chars = rest.chars();
    }
    rest.is_some()
}

/// The sign that was just read, and the one before it.
fn last_two<'p>(pattern: &'p str, chars: &Chars<'_>) -> &'p str {
    let end = pattern.len() - chars.as_str().len();
    pattern.get(end.saturating_sub(2)..end).unwrap_or_default()
}

/// What stands between the braces of a repetition, if it is one.
fn repetition(chars: &Chars<'_>) -> Option<String> {
    let counts: String = chars.clone().take_while(|c| c.is_ascii_digit() || *c == ',').collect();
    let is_closed = chars.clone().nth(counts.len()) == Some('}');
    let (least, most) = counts.split_once(',').unwrap_or((&counts, ""));
    let are_numbers = !least.is_empty() && !most.contains(',');
    (is_closed && are_numbers).then_some(counts)
}

/// A class that is called by its name, such as `[:alpha:]`; an opening bracket otherwise.
fn named(chars: &mut Chars<'_>, out: &mut String) {
    let name: String = chars.clone().skip(1).take_while(|c| c.is_ascii_lowercase() || *c == '^').collect();
    let whole = format!(":{name}:]");
    if chars.clone().take(whole.len()).eq(whole.chars()) {
        out.push('[');
        out.push_str(&whole);
        for _ in 0..whole.len() {
            chars.next();
        }
    } else {
        out.push_str("\\[");
    }
}

/// All up to `\E` stands for itself.
fn quoted(chars: &mut Chars<'_>, out: &mut String) {
    while let Some(c) = chars.next() {
        if c == '\\' && passed(chars, 'E') {
            return;
        }
        out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
    }
}

fn escape(letter: char, is_class: bool, out: &mut String) {
    let class = match letter {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\x0C\\r ",
        'D' | 'W' | 'S' => {
            let inverse = match letter {
                'D' => "[^0-9]",
                'W' => "[^0-9A-Za-z_]",
                _ => "[^\\t\\n\\x0C\\r ]",
            };
            return out.push_str(inverse);
        }
        'b' | 'B' if !is_class => {
            out.push_str("(?-u:\\");
            out.push(letter);
            return out.push(')');
        }
        other => return out.extend(['\\', other]),
    };
    if is_class {
        out.push_str(class);
    } else {
        out.extend(["[", class, "]"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, matches: bool) {
        assert_eq!(Pattern::new(pattern).expect(pattern).0.is_match(text), matches, "{pattern} {text}");
    }

    #[test]
    fn letters_of_classes_are_ascii() {
        check("^\\d+$", "12", true);
        check("^\\d+$", "٣", false);
        check("^[\\w-]+$", "a_b-c", true);
        check("^[\\D]$", "1", false);
        check("\\bé", "é", false);
    }

    #[test]
    fn brackets_within_brackets_are_letters() {
        check("^[[a]+$", "[a", true);
        check("^[]a]+$", "]a", true);
        check("^[a&&b]+$", "&", true);
        check("^[[:alpha:]]+$", "ab", true);
        check("^[a:]b$", ":b", true);
        check("^\\Qa.b\\E$", "a.b", true);
        check("^a{,2}$", "a{,2}", true);
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for pattern in ["a**", "a{2}{3}", "a{1001}", "(", "\\", "a{1000}{2}"] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::new("((a{100}){100}){100}").is_err());
    }
}
