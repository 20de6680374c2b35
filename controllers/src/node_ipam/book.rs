//! Who has which range. Pure.
//!
//! The book follows what the nodes themselves say, so that it is whole again as soon as all nodes have been seen: nothing
//! is lost when this process ends. What it gives away counts as taken until the node says so too.
//!
//! # Guarantees
//! - No range is given to a node while another node, gone ones aside, says that it has it or a part of it.
//! - Giving one and taking one back costs the same however many nodes there are.
//! - What was freed a moment ago rests until everything else has been given away; a node that is made anew meanwhile gets
//!   its former range, so that its pods' network stands as it is.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::range::{Cidr, NodeRanges};

/// What a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// Given by this process; the node does not show it yet.
    Given(Cidr),
    Shown(Vec<Cidr>),
}

impl Held {
    fn cidrs(&self) -> &[Cidr] {
        match self {
            Held::Given(cidr) => std::slice::from_ref(cidr),
            Held::Shown(cidrs) => cidrs,
        }
    }
}

#[derive(Debug)]
pub(super) struct Book {
    ranges: NodeRanges,
    /// How many nodes have a range, by its index. More than one has it where somebody else has set it.
    n_holders: Vec<u32>,
    n_free: usize,
    /// Ranges to give next. One that was taken otherwise is passed over when its turn comes.
    next: VecDeque<usize>,
    /// Whether a range is in `next`, where it is at most once.
    is_next: Vec<bool>,
    nodes: HashMap<String, Held>,
    /// Who had a range that was freed, by its index, and the other way round.
    last_holder: HashMap<usize, String>,
    former: HashMap<String, usize>,
    /// Nodes for which there was none, in the order in which they asked.
    waiting: BTreeSet<(u64, String)>,
    tickets: HashMap<String, u64>,
    next_ticket: u64,
}

impl Book {
    pub(super) fn new(ranges: NodeRanges) -> Book {
        let n_ranges = ranges.len();
        let mut book = Book {
            n_holders: vec![0; n_ranges],
            n_free: n_ranges,
            next: (0..n_ranges).collect(),
            is_next: vec![true; n_ranges],
            nodes: HashMap::new(),
            last_holder: HashMap::new(),
            former: HashMap::new(),
            waiting: BTreeSet::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            ranges,
        };
        if let Some(reserved) = book.ranges.reserved() {
            book.occupy(&reserved);
        }
        book
    }

    /// Takes what a node says it has; `None` if the node is gone. Answers nodes that waited and may ask again.
    pub(super) fn follow(&mut self, node: &str, shown: Option<Vec<Cidr>>) -> Vec<String> {
        if shown.as_ref().is_none_or(|cidrs| !cidrs.is_empty()) {
            self.stop_waiting(node);
        }
        let held = self.nodes.get(node);
        let new = match shown {
            None => None,
            // It does not say so yet.
            Some(cidrs) if cidrs.is_empty() => held.filter(|held| matches!(held, Held::Given(_))).cloned(),
            Some(cidrs) => Some(Held::Shown(cidrs)),
        };
        if held == new.as_ref() {
            return Vec::new();
        }
        self.put(node, new);
        self.woken()
    }

    /// Takes a range for a node: the one that it was given already, if its Node does not show it yet. Without any, the node
    /// is among those that wait.
    pub(super) fn give(&mut self, node: &str) -> Option<Cidr> {
        match self.nodes.get(node) {
            Some(Held::Given(cidr)) => return Some(*cidr),
            // Its Node was read before it said so.
            Some(Held::Shown(cidrs)) => return cidrs.first().copied(),
            None => {}
        }
        let Some(cidr) = self.take_former(node).or_else(|| self.take_next()) else {
            self.wait(node);
            return None;
        };
        self.stop_waiting(node);
        self.put(node, Some(Held::Given(cidr)));
        Some(cidr)
    }

    /// Nodes that waited and may ask again: as many as there are ranges for. One that does not ask after all leaves its turn
    /// to the next, for which this is called again.
    pub(super) fn woken(&mut self) -> Vec<String> {
        let n_woken = self.n_free.min(self.waiting.len());
        let woken: Vec<String> =
            (0..n_woken).filter_map(|_| self.waiting.pop_first()).map(|(_, node)| node).collect();
        for node in &woken {
            self.tickets.remove(node);
        }
        woken
    }

    /// Other nodes that have a range of this one's too, or a part of it.
    pub(super) fn sharers(&self, node: &str) -> Vec<(&str, Cidr)> {
        let Some(held) = self.nodes.get(node) else { return Vec::new() };
        let is_shared =
            |cidr: &&Cidr| self.ranges.indexes(cidr).any(|at| self.n_holders.get(at).is_some_and(|n| *n > 1));
        let mut sharers = Vec::new();
        // All nodes are looked at only where there is something to find.
        for cidr in held.cidrs().iter().filter(is_shared) {
            for (other, theirs) in self.nodes.iter().filter(|(other, _)| *other != node) {
                if theirs.cidrs().iter().any(|c| c.overlaps(cidr)) {
                    sharers.push((other.as_str(), *cidr));
                }
            }
        }
        sharers.sort_unstable_by_key(|(other, _)| *other);
        sharers
    }

    fn put(&mut self, node: &str, new: Option<Held>) {
        let cidrs = |held: &Option<Held>| held.iter().flat_map(|h| h.cidrs().to_vec()).collect::<Vec<_>>();
        // What it keeps is never free in between.
        cidrs(&new).iter().for_each(|cidr| self.occupy(cidr));
        let is_gone = new.is_none();
        let old = match new {
            Some(new) => self.nodes.insert(node.to_owned(), new),
            None => self.nodes.remove(node),
        };
        if let (true, [cidr]) = (is_gone, cidrs(&old).as_slice()) {
            self.remember(node, cidr);
        }
        cidrs(&old).iter().for_each(|cidr| self.release(cidr));
    }

    fn occupy(&mut self, cidr: &Cidr) {
        for at in self.ranges.indexes(cidr) {
            let Some(n_holders) = self.n_holders.get_mut(at) else { continue };
            *n_holders += 1;
            if *n_holders == 1 {
                self.n_free -= 1;
            }
        }
    }

    fn release(&mut self, cidr: &Cidr) {
        for at in self.ranges.indexes(cidr) {
            let (Some(n_holders), Some(is_next)) = (self.n_holders.get_mut(at), self.is_next.get_mut(at))
            else {
                continue;
            };
            *n_holders = n_holders.saturating_sub(1);
            if *n_holders > 0 {
                continue;
            }
            self.n_free += 1;
            if !std::mem::replace(is_next, true) {
                self.next.push_back(at);
            }
        }
    }

    /// Each range that is passed over was put there once, when it was freed.
    fn take_next(&mut self) -> Option<Cidr> {
        if self.n_free == 0 {
            return None;
        }
        while let Some(at) = self.next.pop_front() {
            if let Some(is_next) = self.is_next.get_mut(at) {
                *is_next = false;
            }
            if self.n_holders.get(at) == Some(&0) {
                return self.ranges.at(at);
            }
        }
        None
    }

    /// Notes what a node had that is gone. Each range has one last holder, so there are no more notes than ranges.
    fn remember(&mut self, node: &str, cidr: &Cidr) {
        let indexes = self.ranges.indexes(cidr);
        let at = indexes.start;
        if self.ranges.at(at) != Some(*cidr) || indexes.is_empty() {
            return;
        }
        if let Some(before) = self.last_holder.insert(at, node.to_owned()) {
            self.former.remove(&before);
        }
        if let Some(other) = self.former.insert(node.to_owned(), at) {
            self.last_holder.remove(&other);
        }
    }

    fn take_former(&mut self, node: &str) -> Option<Cidr> {
        let at = self.former.remove(node)?;
        self.last_holder.remove(&at);
        self.ranges.at(at).filter(|_| self.n_holders.get(at) == Some(&0))
    }

    fn wait(&mut self, node: &str) {
        if self.tickets.contains_key(node) {
            return;
        }
        self.waiting.insert((self.next_ticket, node.to_owned()));
        self.tickets.insert(node.to_owned(), self.next_ticket);
        self.next_ticket += 1;
    }

    fn stop_waiting(&mut self, node: &str) {
        if let Some(ticket) = self.tickets.remove(node) {
            self.waiting.remove(&(ticket, node.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(cluster: &str, reserved: Option<&str>) -> Book {
        Book::new(NodeRanges::new(cluster, 24, reserved).unwrap())
    }

    fn cidrs(text: &[&str]) -> Option<Vec<Cidr>> {
        Some(text.iter().map(|t| Cidr::parse(t).unwrap()).collect())
    }

    fn give(book: &mut Book, node: &str) -> Option<String> {
        book.give(node).map(|cidr| cidr.to_string())
    }

    /// Gives `n_nodes` nodes ranges, each of which says so at once.
    fn give_all(book: &mut Book, n_nodes: usize) -> Vec<Cidr> {
        (0..n_nodes)
            .map(|n| {
                let (node, cidr) = (format!("n{n}"), book.give(&format!("n{n}")).expect("a range is left"));
                book.follow(&node, Some(vec![cidr]));
                cidr
            })
            .collect()
    }

    #[test]
    fn no_range_is_given_twice_and_the_last_one_is_given_too() {
        let mut book = book("10.244.0.0/22", None);
        let given: Vec<String> = give_all(&mut book, 4).iter().map(Cidr::to_string).collect();
        assert_eq!(given, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(give(&mut book, "late"), None);
        assert_eq!(book.follow("n1", None), ["late"]);
        assert_eq!(give(&mut book, "late").as_deref(), Some("10.244.1.0/24"));
    }

    #[test]
    fn a_node_that_does_not_show_its_range_yet_keeps_it() {
        let mut book = book("10.244.0.0/22", None);
        assert_eq!(give(&mut book, "a").as_deref(), Some("10.244.0.0/24"));
        assert!(book.follow("a", cidrs(&[])).is_empty());
        assert_eq!(
            give(&mut book, "a").as_deref(),
            Some("10.244.0.0/24"),
            "a write that failed is tried again"
        );
        assert_eq!(give(&mut book, "b").as_deref(), Some("10.244.1.0/24"));
        // Somebody else was faster.
        book.follow("a", cidrs(&["10.244.3.0/24"]));
        assert_eq!(book.n_free, 2);
        book.follow("a", None);
        book.follow("b", None);
        assert_eq!((book.n_free, book.nodes.len()), (4, 0));
    }

    #[test]
    fn what_nodes_already_have_is_taken_before_anything_is_given() {
        let mut book = book("10.244.0.0/22", Some("10.244.3.0/24"));
        book.follow("old", cidrs(&["10.244.0.0/24"]));
        book.follow("elsewhere", cidrs(&["192.168.0.0/24", "fd00::/64"]));
        book.follow("half", cidrs(&["10.244.1.128/25"]));
        assert_eq!(give(&mut book, "new").as_deref(), Some("10.244.2.0/24"));
        assert_eq!(give(&mut book, "late"), None);
    }

    #[test]
    fn nodes_that_wait_are_woken_when_a_range_is_freed_and_only_as_many_as_there_are_ranges() {
        let mut book = book("10.244.0.0/23", None);
        give_all(&mut book, 2);
        for node in ["x", "y", "z", "x"] {
            assert_eq!(give(&mut book, node), None);
            book.follow(node, cidrs(&[]));
        }
        assert!(book.follow("n0", cidrs(&["10.244.0.0/24"])).is_empty(), "a change frees nothing");
        assert!(book.woken().is_empty());
        book.follow("y", None);
        assert_eq!(book.follow("n0", None), ["x"]);
        assert!(book.follow("n0", None).is_empty(), "it is gone already");
        // Who has the turn is gone when it comes.
        book.follow("x", None);
        assert_eq!(book.woken(), ["z"], "the next has the turn");
        assert_eq!(give(&mut book, "z").as_deref(), Some("10.244.0.0/24"));
        assert!(book.waiting.is_empty() && book.tickets.is_empty());
    }

    #[test]
    fn a_range_that_two_nodes_have_is_free_when_neither_has_it() {
        let mut book = book("10.244.0.0/24", None);
        book.follow("first", cidrs(&["10.244.0.0/24"]));
        book.follow("second", cidrs(&["10.244.0.0/24"]));
        assert_eq!(give(&mut book, "third"), None);
        let shared = Cidr::parse("10.244.0.0/24").unwrap();
        assert_eq!(book.sharers("second"), [("first", shared)]);
        assert!(book.follow("first", None).is_empty(), "the other still has it");
        assert!(book.sharers("second").is_empty());
        assert_eq!(book.follow("second", None), ["third"]);
    }

    #[test]
    fn what_was_freed_a_moment_ago_rests_while_there_are_others() {
        let mut book = book("10.244.0.0/22", None);
        give_all(&mut book, 2);
        book.follow("n0", None);
        let given: Vec<_> = ["a", "b", "c"].iter().map(|node| give(&mut book, node).unwrap()).collect();
        assert_eq!(given, ["10.244.2.0/24", "10.244.3.0/24", "10.244.0.0/24"]);
    }

    /// Ranges that were passed over while nodes came and went.
    #[test]
    fn a_book_that_is_nearly_full_is_not_searched() {
        let mut book = book("10.0.0.0/8", None);
        let n_ranges = book.ranges.len();
        give_all(&mut book, n_ranges - 1);
        for n in 0..10_000 {
            book.follow(&format!("n{n}"), None);
            let node = format!("m{n}");
            let cidr = book.give(&node).expect("one is free");
            book.follow(&node, Some(vec![cidr]));
            assert!(book.next.len() <= 2, "{} ranges wait to be passed over", book.next.len());
        }
        // Somebody else's hand: taken and freed without ever having been given.
        let free = book.next.back().and_then(|at| book.ranges.at(*at)).expect("one is free");
        for _ in 0..10_000 {
            book.follow("x", Some(vec![free]));
            book.follow("x", None);
        }
        assert!(book.next.len() <= 2);
    }

    #[test]
    fn a_node_that_is_made_anew_gets_its_former_range_unless_another_has_it() {
        let mut book = book("10.244.0.0/22", None);
        give_all(&mut book, 2);
        for _ in 0..3 {
            book.follow("n0", None);
            assert_eq!(give(&mut book, "n0").as_deref(), Some("10.244.0.0/24"));
        }
        book.follow("n0", None);
        book.follow("thief", cidrs(&["10.244.0.0/24"]));
        assert_eq!(give(&mut book, "n0").as_deref(), Some("10.244.2.0/24"));
        for n in 0..1000 {
            let node = format!("x{n}");
            book.give(&node);
            book.follow(&node, None);
        }
        assert!(
            book.former.len() <= 4 && book.last_holder.len() <= 4,
            "notes of nodes that are gone pile up"
        );
    }
}
