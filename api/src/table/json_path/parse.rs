//! Reads paths.

use serde_json::Value;

/// Longer paths are refused.
const MAX_BYTES: usize = 4096;
/// Paths in paths: what is in brackets.
const MAX_DEPTH: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path has more than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the brackets of the path are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("unclosed action")]
    Unclosed,
    #[error("unterminated {0}")]
    Unterminated(&'static str),
    #[error("unrecognized character in action: {0:?}")]
    Character(char),
    #[error("invalid multiple recursive descent")]
    Recursive,
    #[error("cannot parse number {0}")]
    Number(String),
    #[error("invalid array index {0}")]
    Index(String),
    #[error("unclosed array expect ]")]
    Bracket,
    #[error("unquote string {0} error invalid syntax")]
    Quote(String),
}

#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Field(String),
    Wildcard,
    Recursive,
    Slice(Slice),
    Union(Vec<Vec<Node>>),
    Filter(Vec<Node>, Operator, Vec<Node>),
    /// A text, which takes the place of all values before it.
    Text(Value),
    /// A number or boolean, which takes the place of each.
    Scalar(Value),
    /// A word of a template's language.
    Identifier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Unknown,
}

impl Operator {
    fn of(text: &str) -> Operator {
        match text {
            "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            _ => Operator::Unknown,
        }
    }
}

/// `[start:end:step]`
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slice {
    start: Option<i64>,
    end: End,
    step: Option<i64>,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Open,
    Before(i64),
    /// Of a single item: just behind it.
    Next(i64),
}

impl Slice {
    /// The items of a list, none where the list has no such places.
    pub(super) fn of<'v>(&self, items: &'v [Value]) -> Option<impl Iterator<Item = &'v Value>> {
        let length = i64::try_from(items.len()).ok()?;
        let from_end = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
        let start = from_end(self.start.unwrap_or(0));
        let end = match self.end {
            End::Open => length,
            End::Before(end) => from_end(end),
            End::Next(0) => length,
            End::Next(end) => from_end(end),
        };
        let step = self.step.unwrap_or(1);
        if start == end {
            return Some([].iter().step_by(1));
        }
        let is_there = (0..length).contains(&start) && (0..=length).contains(&end) && start <= end;
        let step = usize::try_from(step).ok().filter(|step| is_there && *step > 0)?;
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
        Some(items.get(start..end)?.iter().step_by(step))
    }
}

/// Reads texts with actions in braces; each text or action is a list of nodes.
pub(super) fn template(text: &str) -> Result<Vec<Vec<Node>>, PathError> {
    if text.len() > MAX_BYTES {
        return Err(PathError::TooLong);
    }
    template_at(text, 0)
}

fn template_at(text: &str, depth: usize) -> Result<Vec<Vec<Node>>, PathError> {
    if depth > MAX_DEPTH {
        return Err(PathError::TooDeep);
    }
    let mut parser = Parser { rest: text, depth };
    let mut lists = Vec::new();
    while !parser.rest.is_empty() {
        let start = parser.rest.find('{').unwrap_or(parser.rest.len());
        let (before, rest) = parser.rest.split_at(start);
        if !before.is_empty() {
            lists.push(vec![Node::Text(before.into())]);
        }
        parser.rest = rest;
        if parser.eat("{") {
            lists.push(parser.action()?);
        }
    }
    Ok(lists)
}

/// The nodes of one action in braces.
fn action(text: &str, depth: usize) -> Result<Vec<Node>, PathError> {
    let lists = template_at(&format!("{{{text}}}"), depth + 1)?;
    Ok(lists.into_iter().next().unwrap_or_default())
}

struct Parser<'t> {
    rest: &'t str,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take(&mut self, length: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn action(&mut self) -> Result<Vec<Node>, PathError> {
        let mut nodes = Vec::new();
        loop {
            if self.eat("}") {
                return Ok(nodes);
            }
            if self.eat("[?(") {
                nodes.push(self.filter()?);
                continue;
            }
            if self.eat("..") {
                if nodes.last() == Some(&Node::Recursive) {
                    return Err(PathError::Recursive);
                }
                nodes.push(Node::Recursive);
                if self.rest.starts_with(is_word) {
                    nodes.push(self.field());
                }
                continue;
            }
            match self.rest.chars().next() {
                None | Some('\r' | '\n') => return Err(PathError::Unclosed),
                Some(' ' | '@' | '$') => _ = self.take(1),
                Some('[') => self.array(&mut nodes)?,
                Some(quote @ ('"' | '\'')) => nodes.push(self.quoted(quote)?),
                Some('.') => {
                    self.take(1);
                    nodes.push(self.field());
                }
                Some(c) if c == '+' || c == '-' || c.is_numeric() => nodes.push(self.number()?),
                Some(c) if is_word(c) => nodes.push(self.word()),
                Some(c) => return Err(PathError::Character(c)),
            }
        }
    }

    fn field(&mut self) -> Node {
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            if c == '\\' {
                chars.next();
            } else if is_end(c) {
                end = at;
                break;
            }
        }
        match self.take(end) {
            "*" => Node::Wildcard,
            name => Node::Field(name.replace('\\', "")),
        }
    }

    fn word(&mut self) -> Node {
        match self.take(self.rest.find(is_end).unwrap_or(self.rest.len())) {
            "true" => Node::Scalar(true.into()),
            "false" => Node::Scalar(false.into()),
            _ => Node::Identifier,
        }
    }

    fn number(&mut self) -> Result<Node, PathError> {
        let sign = usize::from(self.rest.starts_with(['+', '-']));
        let digits = self.rest[sign..].find(|c: char| c != '.' && !c.is_numeric());
        let text = self.take(digits.map_or(self.rest.len(), |digits| sign + digits));
        let whole = text.parse::<i64>().map(Value::from);
        let float = || text.parse::<f64>().ok().filter(|float| float.is_finite()).map(Value::from);
        let number = whole.ok().or_else(float);
        number.map(Node::Scalar).ok_or_else(|| PathError::Number(text.into()))
    }

    /// The text up to and with what `ends` it.
    fn until(
        &mut self,
        what: &'static str,
        mut ends: impl FnMut(char) -> bool,
    ) -> Result<&'t str, PathError> {
        for (at, c) in self.rest.char_indices() {
            if c == '\n' {
                break;
            }
            if ends(c) {
                return Ok(self.take(at + c.len_utf8()));
            }
        }
        Err(PathError::Unterminated(what))
    }

    fn quoted(&mut self, quote: char) -> Result<Node, PathError> {
        let mut before = None;
        let text = self.until("quoted string", |c| {
            // The quote in front ends nothing.
            let ends = c == quote && before.is_some() && before != Some('\\');
            before = Some(c);
            ends
        })?;
        unquoted(text).map(|text| Node::Text(text.into())).ok_or_else(|| PathError::Quote(text.into()))
    }

    fn array(&mut self, nodes: &mut Vec<Node>) -> Result<(), PathError> {
        let text = self.until("array", |c| c == ']')?;
        let text = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or_default();
        let text = if text == "*" { ":" } else { text };
        if text.contains(',') {
            let lists =
                text.split(',').map(|part| action(&format!("[{}]", part.trim_matches(' ')), self.depth));
            nodes.push(Node::Union(lists.collect::<Result<_, _>>()?));
            return Ok(());
        }
        let key = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
        if let Some(key) = key.filter(|key| !key.contains('\'')) {
            nodes.extend(action(&format!(".{key}"), self.depth)?);
            return Ok(());
        }
        nodes.push(Node::Slice(slice(text).ok_or_else(|| PathError::Index(text.into()))?));
        Ok(())
    }

    fn filter(&mut self) -> Result<Node, PathError> {
        // Only one quoted text is looked for, and a parenthesis within it.
        let (mut pair, mut is_closed, mut before) = (None, false, None);
        let text = self.until("filter", |c| {
            match c {
                '"' | '\'' if pair.is_none() => pair = Some(c),
                '"' | '\'' if before != Some('\\') && pair == Some(c) => is_closed = true,
                ')' if pair.is_some() == is_closed => return true,
                _ => {}
            }
            before = Some(c);
            false
        })?;
        if !self.eat("]") {
            return Err(PathError::Bracket);
        }
        let text = text.strip_suffix(')').unwrap_or(text);
        let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
        let start = text.find(is_operator).filter(|start| *start > 0);
        let parts = start.and_then(|start| {
            let (left, rest) = text.split_at(start);
            let end = rest.find(|c: char| !is_operator(c));
            // The operator gives back what must be to the right of it.
            let end = end.unwrap_or_else(|| rest.len().saturating_sub(1));
            let (operator, right) = rest.split_at(end);
            (!operator.is_empty() && !right.is_empty()).then_some((left, operator, right))
        });
        match parts {
            None => Ok(Node::Filter(action(text, self.depth)?, Operator::Exists, Vec::new())),
            Some((left, operator, right)) => Ok(Node::Filter(
                action(left, self.depth)?,
                Operator::of(operator),
                action(right, self.depth)?,
            )),
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphabetic() || c.is_numeric()
}

fn is_end(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

fn slice(text: &str) -> Option<Slice> {
    let is_number = |text: &str| text.strip_prefix('-').unwrap_or(text).bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 3 || !parts.iter().all(|part| is_number(part)) {
        return None;
    }
    // A lone minus is no number.
    let number = |at: usize| match parts.get(at) {
        None | Some(&"") => Some(None),
        Some(part) => part.parse::<i64>().ok().map(Some),
    };
    let start = number(0)?;
    let end = match (parts.len(), number(1)?) {
        (1, _) => End::Next(start.unwrap_or(0).saturating_add(1)),
        (_, None) => End::Open,
        (_, Some(end)) => End::Before(end),
    };
    Some(Slice { start, end, step: number(2)? })
}

/// A text in single or double quotes, with Go's escapes.
fn unquoted(text: &str) -> Option<String> {
    let quote = text.chars().next()?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c == quote || c == '\n' {
            return None;
        }
        if c != '\\' {
            out.push(c);
            continue;
        }
        let escape = chars.next()?;
        let mut code = |before: &str, digits: usize, radix: u32| {
            let text: String = before.chars().chain(chars.by_ref().take(digits)).collect();
            let is_whole = text.len() == before.len() + digits;
            u32::from_str_radix(&text, radix).ok().filter(|_| is_whole).and_then(char::from_u32)
        };
        out.push(match escape {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => code("", 2, 16)?,
            'u' => code("", 4, 16)?,
            'U' => code("", 8, 16)?,
            '0'..='7' => code(&escape.to_string(), 2, 8)?,
            '\\' => '\\',
            c if c == quote => c,
            _ => return None,
        });
    }
    Some(out)
}
