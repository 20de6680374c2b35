//! Names: DNS subdomains and labels, qualified names, and generated ones.
//!
//! Source: apimachinery's `validation` package. A `*_fault` function answers upstream's sentence about what is
//! wrong, or `None`.

/// Joins a `generateName` prefix and a random suffix as upstream does: the prefix cut so that both fit in 63
/// characters, then five characters of an alphabet that spells no words. `random` gives values to draw from.
pub fn generate(prefix: &str, mut random: impl FnMut() -> u32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MAX_PREFIX: usize = 63 - 5;
    let mut name: String = prefix.chars().take(MAX_PREFIX).collect();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[random() as usize % ALPHABET.len()]));
    }
    name
}

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 label, at most 63 characters.
pub fn dns_label_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!is_dns_label(text)).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
         and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// RFC 1035 label: as [`dns_label_fault`], but starting with a letter. Names of Services.
pub fn dns1035_label_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    (!starts || !is_dns_label(text)).then(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
         validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// RFC 1123 subdomain, at most 253 characters.
pub fn dns_subdomain_fault(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    (!text.split('.').all(is_dns_label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
         must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .into()
    })
}

/// A name that only has to fit into a URL path. Names of RBAC objects.
pub fn path_segment_fault(text: &str) -> Option<String> {
    if matches!(text, "." | "..") {
        return Some(format!("may not be '{text}'"));
    }
    ['/', '%'].iter().find(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'"))
}

fn is_label_text(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_alphanumeric();
    let inner = |b: u8| edge(b) || matches!(b, b'-' | b'_' | b'.');
    match text.as_bytes() {
        [] => false,
        bytes => bytes.iter().all(|b| inner(*b)) && edge(bytes[0]) && edge(bytes[bytes.len() - 1]),
    }
}

/// A label's or annotation's key: an optional DNS prefix and `/`, then a name.
pub fn qualified_name_fault(text: &str) -> Option<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if name.contains('/') {
        return Some(
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
             with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
             validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix \
             and '/' (e.g. 'example.com/MyName')"
                .into(),
        );
    }
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".into());
        }
        if let Some(fault) = dns_subdomain_fault(prefix) {
            return Some(format!("prefix part {fault}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters".into());
    }
    (!is_label_text(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            .into()
    })
}

/// A label's value: empty, or at most 63 characters.
pub fn label_value_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!text.is_empty() && !is_label_text(text)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
         for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_name_fits_and_keeps_its_prefix() {
        let name = generate(&"a".repeat(100), || 0);
        assert_eq!(name, format!("{}bbbbb", "a".repeat(58)));
        assert!(generate("web-", || 26).ends_with("99999"));
    }

    #[test]
    fn names_are_held_to_their_grammar() {
        assert_eq!(dns_subdomain_fault("a.b-c.1"), None);
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a/b"] {
            assert!(dns_subdomain_fault(bad).is_some(), "{bad}");
        }
        assert!(dns1035_label_fault("1a").is_some());
        assert_eq!(qualified_name_fault("example.com/My.Name"), None);
        for bad in ["", "/x", "a/b/c", "x y", "a/"] {
            assert!(qualified_name_fault(bad).is_some(), "{bad}");
        }
        assert_eq!(label_value_fault(""), None);
        assert!(label_value_fault("-x").is_some());
    }
}
