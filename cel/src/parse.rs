//! From words to a tree. Depth and size are bounded, so that everything behind may walk the tree.
//!
//! Source: the grammar of cel-spec's `doc/langdef.md`, with cel-go's limits, and its rule for where a part stands: an
//! operator or an opening bracket, not the operand before it.

mod primary;

use crate::ast::{Ast, Literal, Node, NodeId};
use crate::issue::{Issue, Rejected};
use crate::macros;
use crate::token::{Kind, Token, tokens};

/// As many code points may an expression have.
const MAX_CODE_POINTS: usize = 100_000;
/// How often a rule of the grammar may stand within itself.
const MAX_DEPTH: usize = 250;
/// How deep a tree may be once its macros are written out. Upstream knows no bound here.
const MAX_HEIGHT: u16 = 400;
/// How many parts a tree may have: some macros write what they stand behind twice. Upstream knows no bound here.
const MAX_NODES: usize = 300_000;

pub(crate) struct Parsed {
    pub ast: Ast,
    pub root: NodeId,
}

/// What an environment lets be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syntax {
    pub optionals: bool,
    pub bindings: bool,
    pub version: u8,
}

pub(crate) fn parse(source: &str, syntax: Syntax) -> Result<Parsed, Rejected> {
    let n_points = source.chars().count();
    let rejected = |issues| Rejected::new(source, issues);
    if n_points > MAX_CODE_POINTS {
        let message =
            format!("expression code point size exceeds limit: size: {n_points}, limit {MAX_CODE_POINTS}");
        return Err(rejected(vec![Issue::syntax(None, message)]));
    }
    let tokens = tokens(source).map_err(|issue| rejected(vec![issue]))?;
    let mut parser =
        Parser { tokens: &tokens, at: 0, depth: 0, ast: Ast::default(), issues: Vec::new(), syntax };
    match parser.whole() {
        Ok(root) if parser.issues.is_empty() => Ok(Parsed { ast: parser.ast, root }),
        Ok(_) => Err(rejected(parser.issues)),
        Err(issue) => {
            parser.issues.push(issue);
            Err(rejected(parser.issues))
        }
    }
}

pub(crate) struct Parser<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
    depth: usize,
    pub(crate) ast: Ast,
    /// What is wrong, but lets the rest be read.
    issues: Vec<Issue>,
    pub(crate) syntax: Syntax,
}

type Parse<T> = Result<T, Issue>;

fn too_deep() -> Issue {
    Issue::syntax(None, format!("expression recursion limit exceeded: {MAX_DEPTH}"))
}

/// How closely operators bind, from the least on.
const OR: u8 = 0;
const AND: u8 = 1;
const RELATION: u8 = 2;
const SUM: u8 = 3;
const PRODUCT: u8 = 4;

/// An operator of two sides, and how closely it binds.
fn operator(kind: Kind<'_>) -> Option<(&'static str, u8)> {
    let Kind::Sign(sign) = kind else { return (kind == Kind::Name("in")).then_some(("@in", RELATION)) };
    Some(match sign {
        "||" => ("_||_", OR),
        "&&" => ("_&&_", AND),
        "<" => ("_<_", RELATION),
        "<=" => ("_<=_", RELATION),
        ">" => ("_>_", RELATION),
        ">=" => ("_>=_", RELATION),
        "==" => ("_==_", RELATION),
        "!=" => ("_!=_", RELATION),
        "+" => ("_+_", SUM),
        "-" => ("_-_", SUM),
        "*" => ("_*_", PRODUCT),
        "/" => ("_/_", PRODUCT),
        "%" => ("_%_", PRODUCT),
        _ => return None,
    })
}

fn text_of(kind: Kind<'_>) -> String {
    match kind {
        Kind::End => "<EOF>".to_string(),
        Kind::Sign(text) | Kind::Name(text) | Kind::Int(text) | Kind::Double(text) | Kind::Text(text) => {
            text.to_string()
        }
        Kind::Uint(text) => format!("{text}u"),
        Kind::Quoted(text) => format!("`{text}`"),
        Kind::Bytes(text) => format!("b{text}"),
    }
}

fn begins_expression(kind: Kind<'_>) -> bool {
    match kind {
        Kind::End | Kind::Quoted(_) => false,
        Kind::Sign(sign) => matches!(sign, "[" | "{" | "(" | "." | "-" | "!"),
        Kind::Name(name) => name != "in",
        Kind::Int(_) | Kind::Uint(_) | Kind::Double(_) | Kind::Text(_) | Kind::Bytes(_) => true,
    }
}

/// Words that CEL keeps for later.
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "as" | "break"
            | "const"
            | "continue"
            | "else"
            | "for"
            | "function"
            | "if"
            | "import"
            | "let"
            | "loop"
            | "package"
            | "namespace"
            | "return"
            | "var"
            | "void"
            | "while"
    )
}

/// Words that are no names anywhere.
fn is_word(name: &str) -> bool {
    matches!(name, "in" | "true" | "false" | "null")
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Token<'t> {
        self.ahead(0)
    }

    fn ahead(&self, n: usize) -> Token<'t> {
        let last = Token { kind: Kind::End, offset: 0 };
        self.tokens.get(self.at + n).or(self.tokens.last()).copied().unwrap_or(last)
    }

    /// Where a sign stands that is here, which is passed.
    fn take(&mut self, sign: &str) -> Option<usize> {
        let token = self.peek();
        let is_here = matches!(token.kind, Kind::Sign(found) if found == sign);
        self.at += usize::from(is_here);
        is_here.then_some(token.offset)
    }

    fn expect(&mut self, sign: &str) -> Parse<usize> {
        self.take(sign).ok_or_else(|| self.missing(sign))
    }

    /// What is said where a sign should be: that it is missing, if all would be well with it, or what is there instead.
    fn missing(&self, sign: &str) -> Issue {
        let token = self.peek();
        let is_end = token.kind == Kind::End && self.depth == 1 && matches!(sign, ")" | "]");
        let message = if matches!(self.ahead(1).kind, Kind::Sign(next) if next == sign) {
            format!("extraneous input '{}' expecting '{sign}'", text_of(token.kind))
        } else if is_end || sign == ":" && begins_expression(token.kind) {
            format!("missing '{sign}' at '{}'", text_of(token.kind))
        } else {
            return self.unexpected(&format!("'{sign}'"));
        };
        Issue::syntax(Some(token.offset), format!("Syntax error: {message}"))
    }

    fn unexpected(&self, expected: &str) -> Issue {
        let token = self.peek();
        let found = text_of(token.kind);
        // Where all would be well without it, it is only too much.
        let next = self.ahead(1).kind;
        let is_too_much = match expected {
            "<EOF>" => next == Kind::End,
            EXPRESSION | INDEX => begins_expression(next),
            ARGUMENT => begins_expression(next) || next == Kind::Sign(")"),
            "{']', ','}" => next == Kind::Sign("]"),
            "{'}', ','}" => next == Kind::Sign("}"),
            _ => false,
        };
        let what = if is_too_much { "extraneous" } else { "mismatched" };
        let message = format!("Syntax error: {what} input '{found}' expecting {expected}");
        Issue::syntax(Some(token.offset), message)
    }

    /// What is said where a field should be.
    fn no_field(&self) -> Issue {
        let token = self.peek();
        if matches!(token.kind, Kind::Name("true" | "false" | "null")) {
            return self.unexpected("IDENTIFIER");
        }
        let found = if token.kind == Kind::End { String::new() } else { text_of(token.kind) };
        Issue::syntax(Some(token.offset), format!("Syntax error: no viable alternative at input '.{found}'"))
    }

    pub(crate) fn note(&mut self, offset: usize, message: impl Into<String>) {
        self.issues.push(Issue::syntax(Some(offset), message));
    }

    pub(crate) fn add(&mut self, offset: usize, node: Node) -> Parse<NodeId> {
        let id = self.ast.add(offset, node);
        if self.ast.height(id) > MAX_HEIGHT {
            return Err(too_deep());
        }
        if self.ast.len() > MAX_NODES {
            return Err(Issue::syntax(None, format!("expression has more than {MAX_NODES} parts")));
        }
        Ok(id)
    }

    /// A part once more, if the tree has room for it.
    pub(crate) fn copy(&mut self, id: NodeId) -> Parse<NodeId> {
        // What a part is made of was added before it, so this bounds its size.
        if self.ast.len() + id.index() > MAX_NODES {
            return Err(Issue::syntax(None, format!("expression has more than {MAX_NODES} parts")));
        }
        Ok(self.ast.copy(id))
    }

    pub(crate) fn call(&mut self, offset: usize, function: &str, args: Vec<NodeId>) -> Parse<NodeId> {
        self.add(offset, Node::Call { function: function.into(), target: None, args })
    }

    pub(crate) fn literal(&mut self, offset: usize, literal: Literal) -> Parse<NodeId> {
        self.add(offset, Node::Literal(literal))
    }

    fn whole(&mut self) -> Parse<NodeId> {
        let root = self.expression()?;
        match self.peek().kind {
            Kind::End => Ok(root),
            _ => Err(self.unexpected("<EOF>")),
        }
    }

    fn expression(&mut self) -> Parse<NodeId> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let mut result = self.binary(OR)?;
        if let Some(offset) = self.take("?") {
            let yes = self.binary(OR)?;
            self.expect(":")?;
            let no = self.expression()?;
            result = self.call(offset, "_?_:_", vec![result, yes, no])?;
        }
        self.depth -= 1;
        Ok(result)
    }

    /// A chain as a tree that is as flat as can be; there is one more term than operators.
    fn balanced(&mut self, function: &str, terms: &[NodeId], offsets: &[usize]) -> Parse<NodeId> {
        if offsets.is_empty() {
            return Ok(terms[0]);
        }
        let middle = offsets.len() / 2;
        let left = self.balanced(function, &terms[..=middle], &offsets[..middle])?;
        let right = self.balanced(function, &terms[middle + 1..], &offsets[middle + 1..])?;
        self.call(offsets[middle], function, vec![left, right])
    }

    /// Operands and operators that bind at least so closely. One function for all of them keeps the stack small.
    fn binary(&mut self, least: u8) -> Parse<NodeId> {
        let mut left = self.unary()?;
        let mut n_links = 1;
        while let Some((function, level)) = operator(self.peek().kind).filter(|(_, level)| *level >= least) {
            if level <= AND {
                left = self.logic(function, level, left)?;
                continue;
            }
            let offset = self.peek().offset;
            self.at += 1;
            n_links += 1;
            if n_links > MAX_DEPTH {
                return Err(too_deep());
            }
            let right = self.binary(level + 1)?;
            left = self.call(offset, function, vec![left, right])?;
        }
        Ok(left)
    }

    /// A chain of one operator, whose first operand was read.
    fn logic(&mut self, function: &'static str, level: u8, first: NodeId) -> Parse<NodeId> {
        let (mut terms, mut offsets) = (vec![first], Vec::new());
        while operator(self.peek().kind) == Some((function, level)) {
            offsets.push(self.peek().offset);
            self.at += 1;
            terms.push(self.binary(level + 1)?);
        }
        self.balanced(function, &terms, &offsets)
    }

    fn unary(&mut self) -> Parse<NodeId> {
        for (sign, function) in [("!", "!_"), ("-", "-_")] {
            let Some(offset) = self.take(sign) else { continue };
            if sign == "-"
                && let Some(id) = self.number(offset, "-")?
            {
                return self.members(id);
            }
            let mut n_signs = 1;
            while self.take(sign).is_some() {
                n_signs += 1;
            }
            let operand = self.member()?;
            return if n_signs % 2 == 0 { Ok(operand) } else { self.call(offset, function, vec![operand]) };
        }
        self.member()
    }

    fn member(&mut self) -> Parse<NodeId> {
        let first = self.primary()?;
        self.members(first)
    }

    /// What follows something: fields, indexes, and calls on it.
    fn members(&mut self, mut operand: NodeId) -> Parse<NodeId> {
        for _ in 0..MAX_DEPTH {
            if let Some(dot) = self.take(".") {
                operand = self.select(operand, dot)?;
            } else if let Some(bracket) = self.take("[") {
                let is_optional = self.optional(Some((bracket, "[")));
                if !is_optional && !begins_expression(self.peek().kind) {
                    return Err(self.unexpected(INDEX));
                }
                let index = self.expression()?;
                self.expect("]")?;
                let function = if is_optional { "_[?_]" } else { "_[_]" };
                operand = self.call(bracket, function, vec![operand, index])?;
            } else {
                return Ok(operand);
            }
        }
        Err(too_deep())
    }

    fn select(&mut self, operand: NodeId, dot: usize) -> Parse<NodeId> {
        let is_optional = self.optional(Some((dot, ".")));
        let token = self.peek();
        let (name, is_plain) = match token.kind {
            Kind::Name(name) if !is_word(name) => (name, true),
            Kind::Quoted(name) => (name, false),
            _ => return Err(self.no_field()),
        };
        self.at += 1;
        if is_optional {
            let field = self.literal(token.offset, Literal::Text(name.into()))?;
            return self.call(dot, "_?._", vec![operand, field]);
        }
        if is_plain && let Some(bracket) = self.take("(") {
            let args = self.arguments()?;
            return macros::call(self, bracket, name, Some(operand), args);
        }
        self.add(dot, Node::Select { operand, field: name.into(), is_test: false })
    }

    /// Whether a question mark is here, where it marks what may be missing; `before` is the sign that belongs to it.
    fn optional(&mut self, before: Option<(usize, &str)>) -> bool {
        let Some(offset) = self.take("?") else { return false };
        if !self.syntax.optionals {
            let (offset, sign) = before.unwrap_or((offset, ""));
            self.note(offset, format!("unsupported syntax '{sign}?'"));
        }
        true
    }

    /// The rest of a call, whose bracket is open.
    fn arguments(&mut self) -> Parse<Vec<NodeId>> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        if !begins_expression(self.peek().kind) {
            return Err(self.unexpected(ARGUMENT));
        }
        loop {
            args.push(self.expression()?);
            if self.take(",").is_some() {
                continue;
            }
            return self.expect(")").map(|_| args);
        }
    }
}

/// What may begin an expression, in upstream's words.
const EXPRESSION: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
     IDENTIFIER}";
/// What may stand behind the bracket of a call.
const ARGUMENT: &str = "{'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
     IDENTIFIER}";
/// What may stand in the brackets of an index.
const INDEX: &str = "{'[', '{', '(', '.', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
     IDENTIFIER}";
