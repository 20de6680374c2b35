//! What offers devices: slices of a pool, their devices, and what these have and share.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::devices::{driver, label};
use super::format::Format;
use super::path::{Faults, NOT_NEGATIVE, Path, entries, has, is_true, list, number, text};
use super::table::quantity;
use super::walk::{Below, Walk};
use crate::quantity::{Quantity, Suffixes};

const MAX_DEVICES: usize = 128;
/// The same where a device has taints or uses counters.
const MAX_RICH_DEVICES: usize = 64;
const MAX_ENTRIES: usize = 32;
const MAX_COUNTER_SETS: usize = 8;
const MAX_CONSUMPTIONS: usize = 2;
const MAX_COUNTERS: usize = 32;
const MAX_TAINTS: usize = 16;
const MAX_CONDITIONS: usize = 4;
const MAX_VALUE_BYTES: usize = 64;
const MAX_ID_BYTES: usize = 32;
const MAX_POOL_BYTES: usize = 253;
/// A domain, a slash and a name.
const MAX_KEY_BYTES: usize = 63 + 1 + MAX_ID_BYTES;
const MAX_OPTIONS: usize = 10;
/// What a taint may do.
pub(super) const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

pub(super) fn slice<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let old = walk.old.map(|old| &old["spec"]);
    driver(&mut walk.faults, text(value, "driver"), &path.child("driver"));
    pool(&mut walk.faults, &value["pool"], &path.child("pool"));
    if let Some(old) = old {
        unchanged(&mut walk.faults, value, old, path);
    }
    place(walk, value, path);
    let faults = &mut walk.faults;
    if has(value, "sharedCounters") && has(value, "devices") {
        faults.invalid(path, &"".into(), "only one of `sharedCounters` or `devices` is allowed");
    }
    let (devices, field) = (list(value, "devices"), path.child("devices"));
    let is_rich =
        |device: &Value| !list(device, "taints").is_empty() || !list(device, "consumesCounters").is_empty();
    let most = if devices.iter().any(is_rich) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    if devices.len() > most {
        faults.too_many(&field, devices.len(), most);
    } else {
        let places = Places { per_device: is_true(value, "perDeviceNodeSelection") };
        let devices_before: HashMap<&str, &Value> = old
            .into_iter()
            .flat_map(|old| list(old, "devices"))
            .map(|old| (text(old, "name"), old))
            .collect();
        for (at, item) in devices.iter().enumerate() {
            let before = devices_before.get(text(item, "name")).copied();
            device(walk, item, before, places, &field.index(at));
        }
        unique(&mut walk.faults, devices, "name", &field);
    }
    counter_sets(&mut walk.faults, list(value, "sharedCounters"), &path.child("sharedCounters"));
    Below::Nothing
}

/// Entries of one name, which are reported as a whole.
pub(super) fn unique(faults: &mut Faults, items: &[Value], key: &str, path: &Path<'_>) {
    let mut seen = HashSet::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        if !seen.insert(text(item, key)) {
            faults.duplicate(&path.index(at), &text(item, key).into());
        }
    }
}

fn pool(faults: &mut Faults, pool: &Value, path: &Path<'_>) {
    pool_name(faults, text(pool, "name"), &path.child("name"));
    let count = number(pool, "resourceSliceCount");
    if count <= 0 {
        faults.invalid(&path.child("resourceSliceCount"), &count.into(), "must be greater than zero");
    }
    if number(pool, "generation") < 0 {
        faults.invalid(&path.child("generation"), &pool["generation"], NOT_NEGATIVE);
    }
}

/// Subdomains with slashes between them.
pub(super) fn pool_name(faults: &mut Faults, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return faults.required(path, "");
    }
    if name.len() > MAX_POOL_BYTES {
        faults.too_long(path, MAX_POOL_BYTES);
    }
    if let Some(fault) = name.split('/').find_map(|part| Format::Subdomain.fault(part)) {
        faults.invalid(path, &name.into(), &fault);
    }
}

fn unchanged(faults: &mut Faults, new: &Value, old: &Value, path: &Path<'_>) {
    const WHY: &str = "field is immutable";
    if text(&new["pool"], "name") != text(&old["pool"], "name") {
        let pool = path.child("pool");
        faults.invalid(&pool.child("name"), &text(&new["pool"], "name").into(), WHY);
    }
    if text(new, "driver") != text(old, "driver") {
        faults.invalid(&path.child("driver"), &text(new, "driver").into(), WHY);
    }
    if new.get("nodeName").filter(|name| !name.is_null())
        != old.get("nodeName").filter(|name| !name.is_null())
    {
        faults.invalid(&path.child("nodeName"), &new["nodeName"], WHY);
    }
}

fn node_name(faults: &mut Faults, name: &Value, path: &Path<'_>) -> bool {
    match name.as_str() {
        None => return false,
        Some("") => {
            faults.invalid(path, name, "must be either unset or set to a non-empty string");
            return false;
        }
        Some(name) => {
            if let Some(fault) = Format::Subdomain.fault(name) {
                faults.invalid(path, &name.into(), &fault);
            }
        }
    }
    true
}

/// Whether a switch that can only be on is.
fn is_on(faults: &mut Faults, holder: &Value, field: &str, path: &Path<'_>) -> bool {
    if holder.get(field) == Some(&Value::Bool(false)) {
        faults.invalid(&path.child(field), &false.into(), "must be either unset or set to true");
    }
    is_true(holder, field)
}

/// On which nodes a slice's devices are.
fn place<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) {
    let mut n_places = usize::from(node_name(&mut walk.faults, &value["nodeName"], &path.child("nodeName")));
    if has(value, "nodeSelector") {
        n_places += 1;
        let (selector, field) = (&value["nodeSelector"], path.child("nodeSelector"));
        walk.value("core.v1.NodeSelector", selector, &field);
        if list(selector, "nodeSelectorTerms").len() != 1 {
            let terms = &selector["nodeSelectorTerms"];
            walk.faults.invalid(
                &field.child("nodeSelectorTerms"),
                terms,
                "must have exactly one node selector term",
            );
        }
    }
    for switch in ["allNodes", "perDeviceNodeSelection"] {
        n_places += usize::from(is_on(&mut walk.faults, value, switch, path));
    }
    let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match n_places {
        0 => walk.faults.required(path, why),
        1 => {}
        _ => walk.faults.invalid(path, &"".into(), why),
    }
}

/// Who says where the devices of a slice are.
#[derive(Clone, Copy)]
struct Places {
    per_device: bool,
}

fn device<'v>(
    walk: &mut Walk<'v>,
    value: &'v Value,
    before: Option<&Value>,
    places: Places,
    path: &Path<'_>,
) {
    let faults = &mut walk.faults;
    label(faults, text(value, "name"), &path.child("name"));
    let n_entries = entries(value, "attributes").count() + entries(value, "capacity").count();
    if n_entries > MAX_ENTRIES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ENTRIES}");
        faults.invalid(path, &n_entries.into(), &why);
    }
    let field = path.child("attributes");
    for (key, value) in entries(value, "attributes") {
        qualified(faults, key, &field);
        attribute(faults, value, &field.key(&shortened(key, MAX_KEY_BYTES)));
    }
    // What stays as it was is not looked at again.
    let is_new = |field: &str| before.is_none_or(|before| before[field] != value[field]);
    let field = path.child("capacity");
    for (key, capacity) in entries(value, "capacity").filter(|_| is_new("capacity")) {
        qualified(faults, key, &field);
        let key = shortened(key, MAX_KEY_BYTES);
        let (policy, path) = (&capacity["requestPolicy"], field.key(&key));
        let path = path.child("requestPolicy");
        match is_true(value, "allowMultipleAllocations") {
            _ if policy.is_null() => {}
            true => request_policy(faults, capacity, policy, &path),
            false => faults.forbidden(&path, "allowMultipleAllocations must be true"),
        }
    }
    if is_new("taints") {
        taints(faults, list(value, "taints"), &path.child("taints"));
    }
    consumptions(faults, list(value, "consumesCounters"), &path.child("consumesCounters"));
    conditions(faults, value, path);
    device_place(walk, value, places, path);
}

fn device_place<'v>(walk: &mut Walk<'v>, value: &'v Value, places: Places, path: &Path<'_>) {
    if !places.per_device {
        if ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| has(value, field)) {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in \
                       the ResourceSlice spec";
            walk.faults.invalid(path, &Value::Null, why);
        }
        return;
    }
    let mut n_places = usize::from(node_name(&mut walk.faults, &value["nodeName"], &path.child("nodeName")));
    if has(value, "nodeSelector") {
        n_places += 1;
        walk.value("core.v1.NodeSelector", &value["nodeSelector"], &path.child("nodeSelector"));
    }
    n_places += usize::from(is_on(&mut walk.faults, value, "allNodes", path));
    let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to \
               true in the ResourceSlice spec";
    match n_places {
        0 => walk.faults.required(path, why),
        1 => {}
        _ => walk.faults.invalid(path, &"".into(), why),
    }
}

/// `name` or `example.com/name`. More parts have never been looked at.
pub(super) fn qualified(faults: &mut Faults, name: &str, path: &Path<'_>) {
    let parts: Vec<&str> = name.split('/').take(3).collect();
    match parts[..] {
        [id] => identifier(faults, id, path),
        [domain, id] => {
            match domain {
                "" => faults.invalid(path, &"".into(), "the domain must not be empty"),
                domain => driver(faults, domain, path),
            }
            match id {
                "" => faults.invalid(path, &"".into(), "the name must not be empty"),
                id => identifier(faults, id, path),
            }
        }
        _ => {}
    }
}

fn identifier(faults: &mut Faults, id: &str, path: &Path<'_>) {
    if id.len() > MAX_ID_BYTES {
        faults.too_long(path, MAX_ID_BYTES);
    }
    let is_word = id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_word {
        let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
                   characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
                   '[A-Za-z_][A-Za-z0-9_]*')";
        faults.invalid(path, &id.into(), why);
    }
}

/// A key as paths show it: without its middle where it is long.
fn shortened(key: &str, most: usize) -> String {
    const MARK: &str = "...";
    if key.len() <= most {
        return key.to_owned();
    }
    let left = most - MARK.len();
    let head = String::from_utf8_lossy(&key.as_bytes()[..left.div_ceil(2)]);
    let tail = String::from_utf8_lossy(&key.as_bytes()[key.len() - left / 2..]);
    format!("{head}{MARK}{tail}")
}

fn attribute(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    for field in ["string", "version"] {
        if text(value, field).len() > MAX_VALUE_BYTES {
            faults.too_long(&path.child(field), MAX_VALUE_BYTES);
        }
    }
    if has(value, "version") && !is_semantic_version(text(value, "version")) {
        let why = "must be a string compatible with semver.org spec 2.0.0";
        faults.invalid(&path.child("version"), &value["version"], why);
    }
    if ["int", "bool", "string", "version"].iter().filter(|field| has(value, field)).count() != 1 {
        faults.invalid(path, value, "exactly one value must be specified");
    }
}

/// `1.2.3-rc.1+build.5`.
fn is_semantic_version(text: &str) -> bool {
    let is_number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let is_plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, release) = text.split_once('-').map_or((text, None), |(core, release)| (core, Some(release)));
    let numbers: Vec<&str> = core.split('.').take(4).collect();
    let is_release =
        |part: &str| is_plain(part) && (is_number(part) || !part.bytes().all(|b| b.is_ascii_digit()));
    numbers.len() == 3
        && numbers.into_iter().all(is_number)
        && release.is_none_or(|release| release.split('.').all(is_release))
        && build.is_none_or(|build| build.split('.').all(is_plain))
}

/// Which devices are tainted, and with what.
pub(super) fn taint_rule<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    let (selector, field) = (&value["deviceSelector"], path.child("deviceSelector"));
    let name = |field: &str| selector.get(field).and_then(Value::as_str);
    if let Some(name) = name("driver") {
        driver(faults, name, &field.child("driver"));
    }
    if let Some(name) = name("pool") {
        pool_name(faults, name, &field.child("pool"));
    }
    if let Some(name) = name("device") {
        label(faults, name, &field.child("device"));
    }
    // An effect that has been there stays, whatever it is.
    let old = walk.old.map(|old| text(&old["spec"]["taint"], "effect"));
    let is_new = old != Some(text(&value["taint"], "effect"));
    taint(faults, &value["taint"], is_new, &path.child("taint"));
    Below::Nothing
}

fn taints(faults: &mut Faults, taints: &[Value], path: &Path<'_>) {
    if taints.len() > MAX_TAINTS {
        return faults.too_many(path, taints.len(), MAX_TAINTS);
    }
    for (at, item) in taints.iter().enumerate() {
        taint(faults, item, true, &path.index(at));
    }
}

fn taint(faults: &mut Faults, taint: &Value, is_effect_new: bool, path: &Path<'_>) {
    if let Some(fault) = Format::Qualified.fault(text(taint, "key")) {
        faults.invalid(&path.child("key"), &text(taint, "key").into(), &fault);
    }
    if let Some(fault) = Format::LabelValue.fault(text(taint, "value")) {
        faults.invalid(&path.child("value"), &taint["value"], &fault);
    }
    match text(taint, "effect") {
        _ if !is_effect_new => {}
        "" => faults.required(&path.child("effect"), ""),
        effect if EFFECTS.contains(&effect) => {}
        effect => faults.not_supported(&path.child("effect"), &effect.into(), &EFFECTS),
    }
}

fn counter_sets(faults: &mut Faults, sets: &[Value], path: &Path<'_>) {
    if sets.len() > MAX_COUNTER_SETS {
        return faults.too_many(path, sets.len(), MAX_COUNTER_SETS);
    }
    for (at, set) in sets.iter().enumerate() {
        counters(faults, set, "name", &path.index(at));
    }
    unique(faults, sets, "name", path);
}

fn consumptions(faults: &mut Faults, consumptions: &[Value], path: &Path<'_>) {
    if consumptions.len() > MAX_CONSUMPTIONS {
        return faults.too_many(path, consumptions.len(), MAX_CONSUMPTIONS);
    }
    for (at, consumption) in consumptions.iter().enumerate() {
        counters(faults, consumption, "counterSet", &path.index(at));
    }
    unique(faults, consumptions, "counterSet", path);
}

/// Counters by their names, of a set that has a name itself.
fn counters(faults: &mut Faults, holder: &Value, name: &str, path: &Path<'_>) {
    match text(holder, name) {
        "" => faults.required(&path.child(name), ""),
        text => label(faults, text, &path.child(name)),
    }
    let (n, field) = (entries(holder, "counters").count(), path.child("counters"));
    match n {
        0 => faults.required(&field, ""),
        _ if n > MAX_COUNTERS => faults.too_many(&field, n, MAX_COUNTERS),
        _ => entries(holder, "counters").for_each(|(key, _)| label(faults, key, &field)),
    }
}

/// What must be so of a device before a pod gets it, and what must not.
fn conditions(faults: &mut Faults, device: &Value, path: &Path<'_>) {
    let (good, bad) = ("bindingConditions", "bindingFailureConditions");
    for field in [good, bad] {
        let (names, field) = (list(device, field), path.child(field));
        if names.len() > MAX_CONDITIONS {
            faults.too_many(&field, names.len(), MAX_CONDITIONS);
            continue;
        }
        for (at, name) in names.iter().enumerate() {
            if let Some(fault) = Format::Qualified.fault(name.as_str().unwrap_or_default()) {
                faults.invalid(&field.index(at), name, &fault);
            }
        }
    }
    let wanted: HashSet<&str> = list(device, good).iter().filter_map(Value::as_str).collect();
    for field in [good, bad] {
        let mut seen = HashSet::new();
        for (at, name) in list(device, field).iter().enumerate() {
            let text = name.as_str().unwrap_or_default();
            let path = path.child(field);
            if !seen.insert(text) {
                faults.duplicate(&path.index(at), name);
            }
            if field == bad && wanted.contains(text) {
                let why = "bindingFailureConditions must not overlap with bindingConditions";
                faults.invalid(&path.index(at), name, why);
            }
        }
    }
    for (missing, there) in [(good, bad), (bad, good)] {
        if list(device, missing).is_empty() && !list(device, there).is_empty() {
            let why = format!("{missing} are required to use {there}");
            faults.invalid(&path.child(missing), &Value::Null, &why);
        }
    }
}

/// How much of a capacity one request may take.
fn request_policy(faults: &mut Faults, capacity: &Value, policy: &Value, path: &Path<'_>) {
    let (options, range) = (list(policy, "validValues"), &policy["validRange"]);
    if !options.is_empty() && !range.is_null() {
        let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return faults.forbidden(path, why);
    }
    let Some(most) = quantity(&capacity["value"]) else { return };
    let default = quantity(&policy["default"]);
    match (options.is_empty(), default) {
        (true, _) if range.is_null() => {}
        (true, None) => faults.required(&path.child("default"), "required when validRange is defined"),
        (false, None) => faults.required(&path.child("default"), "required when validValues is defined"),
        (false, Some(default)) => valid_values(faults, default, most, options, &path.child("validValues")),
        (true, Some(default)) => valid_range(faults, default, most, range, &path.child("validRange")),
    }
}

fn valid_values(faults: &mut Faults, default: Quantity, most: Quantity, options: &[Value], path: &Path<'_>) {
    let amounts: Vec<Option<Quantity>> = options.iter().map(quantity).collect();
    for (at, pair) in amounts.windows(2).enumerate() {
        if pair[0] > pair[1] {
            faults.invalid(&path.index(at + 1), &options[at + 1], "values must be sorted in ascending order");
        }
    }
    if options.len() > MAX_OPTIONS {
        faults.too_many(path, options.len(), MAX_OPTIONS);
    } else {
        let mut seen = HashSet::new();
        for (at, amount) in amounts.iter().enumerate() {
            let Some(amount) = amount else { continue };
            if *amount > most {
                let why = format!("option is larger than capacity value: {most}");
                faults.invalid(&path.index(at), &options[at], &why);
            }
            let decimal = amount.to_decimal();
            if !seen.insert(decimal.clone()) {
                faults.duplicate(&path.index(at), &decimal.into());
            }
        }
    }
    let is_default = |amount: &Option<Quantity>| amount.is_some_and(|amount| same(amount, default));
    if options.len() > MAX_OPTIONS || !amounts.iter().any(is_default) {
        let why = "default value is not valid according to the requestPolicy";
        faults.invalid(path, &default.to_string().into(), why);
    }
}

fn same(a: Quantity, b: Quantity) -> bool {
    a.partial_cmp(&b) == Some(std::cmp::Ordering::Equal)
}

fn valid_range(faults: &mut Faults, default: Quantity, most: Quantity, range: &Value, path: &Path<'_>) {
    let Some(least) = quantity(&range["min"]) else {
        return faults.required(&path.child("min"), "required when validRange is defined");
    };
    let (upper, step) = (quantity(&range["max"]), quantity(&range["step"]));
    let mut refuse = |is_wrong: bool, field: &str, value: Quantity, why: String| {
        if is_wrong {
            faults.invalid(&path.child(field), &value.to_string().into(), &why);
        }
    };
    refuse(least > most, "min", least, format!("min is larger than capacity value: {most}"));
    refuse(default < least, "default", default, format!("default is less than min: {least}"));
    if let Some(upper) = upper {
        refuse(least > upper, "max", least, format!("min is larger than max: {upper}"));
        refuse(upper > most, "max", upper, format!("max is larger than capacity value: {most}"));
        refuse(default > upper, "default", default, format!("default is more than max: {upper}"));
    }
    let all = [("default", Some(default)), ("min", Some(least)), ("max", upper), ("step", step)];
    let all = all.into_iter().filter_map(|(field, value)| Some((field, value?)));
    // Where anything is less than a whole, all is counted in thousandths.
    let is_fine = all.clone().any(|(_, value)| !value.is_whole());
    if is_fine && !countable(faults, all.clone(), thousandths_fault, path) {
        return;
    }
    let Some(step) = step else { return };
    if step.is_negative() || step.is_zero() {
        let field = path.child("step");
        return faults.invalid(&field, &step.to_string().into(), "must be greater than zero");
    }
    let field = path.child("step");
    if least + step > most {
        let why = format!("one step {} is larger than capacity value: {most}", least + step);
        faults.invalid(&field, &step.to_string().into(), &why);
    }
    if !is_fine && !countable(faults, all, units_fault, path) {
        return;
    }
    let count = |value: Quantity| if is_fine { value.millis() } else { value.units() };
    for value in [Some(default), upper].into_iter().flatten() {
        if count(value).wrapping_sub(count(least)).checked_rem(count(step)) != Some(0) {
            let why = format!("value is not a multiple of a given step ({step}) from ({least})");
            faults.invalid(&field, &value.to_string().into(), &why);
        }
    }
}

/// Whether all amounts can be counted with; what has a fault cannot.
fn countable<'a>(
    faults: &mut Faults,
    all: impl Iterator<Item = (&'a str, Quantity)>,
    fault: fn(Quantity) -> Option<&'static str>,
    path: &Path<'_>,
) -> bool {
    let mut is_countable = true;
    for (field, value) in all {
        if let Some(why) = fault(value) {
            is_countable = false;
            faults.invalid(&path.child(field), &value.to_string().into(), why);
        }
    }
    is_countable
}

fn thousandths_fault(value: Quantity) -> Option<&'static str> {
    (!same(Quantity::from_millis(value.millis()), value))
        .then_some("value cannot be represented as a milli value")
}

fn units_fault(value: Quantity) -> Option<&'static str> {
    if value.is_negative() {
        return Some(NOT_NEGATIVE);
    }
    let most = Quantity::from_units(i64::MAX, Suffixes::Decimal);
    (value > most).then_some("must not be larger than 9223372036854775807")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_those_of_semver() {
        for good in [
            "0.0.0",
            "1.2.3",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-0a",
            "1.0.0--",
            "1.0.0+001.x",
            "1.0.0-a+b",
        ] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "01.2.3",
            "1.0.0-",
            "1.0.0-01",
            "1.0.0+",
            "1.0.0-a..b",
            "v1.0.0",
            "1.0.0+é",
        ] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }

    #[test]
    fn a_range_of_requests_is_counted_in_wholes_or_in_thousandths() {
        let found = |default: &str, most: &str, range: Value| -> Vec<String> {
            let (mut faults, amount) = (Faults::default(), |text: &str| text.parse().expect("a quantity"));
            valid_range(&mut faults, amount(default), amount(most), &range, &Path::ROOT);
            faults.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
        };
        let none: [&str; 0] = [];
        let fine = json!({"min": "250m", "max": "1", "step": "250m"});
        assert_eq!(found("500m", "2", fine.clone()), none);
        let why = "Invalid value: \"600m\": value is not a multiple of a given step (250m) from (250m)";
        assert_eq!(found("600m", "2", fine), [format!("step: {why}")]);
        // A default of a fraction is no multiple of a whole.
        let why = "Invalid value: \"1500m\": value is not a multiple of a given step (1) from (1)";
        assert_eq!(found("1500m", "4", json!({"min": "1", "step": "1"})), [format!("step: {why}")]);
        let why = "Invalid value: \"100u\": value cannot be represented as a milli value";
        assert_eq!(found("1", "4", json!({"min": "100u", "step": "1"})), [format!("min: {why}")]);
        let why = "Invalid value: \"0\": must be greater than zero";
        assert_eq!(found("1", "4", json!({"min": "1", "step": "0"})), [format!("step: {why}")]);
        let why = "Invalid value: \"1\": default is less than min: 2";
        assert_eq!(found("1", "4", json!({"min": "2"})), [format!("default: {why}")]);
        let huge = "18446744073709551616";
        let faults = found("1", huge, json!({"min": "1", "max": huge, "step": "1"}));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].ends_with("must not be larger than 9223372036854775807"), "{faults:?}");
    }

    #[test]
    fn values_that_are_offered_differ_in_fractions() {
        let found = |options: Value| -> Vec<String> {
            let (mut faults, amount) = (Faults::default(), |text: &str| text.parse().expect("a quantity"));
            let options = options.as_array().expect("a list").clone();
            valid_values(&mut faults, amount("500m"), amount("2"), &options, &Path::ROOT.child("v"));
            faults.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
        };
        assert_eq!(found(json!(["500m", "1"])), [""; 0]);
        assert_eq!(found(json!(["500m", "500m"])), ["v[1]: Duplicate value: \"0.5\""]);
        let why = "v[1]: Invalid value: \"3\": option is larger than capacity value: 2";
        assert_eq!(found(json!(["500m", "3"])), [why]);
    }

    #[test]
    fn capacity_that_stays_as_it_was_is_not_looked_at_again() {
        let kinds = crate::Kinds::builtin();
        let kind = kinds.by_kind("resource.k8s.io", "v1", "ResourceSlice").expect("a kind");
        let slice = |step: &str| {
            json!({"metadata": {"name": "s"}, "spec": {
                "driver": "d.example.com", "nodeName": "n",
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "d", "allowMultipleAllocations": true, "capacity": {"c": {
                    "value": "4", "requestPolicy": {"default": "1", "validRange": {"min": "1", "step": step}},
                }}}],
            }})
        };
        assert_eq!(kind.validate(&slice("0"), None).len(), 1);
        assert_eq!(kind.validate(&slice("0"), Some(&slice("0"))), []);
        assert_eq!(kind.validate(&slice("0"), Some(&slice("1"))).len(), 1);
        assert_eq!(kind.validate(&slice("1"), Some(&slice("0"))), []);
    }

    #[test]
    fn long_keys_lose_their_middle() {
        assert_eq!(shortened("abc", 16), "abc");
        assert_eq!(shortened("abcdefghijklmnopqrst", 16), "abcdefg...opqrst");
        assert_eq!(shortened(&"é".repeat(20), 17).matches("...").count(), 1);
    }
}
