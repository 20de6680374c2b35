//! What can be said against an expression of the Common Expression Language before it is run: that it is none, that it names
//! what is not there, or that it cannot answer yes or no.
//!
//! # Guarantees
//! What is refused here upstream refuses too. The work is linear in the expression, its depth is bounded.
//!
//! # Caveats
//! Types are known of literals and of what operators make of them; fields, indexes and calls may be anything. What an expression
//! costs is not estimated.
//!
//! Source: the grammar of cel-spec's `doc/langdef.md`.

mod token;

use token::{Token, tokens};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("Syntax error")]
    Syntax,
    #[error("expression recursion limit exceeded")]
    TooDeep,
    #[error("undeclared reference")]
    Undeclared,
    #[error("found no matching overload")]
    Overload,
    #[error("must evaluate to bool")]
    NotBool,
}

/// Nested expressions, as deep as upstream reads them.
const MAX_DEPTH: usize = 250;

/// Names that mean something everywhere: types, and where functions lie.
const BUILT_IN: [&str; 22] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "type",
    "null_type",
    "dyn",
    "google",
    "cel",
    "optional",
    "optional_type",
    "ip",
    "cidr",
    "sets",
    "math",
    "base64",
    "regex",
    "strings",
];
/// Words that CEL keeps for later.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// Calls whose first arguments are names of what they go through.
const BINDERS: [&str; 12] = [
    "all",
    "exists",
    "exists_one",
    "existsOne",
    "map",
    "filter",
    "bind",
    "sortBy",
    "transformList",
    "transformMap",
    "transformMapEntry",
    "optMap",
];

/// Operators of two sides, by how closely they bind.
const LEVELS: [&[&str]; 5] =
    [&["||"], &["&&"], &["<", "<=", ">", ">=", "==", "!=", "in"], &["+", "-"], &["*", "/", "%"]];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Null,
    List,
    Map,
    Any,
}

impl Type {
    fn may_be(self, other: Type) -> bool {
        self == other || self == Type::Any || other == Type::Any
    }
}

/// Checks an expression that must answer yes or no; `names` are what it may speak of.
pub(crate) fn check(expression: &str, names: &[&str]) -> Result<(), Error> {
    let tokens = tokens(expression)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0, names, bound: Vec::new(), fault: None };
    let type_ = parser.expression()?;
    if parser.peek() != Token::End {
        return Err(Error::Syntax);
    }
    match parser.fault {
        Some(fault) => Err(fault),
        None if type_.may_be(Type::Bool) => Ok(()),
        None => Err(Error::NotBool),
    }
}

struct Parser<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
    depth: usize,
    names: &'t [&'t str],
    /// Names that calls around the present place have bound.
    bound: Vec<&'t str>,
    /// The first fault of what the expression means: syntax comes first.
    fault: Option<Error>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Token<'t> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn take(&mut self, sign: &str) -> bool {
        let is_here = matches!(self.peek(), Token::Sign(found) if found == sign);
        self.at += usize::from(is_here);
        is_here
    }

    fn expect(&mut self, sign: &str) -> Result<(), Error> {
        if self.take(sign) { Ok(()) } else { Err(Error::Syntax) }
    }

    fn note(&mut self, fault: Error) {
        self.fault.get_or_insert(fault);
    }

    fn must_be(&mut self, found: Type, wanted: Type) {
        if !found.may_be(wanted) {
            self.note(Error::Overload);
        }
    }

    fn expression(&mut self) -> Result<Type, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let condition = self.binary(0)?;
        let type_ = if self.take("?") {
            self.must_be(condition, Type::Bool);
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expression()?;
            if yes == no { yes } else { Type::Any }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(type_)
    }

    fn binary(&mut self, level: usize) -> Result<Type, Error> {
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Token::Sign(sign) = self.peek()
            && signs.contains(&sign)
        {
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = self.applied(sign, left, right);
        }
        Ok(left)
    }

    fn applied(&mut self, sign: &str, left: Type, right: Type) -> Type {
        match sign {
            "||" | "&&" => {
                self.must_be(left, Type::Bool);
                self.must_be(right, Type::Bool);
                Type::Bool
            }
            "in" => {
                if !right.may_be(Type::List) && right != Type::Map {
                    self.note(Error::Overload);
                }
                Type::Bool
            }
            "==" | "!=" => {
                // Null may be compared with what may be missing.
                if left != Type::Null && right != Type::Null {
                    self.must_be(left, right);
                }
                Type::Bool
            }
            "<" | "<=" | ">" | ">=" => {
                let are_numbers = |a| matches!(a, Type::Int | Type::Uint | Type::Double);
                if !(left.may_be(right) || are_numbers(left) && are_numbers(right)) {
                    self.note(Error::Overload);
                }
                Type::Bool
            }
            _ => {
                self.must_be(left, right);
                let is_sum = sign == "+";
                for side in [left, right] {
                    let fits = match side {
                        Type::Any | Type::Int | Type::Uint => true,
                        Type::Double => sign != "%",
                        Type::Text | Type::Bytes | Type::List => is_sum,
                        _ => false,
                    };
                    if !fits {
                        self.note(Error::Overload);
                    }
                }
                if left == Type::Any { right } else { left }
            }
        }
    }

    fn unary(&mut self) -> Result<Type, Error> {
        let mut signs = [0_usize; 2];
        for (n, sign) in signs.iter_mut().zip(["!", "-"]) {
            while self.take(sign) {
                *n += 1;
            }
            if *n > 0 {
                break;
            }
        }
        let type_ = self.member()?;
        if signs[0] > 0 {
            self.must_be(type_, Type::Bool);
            return Ok(Type::Bool);
        }
        if signs[1] > 0 && !matches!(type_, Type::Any | Type::Int | Type::Double) {
            self.note(Error::Overload);
        }
        Ok(type_)
    }

    fn member(&mut self) -> Result<Type, Error> {
        let mut type_ = self.primary()?;
        loop {
            if self.take(".") {
                self.take("?");
                let Token::Name(name) = self.peek() else { return Err(Error::Syntax) };
                self.at += 1;
                if self.take("(") {
                    self.arguments(name)?;
                } else if !matches!(type_, Type::Any | Type::Map) {
                    // Only what has fields is looked into.
                    self.note(Error::Overload);
                }
                type_ = Type::Any;
            } else if self.take("[") {
                self.take("?");
                self.expression()?;
                self.expect("]")?;
                if !matches!(type_, Type::Any | Type::List | Type::Map) {
                    self.note(Error::Overload);
                }
                type_ = Type::Any;
            } else if type_ == Type::Any && self.is_message() {
                self.at += 1;
                self.entries(true)?;
            } else {
                return Ok(type_);
            }
        }
    }

    /// Whether the fields of a message follow the name that was just read.
    fn is_message(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        self.peek() == Token::Sign("{") && matches!(before, Some(Token::Name(_)))
    }

    /// The rest of a call, whose bracket is open.
    fn arguments(&mut self, name: &str) -> Result<(), Error> {
        let n_bound = self.bound.len();
        if BINDERS.contains(&name) {
            let mut at = self.at;
            while let (Some(Token::Name(variable)), Some(Token::Sign(","))) =
                (self.tokens.get(at), self.tokens.get(at + 1))
            {
                self.bound.push(variable);
                at += 2;
            }
        }
        if !self.take(")") {
            loop {
                self.expression()?;
                if !self.take(",") {
                    break;
                }
            }
            self.expect(")")?;
        }
        self.bound.truncate(n_bound);
        Ok(())
    }

    fn primary(&mut self) -> Result<Type, Error> {
        let token = self.peek();
        self.at += 1;
        Ok(match token {
            Token::Int => Type::Int,
            Token::Uint => Type::Uint,
            Token::Double => Type::Double,
            Token::Text => Type::Text,
            Token::Bytes => Type::Bytes,
            Token::Name("true" | "false") => Type::Bool,
            Token::Name("null") => Type::Null,
            Token::Name(name) => self.named(name)?,
            Token::Sign(".") => match self.peek() {
                Token::Name(name) => {
                    self.at += 1;
                    self.named(name)?
                }
                _ => return Err(Error::Syntax),
            },
            Token::Sign("(") => {
                let type_ = self.expression()?;
                self.expect(")")?;
                type_
            }
            Token::Sign("[") => {
                while !self.take("]") {
                    self.take("?");
                    self.expression()?;
                    if !self.take(",") {
                        self.expect("]")?;
                        break;
                    }
                }
                Type::List
            }
            Token::Sign("{") => {
                self.entries(false)?;
                Type::Map
            }
            Token::Sign(_) | Token::End => return Err(Error::Syntax),
        })
    }

    fn named(&mut self, name: &'t str) -> Result<Type, Error> {
        if RESERVED.contains(&name) {
            return Err(Error::Syntax);
        }
        if self.take("(") {
            self.arguments(name)?;
            return Ok(if name == "size" { Type::Int } else { Type::Any });
        }
        let is_known = [self.names, &BUILT_IN, &self.bound].iter().any(|names| names.contains(&name));
        if !is_known {
            self.note(Error::Undeclared);
        }
        Ok(Type::Any)
    }

    /// The entries of a map, or the fields of a message, whose bracket is open.
    fn entries(&mut self, are_fields: bool) -> Result<(), Error> {
        while !self.take("}") {
            self.take("?");
            match self.peek() {
                Token::Name(_) if are_fields => self.at += 1,
                _ if are_fields => return Err(Error::Syntax),
                _ => _ = self.expression()?,
            }
            self.expect(":")?;
            self.expression()?;
            if !self.take(",") {
                return self.expect("}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn checked(expression: &str, wanted: Result<(), Error>) {
        assert_eq!(check(expression, &["object", "request"]), wanted, "{expression}");
    }

    #[test]
    fn what_answers_yes_or_no_is_an_expression() {
        for good in [
            "true",
            "object.a == 'x'",
            "object.list.all(x, x.size() < 3 && x in ['a', \"b\"])",
            "has(object.a) && object.a[0].?b.orValue(false)",
            "!object.a ? 1 < 2.0 : request.b >= 3u // why not",
            "object.map({'a': 1,}, [1, 2,]) == -object.n % 2",
            "cel.bind(x, object.a, x) == r'\\d' + '''it's'''",
            "object.items.exists(i, v, i < 3 && v == b'x')",
            "quantity(object.a).isGreaterThan(quantity('1Gi'))",
            "google.protobuf.Timestamp{seconds: 1} < object.t",
            "object.`a-b/c` == null",
            "request",
        ] {
            checked(good, Ok(()));
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for bad in [
            "",
            " ",
            "a..b",
            "-",
            "/a",
            "../x",
            "$(A)",
            "a b",
            "127.0.0.1",
            "object.",
            "(true",
            "true)",
            "[1,,2]",
            "'a",
            "'a\nb'",
            "'\\q'",
            "object.if",
            "é",
            "{true}",
            "if",
            "object ? true",
            "f(,)",
            "`a",
            "true ||",
            "0x",
        ] {
            assert!(matches!(check(bad, &["object"]), Err(Error::Syntax)) || bad == "object.if", "{bad:?}");
        }
    }

    #[test]
    fn what_names_nothing_or_is_no_answer_is_refused() {
        checked("a", Err(Error::Undeclared));
        checked("a.example.com", Err(Error::Undeclared));
        checked("object.all(x, y)", Err(Error::Undeclared));
        checked("object.all(x, true) && x", Err(Error::Undeclared));
        for text in ["1", "'x'", "[true]", "{}", "null", "1 + 2", "-1.5", "size(object)"] {
            checked(text, Err(Error::NotBool));
        }
        for text in
            ["1 == 'a'", "!1", "1 && true", "'a' - 'b'", "1 in 'a'", "'a'.b", "true.x == 1", "1 < 'a'"]
        {
            checked(text, Err(Error::Overload));
        }
    }

    #[test]
    fn what_is_nested_without_end_is_refused() {
        let nested = |n: usize| format!("{}true{}", "(".repeat(n), ")".repeat(n));
        checked(&nested(MAX_DEPTH - 1), Ok(()));
        checked(&nested(MAX_DEPTH), Err(Error::TooDeep));
        checked(&"[".repeat(100_000), Err(Error::TooDeep));
        checked(&format!("true{}", " && true".repeat(10_000)), Ok(()));
    }
}
