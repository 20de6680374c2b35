//! Reads what a file of k8s-openapi tells of its type: what its JSON schema says, as that has the names of JSON and the
//! texts as upstream has them. The comments of documentation beside it are escaped for rustdoc.
//!
//! ```text
//! impl crate::schemars::JsonSchema for Pod {
//!         "io.k8s.api.core.v1.Pod".into()
//!             "description": "…",
//!             "properties": {
//!                 "apiVersion": {
//!                     "description": "…",
//!                 "spec": ({
//!                     schema_obj.ensure_object().insert("description".into(), "…".into());
//! ```

/// A type and its fields.
#[derive(Debug, PartialEq)]
pub(crate) struct Described {
    /// As OpenAPI names it.
    pub(crate) name: String,
    /// Empty where there is none.
    pub(crate) text: String,
    /// Names and texts of those that have one.
    pub(crate) fields: Vec<(String, String)>,
}

const HEAD: &str = "impl crate::schemars::JsonSchema for ";
const NAME_END: &str = ".into()";
const TEXT: &str = "\"description\": ";
const INSERTED: &str = "insert(\"description\".into(), ";
/// How far the parts of a type are indented, and its fields.
const PART: usize = 12;
const FIELD: usize = 16;

/// The type that the file describes; `None` if it has none.
pub(crate) fn read(source: &str) -> Result<Option<Described>, String> {
    let Some((_, schema)) = source.split_once(HEAD) else { return Ok(None) };
    let mut lines = schema.lines().map(|line| (line.len() - line.trim_start().len(), line.trim()));
    let name = lines.by_ref().find(|(_, line)| line.starts_with('"') && line.ends_with(NAME_END));
    // What stands for several types has a name that is made when it runs.
    let Some((_, name)) = name else { return Ok(None) };
    let mut described = Described { name: literal(name)?, text: String::new(), fields: Vec::new() };
    let (mut is_in_fields, mut field) = (false, None);
    for (indent, line) in lines {
        if indent == PART {
            is_in_fields = line.starts_with("\"properties\": {");
        }
        let text = line.strip_prefix(TEXT).or_else(|| line.split_once(INSERTED).map(|(_, text)| text));
        if let Some(text) = text.filter(|text| text.starts_with('"')) {
            if !is_in_fields && indent == PART {
                described.text = literal(text)?;
            } else if is_in_fields
                && indent == FIELD + 4
                && let Some(name) = field.take()
            {
                described.fields.push((name, literal(text)?));
            }
        } else if is_in_fields && indent == FIELD && line.starts_with('"') {
            field = Some(literal(line)?);
        }
    }
    Ok(Some(described))
}

/// The value of the literal that the code begins with.
fn literal(code: &str) -> Result<String, String> {
    let unreadable = |what: &str| format!("{what} in {code}");
    let mut characters = code.strip_prefix('"').ok_or_else(|| unreadable("no literal"))?.chars();
    let mut out = String::new();
    loop {
        match characters.next().ok_or_else(|| unreadable("no end"))? {
            '"' => return Ok(out),
            '\\' => out.push(match characters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(plain @ ('"' | '\'' | '\\')) => plain,
                _ => return Err(unreadable("an unknown escape")),
            }),
            plain if (plain as u32) < 0x20 => return Err(unreadable("a control character")),
            plain => out.push(plain),
        }
    }
}
