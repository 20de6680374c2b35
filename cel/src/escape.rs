//! Names of properties that are no names of CEL, as Kubernetes writes them.
//!
//! Source: `Escape` and `Unescape` of `k8s.io/apiserver/pkg/cel`.

const PARTS: [(&str, &str); 4] =
    [("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];

/// Words that may not be names.
fn is_word(name: &str) -> bool {
    matches!(
        name,
        "true"
            | "false"
            | "null"
            | "in"
            | "as"
            | "break"
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

/// The name that expressions call a property by; `None` if they cannot.
pub fn escape(property: &str) -> Option<String> {
    if property.is_empty() || property.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if is_word(property) {
        return Some(format!("__{property}__"));
    }
    let mut escaped = String::with_capacity(property.len());
    let mut rest = property;
    while let Some(first) = rest.chars().next() {
        if let Some((plain, written)) = PARTS.iter().find(|(plain, _)| rest.starts_with(plain)) {
            escaped.push_str(written);
            rest = &rest[plain.len()..];
        } else if first.is_ascii_alphanumeric() || first == '_' {
            escaped.push(first);
            rest = &rest[1..];
        } else {
            return None;
        }
    }
    Some(escaped)
}

/// The property that expressions call by this name; `None` if it is none that [`escape`] makes.
pub fn unescape(name: &str) -> Option<String> {
    let mut property = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(start) = rest.find("__") {
        let inside = &rest[start + 2..];
        // Like upstream, what stands between holds no underscore and is not empty.
        let end = inside.find('_').filter(|end| *end > 0 && inside[*end..].starts_with("__"));
        let Some(end) = end else {
            property.push_str(&rest[..start + 1]);
            rest = &rest[start + 1..];
            continue;
        };
        let word = &inside[..end];
        property.push_str(&rest[..start]);
        match PARTS.iter().find(|(_, written)| written[2..].strip_suffix("__") == Some(word)) {
            Some((plain, _)) => property.push_str(plain),
            None if is_word(word) && word.len() + 4 == name.len() => property.push_str(word),
            None => return None,
        }
        rest = &inside[end + 2..];
    }
    property.push_str(rest);
    Some(property)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_comes_back() {
        for (property, name) in [
            ("a", "a"),
            ("a.b", "a__dot__b"),
            ("a-b/c", "a__dash__b__slash__c"),
            ("a__b", "a__underscores__b"),
            ("if", "__if__"),
            ("namespace", "__namespace__"),
            ("a_b", "a_b"),
            ("a.-", "a__dot____dash__"),
        ] {
            assert_eq!(escape(property).as_deref(), Some(name));
            assert_eq!(unescape(name).as_deref(), Some(property));
        }
    }

    #[test]
    fn what_has_no_name_is_told() {
        for property in ["", "1a", "a b", "é", "a:b"] {
            assert_eq!(escape(property), None, "{property}");
        }
        for name in ["a__x__b", "__if__b"] {
            assert_eq!(unescape(name), None, "{name}");
        }
    }
}
