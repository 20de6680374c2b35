//! Addresses of mail.
//!
//! Source: RFC 5322 as Go's `net/mail` reads it, which is laxer about dots in names and takes a group of one.

/// Whether the text is one address, with or without a name.
pub(crate) fn is_address(text: &str) -> bool {
    let mut reader = Reader { rest: text };
    let Some(n_addresses) = reader.address(Groups::Allowed) else { return false };
    n_addresses == 1 && reader.skip_comments().is_some() && reader.rest.is_empty()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Groups {
    Allowed,
    Not,
}

#[derive(Clone, Copy)]
struct Reader<'t> {
    rest: &'t str,
}

fn is_visible(c: char) -> bool {
    ('!'..='~').contains(&c) || !c.is_ascii()
}

fn is_atom(c: char) -> bool {
    !"()<>[]:;@\\,\"".contains(c) && is_visible(c)
}

/// Each method reads a part and answers `None` if it is not there.
impl<'t> Reader<'t> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take(&mut self, c: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(c)?;
        Some(())
    }

    /// How many addresses there are: several in a group.
    fn address(&mut self, groups: Groups) -> Option<usize> {
        self.skip_spaces();
        let before = *self;
        if self.mailbox().is_some() {
            self.skip_spaces();
            if self.rest.starts_with('(') {
                self.comment()?;
            }
            return Some(1);
        }
        *self = before;
        if !self.rest.starts_with('<') {
            self.phrase()?;
        }
        self.skip_spaces();
        if groups == Groups::Allowed && self.take(':').is_some() {
            return self.group();
        }
        self.take('<')?;
        self.mailbox()?;
        self.take('>')?;
        Some(1)
    }

    fn group(&mut self) -> Option<usize> {
        self.skip_spaces();
        if self.take(';').is_some() {
            self.skip_comments()?;
            return Some(0);
        }
        let mut n_addresses = 0;
        loop {
            self.skip_spaces();
            n_addresses += self.address(Groups::Not)?;
            self.skip_comments()?;
            if self.take(';').is_some() {
                self.skip_comments()?;
                return Some(n_addresses);
            }
            self.take(',')?;
        }
    }

    /// `local@domain`
    fn mailbox(&mut self) -> Option<()> {
        self.skip_spaces();
        if self.rest.starts_with('"') {
            self.quoted().filter(|text| !text.is_empty())?;
        } else {
            self.dotted()?;
        }
        self.take('@')?;
        self.skip_spaces();
        if self.rest.starts_with('[') { self.literal() } else { self.dotted() }
    }

    fn atom(&mut self) -> Option<&'t str> {
        let end = self.rest.find(|c| c != '.' && !is_atom(c)).unwrap_or(self.rest.len());
        let (atom, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!atom.is_empty()).then_some(atom)
    }

    fn dotted(&mut self) -> Option<()> {
        self.atom().filter(|atom| atom.split('.').all(|part| !part.is_empty())).map(|_| ())
    }

    /// What stands between quotes, with its backslashes.
    fn quoted(&mut self) -> Option<&'t str> {
        let inner = self.rest.strip_prefix('"')?;
        let mut is_escaped = false;
        for (at, c) in inner.char_indices() {
            let is_text = is_visible(c) || matches!(c, ' ' | '\t');
            match c {
                _ if !is_text => return None,
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '"' => {
                    self.rest = &inner[at + 1..];
                    return Some(&inner[..at]);
                }
                _ => {}
            }
        }
        None
    }

    fn literal(&mut self) -> Option<()> {
        let (text, rest) = self.rest.strip_prefix('[')?.split_once(']')?;
        self.rest = rest;
        text.parse::<std::net::IpAddr>().ok().map(|_| ())
    }

    /// One word or more; what stands behind the last that is one is left.
    fn phrase(&mut self) -> Option<()> {
        let mut n_words = 0;
        loop {
            if n_words > 0 {
                self.skip_comments()?;
            }
            self.skip_spaces();
            let before = *self;
            let word = if self.rest.starts_with('"') { self.quoted() } else { self.atom() };
            if word.is_none() {
                *self = before;
                // Upstream takes an end for a phrase, too, which is then followed by nothing.
                return (n_words > 0 || self.rest.is_empty()).then_some(());
            }
            n_words += 1;
        }
    }

    fn skip_comments(&mut self) -> Option<()> {
        self.skip_spaces();
        while self.rest.starts_with('(') {
            self.comment()?;
            self.skip_spaces();
        }
        Some(())
    }

    fn comment(&mut self) -> Option<()> {
        let (mut depth, mut is_escaped) = (0_usize, false);
        for (at, c) in self.rest.char_indices() {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.rest = &self.rest[at + 1..];
                return Some(());
            }
        }
        None
    }
}
