//! What expressions are made of in the end: literals, names, lists, maps, messages.

use super::{EXPRESSION, Parse, Parser, is_reserved, is_word};
use crate::ast::{Entry, Field, Item, Literal, Name, Node, NodeId};
use crate::macros;
use crate::token::{Kind, Token, Written, unquoted};

impl Parser<'_> {
    pub(super) fn primary(&mut self) -> Parse<NodeId> {
        let Token { kind, offset } = self.peek();
        if let Some(id) = self.number(offset, "")? {
            return Ok(id);
        }
        if let Kind::Name(name) = kind
            && !is_word(name)
        {
            return self.named("", offset);
        }
        self.at += 1;
        let literal = match kind {
            Kind::Name("true") => Literal::Bool(true),
            Kind::Name("false") => Literal::Bool(false),
            Kind::Name("null") => Literal::Null,
            Kind::Text(text) => self.text(text, offset),
            Kind::Bytes(text) => match unquoted(text, Written::Bytes) {
                Ok(bytes) => Literal::Bytes(bytes.into()),
                Err(message) => self.faulty(offset, message),
            },
            Kind::Sign(".") if matches!(self.peek().kind, Kind::Name(name) if !is_word(name)) => {
                return self.named(".", offset);
            }
            Kind::Sign(".") => return Err(self.no_field()),
            Kind::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Kind::Sign("[") => return self.list(offset),
            Kind::Sign("{") => return self.map(offset),
            _ => {
                self.at -= 1;
                return Err(self.unexpected(EXPRESSION));
            }
        };
        self.literal(offset, literal)
    }

    fn faulty(&mut self, offset: usize, message: &str) -> Literal {
        self.note(offset, message);
        Literal::Null
    }

    fn text(&mut self, text: &str, offset: usize) -> Literal {
        match unquoted(text, Written::Text).map(String::from_utf8) {
            Ok(Ok(text)) => Literal::Text(text.into()),
            Ok(Err(_)) => self.faulty(offset, "unable to unescape string"),
            Err(message) => self.faulty(offset, message),
        }
    }

    /// A number, if one is here; `sign` stands before it already.
    pub(super) fn number(&mut self, offset: usize, sign: &str) -> Parse<Option<NodeId>> {
        let signed = |text: &str| format!("{sign}{text}");
        let hexadecimal = |text: &str| text.strip_prefix("0x").map(str::to_string);
        let literal = match self.peek().kind {
            Kind::Int(text) => {
                let value = match hexadecimal(text) {
                    Some(digits) => i64::from_str_radix(&signed(&digits), 16),
                    None => signed(text).parse(),
                };
                value.map(Literal::Int).map_err(|_| "invalid int literal")
            }
            Kind::Uint(text) if sign.is_empty() => {
                let value = match hexadecimal(text) {
                    Some(digits) => u64::from_str_radix(&digits, 16),
                    None => text.parse(),
                };
                value.map(Literal::Uint).map_err(|_| "invalid uint literal")
            }
            Kind::Double(text) => match signed(text).parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(Literal::Double(value)),
                _ => Err("invalid double literal"),
            },
            _ => return Ok(None),
        };
        self.at += 1;
        let literal = literal.unwrap_or_else(|message| self.faulty(offset, message));
        self.literal(offset, literal).map(Some)
    }

    /// A name, a call by name, or a message; `dot` is what stands before the name.
    fn named(&mut self, dot: &str, start: usize) -> Parse<NodeId> {
        if let Some(name) = self.message_name(dot) {
            let bracket = self.expect("{")?;
            let fields = self.fields()?;
            return self.add(bracket, Node::Message { name, fields });
        }
        let Token { kind: Kind::Name(name), offset } = self.peek() else {
            return Err(self.unexpected(EXPRESSION));
        };
        self.at += 1;
        let full = format!("{dot}{name}");
        if is_reserved(name) {
            self.note(start, format!("reserved identifier: {name}"));
        }
        match self.take("(") {
            Some(bracket) => {
                let args = self.arguments()?;
                macros::call(self, bracket, &full, None, args)
            }
            None => self.add(offset, Node::Ident(full.into())),
        }
    }

    /// The name of a message whose fields follow; names and dots up to there are passed.
    fn message_name(&mut self, dot: &str) -> Option<Name> {
        let mut full = dot.to_string();
        let mut n_tokens = 0;
        loop {
            match self.ahead(n_tokens).kind {
                Kind::Name(name) if !is_word(name) => full.push_str(name),
                _ => return None,
            }
            match self.ahead(n_tokens + 1).kind {
                Kind::Sign("{") => {
                    self.at += n_tokens + 1;
                    return Some(full.into());
                }
                Kind::Sign(".") => full.push('.'),
                _ => return None,
            }
            n_tokens += 2;
        }
    }

    /// Whether nothing is listed; a comma may stand there alone.
    fn is_empty(&mut self, bracket: &str) -> Parse<bool> {
        if self.take(",").is_some() {
            return self.expect(bracket).map(|_| true);
        }
        Ok(self.take(bracket).is_some())
    }

    /// Whether what is listed ends here; a comma must stand where it goes on, and may before the end.
    fn is_end(&mut self, bracket: &str) -> Parse<bool> {
        let goes_on = self.take(",").is_some();
        if self.take(bracket).is_some() {
            return Ok(true);
        }
        if goes_on { Ok(false) } else { Err(self.unexpected(&format!("{{'{bracket}', ','}}"))) }
    }

    fn list(&mut self, offset: usize) -> Parse<NodeId> {
        let mut items = Vec::new();
        let mut is_closed = self.is_empty("]")?;
        while !is_closed {
            let is_optional = self.optional(None);
            items.push(Item { value: self.expression()?, is_optional });
            is_closed = self.is_end("]")?;
        }
        self.add(offset, Node::List(items))
    }

    fn map(&mut self, offset: usize) -> Parse<NodeId> {
        let mut entries = Vec::new();
        let mut is_closed = self.is_empty("}")?;
        while !is_closed {
            let is_optional = self.optional(None);
            let key = self.expression()?;
            self.expect(":")?;
            entries.push(Entry { key, value: self.expression()?, is_optional });
            is_closed = self.is_end("}")?;
        }
        self.add(offset, Node::Map(entries))
    }

    fn fields(&mut self) -> Parse<Vec<Field>> {
        let mut fields = Vec::new();
        let mut is_closed = self.is_empty("}")?;
        while !is_closed {
            let is_optional = self.optional(None);
            let name = match self.peek().kind {
                Kind::Name(name) if !is_word(name) => name,
                _ => return Err(self.unexpected("IDENTIFIER")),
            };
            self.at += 1;
            let offset = self.expect(":")?;
            fields.push(Field { name: name.into(), value: self.expression()?, is_optional, offset });
            is_closed = self.is_end("}")?;
        }
        Ok(fields)
    }
}
