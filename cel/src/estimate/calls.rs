//! What single calls may cost.

use super::{Entries, Estimate, Estimator, ONE, Range, Seen, extended};
use crate::ast::{Literal, Name, Node, NodeId};
use crate::charge::{PATTERN, TRAVERSAL};
use crate::types::Type;

/// How long Kubernetes takes the pattern of a format to be.
const MAX_FORMAT_PATTERN: f64 = 128.0;
/// How long a format may be.
const MAX_FORMAT: u64 = 64;

impl<'c> Estimator<'c> {
    pub(super) fn call(
        &mut self,
        id: NodeId,
        function: &Name,
        target: Option<NodeId>,
        args: &[NodeId],
    ) -> Range {
        if let ("dyn", [arg]) = (&**function, args) {
            let cost = self.cost(*arg).plus(ONE);
            let (size, entries) = (self.size(*arg), self.entries(*arg));
            self.remember(id, size, entries);
            return cost;
        }
        let mut costs = Vec::with_capacity(args.len());
        let mut seen = Vec::with_capacity(args.len());
        for arg in args {
            costs.push(self.cost(*arg));
            seen.push(self.seen(*arg));
        }
        let overloads: Vec<&'static str> = self.checked.overload_ids(id).collect();
        if overloads.is_empty() {
            return Range::exactly(0);
        }
        let before = target.map_or(Range::exactly(0), |target| self.cost(target));
        let target = target.map(|target| self.seen(target));
        let (mut cost, mut result): (Range, Option<Range>) = (Range::NOTHING, None);
        for overload in overloads {
            let estimate = self.overload(id, function, overload, target.as_ref(), &seen, &costs);
            cost = cost.union(estimate.cost);
            if let Some(size) = estimate.result {
                result = Some(result.map_or(size, |result: Range| result.union(size)));
            }
            if let ("index_list" | "index_map", [operand, ..]) = (overload, args) {
                result = self.entries(*operand).map(|entries| entries.value);
                let part = if overload == "index_list" { "@items" } else { "@values" };
                let path = extended(self.path(*operand), &part.into());
                self.paths.insert(id, path);
            }
            result = result.or_else(|| self.size(id));
        }
        self.remember(id, result, None);
        before.plus(cost)
    }

    fn overload(
        &mut self,
        id: NodeId,
        function: &str,
        overload: &str,
        target: Option<&Seen<'c>>,
        args: &[Seen<'c>],
        costs: &[Range],
    ) -> Estimate {
        let sum = costs.iter().fold(Range::exactly(0), |sum, cost| sum.plus(*cost));
        let own = self
            .of_extension(overload, target, args)
            .or_else(|| self.of_kubernetes(function, overload, target, args));
        if let Some(own) = own {
            return Estimate { cost: own.cost.plus(sum), result: own.result };
        }
        match (overload, args, costs) {
            ("logical_or" | "logical_and", _, [left, right]) => {
                let max = left.plus(*right).max;
                Estimate { cost: Range { min: left.min, max }, result: None }
            }
            ("conditional", [_, yes, no], [condition, for_yes, for_no]) => {
                let size = unknown(yes.size).union(unknown(no.size));
                let entries = Entries::union(self.entries(yes.id), self.entries(no.id));
                self.remember(id, None, entries);
                Estimate { cost: condition.plus(for_yes.union(*for_no)), result: Some(size) }
            }
            _ => {
                let own = self.of_standard(id, overload, target, args);
                Estimate { cost: own.cost.plus(sum), result: own.result }
            }
        }
    }

    fn of_standard(
        &mut self,
        id: NodeId,
        overload: &str,
        target: Option<&Seen<'c>>,
        args: &[Seen<'c>],
    ) -> Estimate {
        let size = |at: usize| args.get(at).map_or(Range::UNKNOWN, |arg| unknown(arg.size));
        let plain = |cost| Estimate { cost, result: None };
        match (overload, target) {
            ("string_format", Some(target)) => plain(unknown(target.size).scaled(TRAVERSAL)),
            ("string_to_bytes", _) => Estimate {
                cost: size(0).scaled(TRAVERSAL),
                // Upstream's product wraps.
                result: Some(Range { min: size(0).min, max: size(0).max.wrapping_mul(4) }),
            },
            ("bytes_to_string", _) => Estimate {
                cost: size(0).scaled(TRAVERSAL),
                result: Some(Range { min: size(0).min / 4, max: size(0).max }),
            },
            ("strings_quote", _) => Estimate {
                cost: size(0).scaled(TRAVERSAL),
                result: Some(Range {
                    min: size(0).min.wrapping_add(2),
                    max: size(0).max.wrapping_mul(2).wrapping_add(2),
                }),
            },
            ("starts_with_string" | "ends_with_string", _) => plain(size(0).scaled(TRAVERSAL)),
            ("in_list", _) => plain(size(1).scaled(1.0)),
            ("matches_string", Some(target)) => plain(matched(unknown(target.size), size(0))),
            ("contains_string", Some(target)) => {
                plain(unknown(target.size).scaled(TRAVERSAL).times(size(0).scaled(TRAVERSAL)))
            }
            ("add_string" | "add_bytes" | "add_list", _) => {
                let result = size(0).plus(size(1));
                if let [a, b] = args {
                    let entries = Entries::union(self.entries(a.id), self.entries(b.id));
                    self.remember(id, None, entries);
                }
                let cost = if overload == "add_list" { ONE } else { result.scaled(TRAVERSAL) };
                Estimate { cost, result: Some(result) }
            }
            (
                "less_string"
                | "less_equals_string"
                | "greater_string"
                | "greater_equals_string"
                | "less_bytes"
                | "less_equals_bytes"
                | "greater_bytes"
                | "greater_equals_bytes"
                | "equals"
                | "not_equals",
                _,
            ) => {
                let max = size(0).max.min(size(1).max);
                plain(Range { min: u64::from(max > 0), max }.scaled(TRAVERSAL))
            }
            _ => plain(ONE),
        }
    }

    /// How large a part is where Kubernetes' estimator looks: as it is known, or as it is given.
    fn asked(&self, seen: &Seen<'c>) -> Range {
        unknown(seen.size)
    }

    /// The items of a list that is at a path may be known.
    fn item_size(&self, list: &Seen<'c>) -> Option<(&'c Type, Range)> {
        let element = match list.type_ {
            Type::List(element) | Type::Optional(element) => &**element,
            Type::Map(both) => &both.0,
            _ => return None,
        };
        let path = list.path.clone().map(|path| extended(Some(path), &"@items".into()));
        let path = path.flatten().unwrap_or_default();
        Some((element, self.given.size(&path, element).unwrap_or(Range::UNKNOWN)))
    }

    fn of_kubernetes(
        &self,
        function: &str,
        overload: &str,
        target: Option<&Seen<'c>>,
        args: &[Seen<'c>],
    ) -> Option<Estimate> {
        let arg = |at: usize| args.get(at).map(|arg| self.asked(arg));
        let plain = |cost| Some(Estimate { cost, result: None });
        let on = target.map(|target| self.asked(target));
        match function {
            "check" => plain(Range::exactly(350_000)),
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => plain(ONE),
            "fieldSelector" | "labelSelector" => {
                let size = arg(0)?;
                plain(Range::exactly(10).plus(size.scaled(TRAVERSAL)).plus(size.scaled(0.5).scaled(50.0)))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let (target, size) = (target?, on?);
                plain(match self.item_size(target) {
                    Some((Type::String | Type::Bytes, items)) => {
                        size.times(ONE.plus(items.scaled(TRAVERSAL)))
                    }
                    Some(_) => size.times(ONE),
                    None => size.scaled(TRAVERSAL),
                })
            }
            "url" => Some(Estimate { cost: arg(0)?.scaled(TRAVERSAL), result: arg(0) }),
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                Some(Estimate { cost: on?.scaled(TRAVERSAL), result: on })
            }
            "replace" => Some(Estimate {
                cost: on?.scaled(2.0 * TRAVERSAL),
                result: Some(replaced(on?, arg(0)?, arg(1)?)),
            }),
            "split" => {
                let limit = args.get(1).and_then(|arg| self.int(arg.id));
                let max = limit.map_or(on?.max, |limit| limit as u64);
                Some(Estimate { cost: on?.scaled(2.0 * TRAVERSAL), result: Some(Range { min: 0, max }) })
            }
            "join" => {
                let list = on?;
                let mut size =
                    self.item_size(target?).map_or(Range::exactly(0), |(_, items)| list.times(items));
                if let Some(separator) = arg(0) {
                    let between = Range { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                    size = size.plus(separator.times(between));
                }
                Some(Estimate { cost: size.scaled(TRAVERSAL), result: Some(size) })
            }
            "find" | "findAll" => {
                Some(Estimate { cost: matched(on?, arg(0)?), result: Some(Range { min: 0, max: on?.max }) })
            }
            "ip" if overload == "cidr_ip" => plain(ONE),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                plain(arg(0)?.scaled(TRAVERSAL))
            }
            "ip.isCanonical" => plain(arg(0)?.scaled(2.0 * TRAVERSAL)),
            "containsIP" | "containsCIDR" => {
                let address = Range { min: 4, max: 16 };
                let mut cost = address.plus(address).scaled(TRAVERSAL);
                if function == "containsCIDR" {
                    cost = cost.plus(address.scaled(TRAVERSAL)).plus(ONE);
                }
                if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                    cost = cost.plus(arg(0)?.scaled(TRAVERSAL));
                }
                plain(cost)
            }
            "validate" => plain(arg(0)?.scaled(TRAVERSAL).scaled(MAX_FORMAT_PATTERN * PATTERN)),
            "_==_" => self.equality(args),
            _ => None,
        }
    }

    /// Kubernetes' own values are compared at once.
    fn equality(&self, args: &[Seen<'c>]) -> Option<Estimate> {
        let [left, right] = args else { return None };
        if left.type_ != right.type_ {
            return None;
        }
        let cost = match left.type_ {
            Type::Opaque("net.IP" | "net.CIDR") => ONE,
            Type::Object(name) => match &**name {
                "kubernetes.NamedFormat" => Range { min: 1, max: MAX_FORMAT }.scaled(TRAVERSAL),
                "kubernetes.URL" => {
                    let max = right.size.map_or(1, |size| size.max);
                    Range { min: 1, max }.scaled(TRAVERSAL)
                }
                "kubernetes.Quantity" | "kubernetes.Semver" => ONE,
                name if name.starts_with("kubernetes.authorization.") => ONE,
                _ => return None,
            },
            _ => return None,
        };
        Some(Estimate { cost, result: None })
    }

    fn of_extension(&self, overload: &str, target: Option<&Seen<'c>>, args: &[Seen<'c>]) -> Option<Estimate> {
        let list = |factor: f64, size: Range| {
            let cost = size.scaled(factor).plus(ONE).plus(Range::exactly(10));
            Some(Estimate { cost, result: Some(size) })
        };
        let on = target.map(|target| self.asked(target));
        let number = |at: usize, otherwise: u64| match args.get(at) {
            Some(arg) => self.int(arg.id).map_or(otherwise, |number| number.max(0) as u64),
            None => otherwise,
        };
        match overload {
            "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list" => {
                let [a, b] = args else { return None };
                let factor = if overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
                let cost = self.asked(a).times(self.asked(b)).scaled(factor).plus(ONE);
                Some(Estimate { cost, result: None })
            }
            "list_slice" => {
                // Upstream's difference wraps.
                let n_items = number(1, on?.max).wrapping_sub(number(0, 0));
                list(1.0, Range::exactly(n_items))
            }
            "lists_range" => list(1.0, Range::exactly(number(0, u64::MAX))),
            "list_reverse" => list(1.0, on?),
            "list_flatten" | "list_flatten_int" => {
                let depth = if args.is_empty() { 1 } else { number(0, u64::MAX) };
                list(depth as f64, on?)
            }
            "list_distinct" => list(2.0, on?.times(on?)),
            _ if overload.starts_with("list_") && overload.ends_with("_sort") => sorted(overload, on?),
            _ if overload.ends_with("_sortByAssociatedKeys") => sorted(overload, self.asked(args.first()?)),
            _ => None,
        }
    }

    fn int(&self, id: NodeId) -> Option<i64> {
        match self.checked.ast.node(id) {
            Node::Literal(Literal::Int(number)) => Some(*number),
            _ => None,
        }
    }
}

fn unknown(size: Option<Range>) -> Range {
    size.unwrap_or(Range::UNKNOWN)
}

fn sorted(overload: &str, size: Range) -> Option<Estimate> {
    let are_texts = overload.starts_with("list_string_") || overload.starts_with("list_bytes_");
    let factor = if are_texts { 2.0 + TRAVERSAL } else { 2.0 };
    let size = size.times(size);
    let cost = size.scaled(factor).plus(ONE).plus(Range::exactly(10));
    Some(Estimate { cost, result: Some(size) })
}

fn matched(text: Range, pattern: Range) -> Range {
    text.plus(ONE).scaled(TRAVERSAL).times(pattern.scaled(PATTERN))
}

/// How large a text can be when parts of it are replaced.
fn replaced(text: Range, old: Range, new: Range) -> Range {
    let (mut count, mut kept) = (Range::exactly(0), Range::exactly(0));
    if old.min == 0 {
        (count.max, kept.max) = (text.max.saturating_add(1), text.max);
    } else if new.max <= old.min {
        kept.max = text.max;
    } else {
        count.max = quotient(text.max, old.min);
    }
    if old.max == 0 {
        (count.min, kept.min) = (text.min.saturating_add(1), text.min);
    } else if old.max <= new.min {
        kept.min = text.min;
    } else {
        count.min = quotient(text.min, old.max);
    }
    count.times(new).plus(kept)
}

fn quotient(n: u64, by: u64) -> u64 {
    (n as f64 / by as f64).ceil() as u64
}
