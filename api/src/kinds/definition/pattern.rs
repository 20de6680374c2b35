//! Whether a text is a regular expression, in the words of Go's parser.
//!
//! # Guarantees
//! One pass over the text, whose depth is counted and not walked.
//!
//! Source: Go's `regexp/syntax`. Not looked at: how much memory an expression would take.

/// Groups may stand in one another this deep.
const MAX_DEPTH: usize = 1000;
/// Nothing may be repeated more often, counted together with the repetitions around it.
const MAX_REPEATS: u64 = 1000;

/// What is wrong with an expression.
///
/// # Errors
/// `error parsing regexp: missing closing ): `(a``
pub(super) fn check(expression: &str) -> Result<(), String> {
    let mut parser = Parser { whole: expression, at: 0, groups: vec![Group::default()] };
    parser.run().map_err(|(code, shown)| format!("error parsing regexp: {code}: `{shown}`"))
}

type Fault<'e> = (&'static str, &'e str);

const CLASS_RANGE: &str = "invalid character class range";
const ESCAPE: &str = "invalid escape sequence";
const NAME: &str = "invalid named capture";
const NO_ARGUMENT: &str = "missing argument to repetition operator";
const REPEAT_SIZE: &str = "invalid repeat count";

/// What is read of a group so far.
#[derive(Default)]
struct Group {
    /// How often its most repeated part is.
    most: u64,
    /// The same of what was read last, if anything can be repeated.
    last: Option<u64>,
}

struct Parser<'e> {
    whole: &'e str,
    at: usize,
    groups: Vec<Group>,
}

impl<'e> Parser<'e> {
    fn rest(&self) -> &'e str {
        &self.whole[self.at..]
    }

    fn take(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn group(&mut self) -> &mut Group {
        if self.groups.is_empty() {
            self.groups.push(Group::default());
        }
        let at = self.groups.len() - 1;
        &mut self.groups[at]
    }

    fn push(&mut self, most: u64) {
        let group = self.group();
        group.most = group.most.max(most);
        group.last = Some(most);
    }

    fn run(&mut self) -> Result<(), Fault<'e>> {
        // Where the repetition that was just read starts.
        let mut repeated = None;
        while let Some(c) = self.rest().chars().next() {
            let start = self.at;
            let mut repeats = None;
            match c {
                '(' if self.rest().starts_with("(?") => self.perl_group()?,
                '(' => {
                    self.at += 1;
                    self.open()?;
                }
                ')' => {
                    self.at += 1;
                    let popped = self.groups.pop();
                    let Some(group) = popped.filter(|_| !self.groups.is_empty()) else {
                        return Err(("unexpected )", self.whole));
                    };
                    self.push(group.most.max(1));
                }
                '|' => {
                    self.at += 1;
                    self.group().last = None;
                }
                '[' => self.class()?,
                '*' | '+' | '?' => {
                    self.at += 1;
                    self.repeat(start, repeated, None)?;
                    repeats = Some(start);
                }
                '{' => match count(self.rest()) {
                    Some((count, length)) => {
                        self.at += length;
                        if !count.is_valid() {
                            return Err((REPEAT_SIZE, &self.whole[start..self.at]));
                        }
                        self.repeat(start, repeated, Some(count))?;
                        repeats = Some(start);
                    }
                    None => {
                        self.at += 1;
                        self.push(1);
                    }
                },
                '\\' => self.escape()?,
                _ => {
                    self.take();
                    self.push(1);
                }
            }
            repeated = repeats;
        }
        if self.groups.len() > 1 { Err(("missing closing )", self.whole)) } else { Ok(()) }
    }

    fn open(&mut self) -> Result<(), Fault<'e>> {
        if self.groups.len() >= MAX_DEPTH {
            return Err(("expression nests too deeply", self.whole));
        }
        self.groups.push(Group::default());
        Ok(())
    }

    /// What was read last is repeated. `before` is where a repetition just before this one starts.
    fn repeat(&mut self, start: usize, before: Option<usize>, count: Option<Count>) -> Result<(), Fault<'e>> {
        if self.rest().starts_with('?') {
            self.at += 1;
        }
        if let Some(before) = before {
            return Err(("invalid nested repetition operator", &self.whole[before..self.at]));
        }
        let shown = &self.whole[start..self.at];
        let Some(last) = self.group().last else { return Err((NO_ARGUMENT, shown)) };
        let most = count.map_or(last, |count| count.of(last));
        if count.is_some_and(Count::is_many) && most > MAX_REPEATS {
            return Err((REPEAT_SIZE, shown));
        }
        self.push(most);
        Ok(())
    }

    /// `(?:`, `(?i)`, `(?P<name>` and their kin.
    fn perl_group(&mut self) -> Result<(), Fault<'e>> {
        let text = self.rest();
        let name = match text.as_bytes() {
            [_, _, b'P', b'<', _, ..] => Some(4),
            [_, _, b'<', _, ..] => Some(3),
            _ => None,
        };
        if let Some(start) = name {
            let Some(end) = text.find('>') else { return Err((NAME, text)) };
            let is_name = |c: char| c == '_' || c.is_ascii_alphanumeric();
            let name = text.get(start..end).unwrap_or_default();
            if name.is_empty() || !name.chars().all(is_name) {
                return Err((NAME, &text[..=end]));
            }
            self.at += end + 1;
            return self.open();
        }
        let start = self.at;
        self.at += 2;
        let (mut is_negated, mut has_flag) = (false, false);
        while let Some(c) = self.take() {
            match c {
                'i' | 'm' | 's' | 'U' => has_flag = true,
                '-' if !is_negated => (is_negated, has_flag) = (true, false),
                ':' | ')' if !is_negated || has_flag => {
                    return if c == ':' { self.open() } else { Ok(()) };
                }
                _ => break,
            }
        }
        Err(("invalid or unsupported Perl syntax", &self.whole[start..self.at]))
    }

    fn escape(&mut self) -> Result<(), Fault<'e>> {
        let text = self.rest();
        match text.as_bytes().get(1) {
            Some(b'A' | b'b' | b'B' | b'z') => self.at += 2,
            Some(b'C') => return Err((ESCAPE, &text[..2])),
            Some(b'Q') => {
                let quoted = &text[2..];
                let length = quoted.find("\\E");
                self.at += 2 + length.map_or(quoted.len(), |length| length + 2);
                if length == Some(0) || quoted.is_empty() {
                    return Ok(());
                }
            }
            _ if self.named_class()? => {}
            _ => drop(self.escaped()?),
        }
        self.push(1);
        Ok(())
    }

    /// `\pL`, `\p{Han}`, `\d`; none of them is no fault.
    fn named_class(&mut self) -> Result<bool, Fault<'e>> {
        let text = self.rest();
        match text.as_bytes() {
            [b'\\', b'd' | b'D' | b's' | b'S' | b'w' | b'W', ..] => {
                self.at += 2;
                Ok(true)
            }
            [b'\\', b'p' | b'P', ..] => {
                let length = match text[2..].chars().next() {
                    Some('{') => text.find('}').ok_or((CLASS_RANGE, text))? + 1,
                    Some(c) => 2 + c.len_utf8(),
                    None => 2,
                };
                let shown = &text[..length];
                let name = shown[2..].trim_start_matches('{').trim_end_matches('}').trim_start_matches('^');
                if !is_class(name) {
                    return Err((CLASS_RANGE, shown));
                }
                self.at += length;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The character that an escape stands for.
    fn escaped(&mut self) -> Result<char, Fault<'e>> {
        let start = self.at;
        self.at += 1;
        let Some(c) = self.take() else { return Err(("trailing backslash at end of expression", "")) };
        let rest = self.rest();
        let octal = rest.bytes().take_while(|b| (b'0'..=b'7').contains(b)).take(2).count();
        let value = match c {
            '1'..='7' if octal == 0 => None,
            '0'..='7' => {
                self.at += octal;
                u32::from_str_radix(&self.whole[start + 1..self.at], 8).ok().and_then(char::from_u32)
            }
            'x' => self.hexadecimal(),
            'a' | 'f' | 'n' | 'r' | 't' | 'v' => Some(match c {
                'a' => '\u{7}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                _ => '\u{b}',
            }),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        };
        value.ok_or((ESCAPE, &self.whole[start..self.at]))
    }

    fn hexadecimal(&mut self) -> Option<char> {
        let mut digits = 0;
        match self.take()? {
            '{' => {
                let mut value = 0;
                loop {
                    match self.take()? {
                        '}' if digits > 0 => return Some(char::from_u32(value).unwrap_or('\u{fffd}')),
                        c => value = value * 16 + c.to_digit(16)?,
                    }
                    digits += 1;
                    if value > u32::from(char::MAX) {
                        return None;
                    }
                }
            }
            c => {
                let (high, low) = (c.to_digit(16), self.take().and_then(|c| c.to_digit(16)));
                char::from_u32(high? * 16 + low?)
            }
        }
    }

    fn class(&mut self) -> Result<(), Fault<'e>> {
        let whole = self.rest();
        self.at += 1;
        if self.rest().starts_with('^') {
            self.at += 1;
        }
        let mut is_first = true;
        while is_first || !self.rest().starts_with(']') {
            is_first = false;
            if self.posix_class()? || self.named_class()? {
                continue;
            }
            let start = self.at;
            let low = self.member(whole)?;
            let rest = self.rest();
            if rest.len() >= 2 && rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                let high = self.member(whole)?;
                if high < low {
                    return Err((CLASS_RANGE, &self.whole[start..self.at]));
                }
            }
        }
        self.at += 1;
        self.push(1);
        Ok(())
    }

    /// `[:alpha:]`
    fn posix_class(&mut self) -> Result<bool, Fault<'e>> {
        const NAMES: [&str; 14] = [
            "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
            "space", "upper", "word", "xdigit",
        ];
        let text = self.rest();
        let Some(name) = text.strip_prefix("[:") else { return Ok(false) };
        let Some(end) = name.find(":]") else { return Ok(false) };
        let shown = &text[..end + 4];
        let name = &name[..end];
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err((CLASS_RANGE, shown));
        }
        self.at += shown.len();
        Ok(true)
    }

    fn member(&mut self, whole: &'e str) -> Result<char, Fault<'e>> {
        if self.rest().starts_with('\\') {
            return self.escaped();
        }
        self.take().ok_or(("missing closing ]", whole))
    }
}

#[derive(Clone, Copy)]
struct Count {
    least: u64,
    /// None where there is no end.
    most: Option<u64>,
}

impl Count {
    fn is_valid(self) -> bool {
        self.least <= MAX_REPEATS && self.most.is_none_or(|most| most <= MAX_REPEATS && self.least <= most)
    }

    fn is_many(self) -> bool {
        self.least >= 2 || self.most.is_some_and(|most| most >= 2)
    }

    /// How often is repeated what is repeated `last` times itself.
    fn of(self, last: u64) -> u64 {
        match self.most.unwrap_or(self.least) {
            0 if self.most.is_some() => 0,
            times => last.saturating_mul(times.max(1)),
        }
    }
}

/// `{2}`, `{2,}` or `{2,3}` at the start of a text, and how long it is.
fn count(text: &str) -> Option<(Count, usize)> {
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let is_plain = digits == "0" || !digits.starts_with('0');
        (is_number && is_plain).then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let end = text.find('}')?;
    let inner = &text[1..end];
    let count = match inner.split_once(',') {
        None => Count { least: number(inner)?, most: Some(number(inner)?) },
        Some((least, "")) => Count { least: number(least)?, most: None },
        Some((least, most)) => Count { least: number(least)?, most: Some(number(most)?) },
    };
    Some((count, end + 1))
}

/// Whether Unicode has a category or script of a name.
fn is_class(name: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ' ');
    !name.is_empty() && name.chars().all(is_name) && regex::Regex::new(&format!("\\p{{{name}}}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_as_go_says_it() {
        for (expression, why) in [
            ("(", "missing closing ): `(`"),
            ("a)", "unexpected ): `a)`"),
            ("[a", "missing closing ]: `[a`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a{2,1}", "invalid repeat count: `{2,1}`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("(a{100}){11}", "invalid repeat count: `{11}`"),
            ("*a", "missing argument to repetition operator: `*`"),
            ("a|*", "missing argument to repetition operator: `*`"),
            ("(?<=x)y", "invalid named capture: `(?<=x)y`"),
            ("(?P<a-b>x)", "invalid named capture: `(?P<a-b>`"),
            ("(?=x)", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?i-)", "invalid or unsupported Perl syntax: `(?i-)`"),
            ("\\8", "invalid escape sequence: `\\8`"),
            ("\\pX", "invalid character class range: `\\pX`"),
            ("[[:word:]x[:odd:]]", "invalid character class range: `[:odd:]`"),
            ("a\\", "trailing backslash at end of expression: ``"),
        ] {
            assert_eq!(check(expression), Err(format!("error parsing regexp: {why}")), "{expression}");
        }
    }

    #[test]
    fn what_go_takes_is_taken() {
        for expression in [
            "",
            "^a$",
            "(a|b)*?",
            "[]a]",
            "[^]-]",
            "a{2",
            "a{,2}",
            "(?i)a(?:b)(?P<c>d)(?<e>f)",
            "\\d+\\.\\x41\\x{1F600}\\012",
            "[\\w.-]",
            "\\pL\\p{Greek}",
            "\\Qa*\\E",
            "(a{10}){100}",
            "é+",
            "x{0,}{",
        ] {
            assert_eq!(check(expression), Ok(()), "{expression}");
        }
    }
}
