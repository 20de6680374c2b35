//! What a request costs, in seats.
//!
//! Source: upstream's `flowcontrol/request`, with its numbers.

use std::time::Duration;

use skiff_flow::{Classified, Work};

use crate::cache::Caches;
use crate::live::Table;
use crate::request::{Query, RequestInfo};

/// A list takes a seat for so many bytes, and no more than for so many.
const BYTES_PER_SEAT: usize = 100_000;
const MAX_LIST_BYTES: usize = 1_000_000;
/// A change takes a seat for so many watchers, for so long.
const WATCHES_PER_SEAT: usize = 10;
const PER_CHANGE: Duration = Duration::from_millis(5);

pub(crate) fn work_of(
    caches: &Caches,
    table: &Table,
    info: &RequestInfo,
    query: &Query,
    classified: &Classified,
) -> Work {
    let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
    let Some(cache) = kind.filter(|_| info.is_resource).and_then(|kind| caches.of(kind).ok()) else {
        return Work::ONE;
    };
    match info.verb.as_str() {
        "list" if info.name.is_empty() => read(cache.size(), query, classified.max_seats()),
        "watch" if info.name.is_empty() && begins_with_all(query) => {
            read(cache.size(), query, classified.max_seats())
        }
        "create" | "update" | "patch" | "delete" | "deletecollection" if info.subresource != "token" => {
            change(cache.watching(), classified.max_seats())
        }
        _ => Work::ONE,
    }
}

fn begins_with_all(query: &Query) -> bool {
    matches!(query.non_empty("resourceVersion"), None | Some("0")) || query.flag("sendInitialEvents")
}

fn read((objects, bytes_each): (usize, usize), query: &Query, max_seats: u32) -> Work {
    let limit = query.non_empty("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let objects = limit.map_or(objects, |limit: usize| limit.min(objects));
    let seats = objects.saturating_mul(bytes_each).min(MAX_LIST_BYTES).div_ceil(BYTES_PER_SEAT);
    let seats = u32::try_from(seats).unwrap_or(max_seats).clamp(1, max_seats.max(1));
    Work { seats, ..Work::ONE }
}

fn change(watching: usize, max_seats: u32) -> Work {
    if watching < WATCHES_PER_SEAT {
        return Work::ONE;
    }
    let wanted = u32::try_from(watching.div_ceil(WATCHES_PER_SEAT)).unwrap_or(u32::MAX);
    let final_seats = wanted.min(max_seats.max(1));
    // The same work, narrower and longer.
    Work { seats: 1, final_seats, lingers: PER_CHANGE * wanted / final_seats }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_as_wide_as_what_it_reads() {
        let seats = |objects, bytes, query: &str| read((objects, bytes), &Query::parse(query), 9).seats;
        assert_eq!(seats(0, 0, ""), 1);
        assert_eq!(seats(100, 3000, ""), 3);
        assert_eq!(seats(100_000, 3000, ""), 9, "no more than its level allows");
        assert_eq!(seats(100_000, 3000, "limit=50"), 2);
        assert_eq!(seats(100, 3000, "limit=0"), 3);
    }

    #[test]
    fn a_change_is_as_wide_as_those_who_are_told_of_it() {
        assert_eq!(change(9, 10), Work::ONE);
        let work = change(25, 10);
        assert_eq!((work.seats, work.final_seats, work.lingers), (1, 3, PER_CHANGE));
        let work = change(1000, 10);
        assert_eq!((work.final_seats, work.lingers), (10, PER_CHANGE * 10));
    }
}
