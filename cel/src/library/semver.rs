//! Versions as semver.org writes them, and what quantities share with them.
//!
//! Source: `blang/semver` to its words, Kubernetes' `normalizeAndParse`.

use std::cmp::Ordering;
use std::sync::Arc;

use super::print::quoted;
use super::{Function, Library, library, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::Value;

#[derive(Clone, Debug)]
pub struct Semver {
    numbers: [u64; 3],
    before_release: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Text(String),
}

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "semver" => {
            |call, args, _| library(Library::Semver(Arc::new(read(call, args)?.map_err(Fault::other)?)))
        }
        "isSemver" => |call, args, _| Ok(Value::Bool(read(call, args)?.is_ok())),
        "major" => |call, args, _| number(call, args, 0),
        "minor" => |call, args, _| number(call, args, 1),
        "patch" => |call, args, _| number(call, args, 2),
        "isGreaterThan" => |call, args, _| Ok(Value::Bool(order(call, args)?.is_gt())),
        "isLessThan" => |call, args, _| Ok(Value::Bool(order(call, args)?.is_lt())),
        "compareTo" => |call, args, _| Ok(Value::Int(order(call, args)? as i64)),
        _ => return None,
    })
}

fn read(call: &Call, args: &[Value<'_>]) -> Result<Result<Semver, String>, Fault> {
    match args {
        [Value::Text(text)] | [Value::Text(text), Value::Bool(false)] => Ok(Semver::parse(text)),
        [Value::Text(text), Value::Bool(true)] => Ok(normal(text).and_then(|text| Semver::parse(&text))),
        _ => Err(no_overload(call, args)),
    }
}

fn number<'a>(call: &Call, args: &[Value<'a>], at: usize) -> Run<'a> {
    match args {
        [Value::Library(Library::Semver(version))] => Ok(Value::Int(version.numbers[at] as i64)),
        _ => Err(no_overload(call, args)),
    }
}

fn order(call: &Call, args: &[Value<'_>]) -> Result<Ordering, Fault> {
    match args {
        [Value::Library(Library::Semver(a)), Value::Library(Library::Semver(b))] => Ok(a.compare(b)),
        [Value::Library(Library::Quantity(a)), Value::Library(Library::Quantity(b))] => Ok(a.compare(b)),
        _ => Err(no_overload(call, args)),
    }
}

/// A version with what may be left out: a `v` before it, zeros in front, and the last numbers.
fn normal(text: &str) -> Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_string).collect();
    for part in parts.iter_mut().filter(|part| part.len() > 1) {
        let rest = part.trim_start_matches('0');
        *part = if rest.starts_with(|c: char| c.is_ascii_digit()) {
            rest.to_string()
        } else {
            format!("0{rest}")
        };
    }
    if parts.len() < 3 && parts.last().is_some_and(|part| part.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".to_string());
    }
    parts.resize(3, "0".to_string());
    Ok(parts.join("."))
}

impl Semver {
    pub(crate) fn compare(&self, other: &Semver) -> Ordering {
        let (mine, theirs) = (&self.before_release, &other.before_release);
        // What comes before a release is less than it.
        self.numbers.cmp(&other.numbers).then_with(|| match (mine.is_empty(), theirs.is_empty()) {
            (false, false) => mine.cmp(theirs),
            (a, b) => a.cmp(&b),
        })
    }

    fn parse(text: &str) -> Result<Semver, String> {
        if text.is_empty() {
            return Err("Version string empty".to_string());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts.as_slice() else {
            return Err("No Major.Minor.Patch elements found".to_string());
        };
        let (major, minor) = (plain("major", major)?, plain("minor", minor)?);
        let (rest, build) = rest.split_once('+').map_or((*rest, None), |(rest, build)| (rest, Some(build)));
        let (patch, before) =
            rest.split_once('-').map_or((rest, None), |(patch, before)| (patch, Some(before)));
        let patch = plain("patch", patch)?;
        let before_release = before.into_iter().flat_map(|before| before.split('.')).map(part);
        let before_release = before_release.collect::<Result<_, _>>()?;
        for part in build.into_iter().flat_map(|build| build.split('.')) {
            if part.is_empty() {
                return Err("Build meta data is empty".to_string());
            }
            if !is_plain(part) {
                return Err(format!("Invalid character(s) found in build meta data {}", quoted(part)));
            }
        }
        Ok(Semver { numbers: [major, minor, patch], before_release })
    }
}

fn is_plain(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn out_of_range(digits: &str) -> String {
    format!("strconv.ParseUint: parsing {}: value out of range", quoted(digits))
}

fn plain(name: &str, digits: &str) -> Result<u64, String> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {name} number {}", quoted(digits)));
    }
    if digits.len() > 1 && digits.starts_with('0') {
        let mut name = name.to_string();
        name[..1].make_ascii_uppercase();
        return Err(format!("{name} number must not contain leading zeroes {}", quoted(digits)));
    }
    if digits.is_empty() {
        return Err("strconv.ParseUint: parsing \"\": invalid syntax".to_string());
    }
    digits.parse().map_err(|_| out_of_range(digits))
}

fn part(part: &str) -> Result<Part, String> {
    if part.is_empty() {
        return Err("Prerelease is empty".to_string());
    }
    if !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return match is_plain(part) {
            true => Ok(Part::Text(part.to_string())),
            false => Err(format!("Invalid character(s) found in prerelease {}", quoted(part))),
        };
    }
    if part.len() > 1 && part.starts_with('0') {
        return Err(format!("Numeric PreRelease version must not contain leading zeroes {}", quoted(part)));
    }
    part.parse().map(Part::Number).map_err(|_| out_of_range(part))
}
