//! Inputs made of others: bytes changed, cut out, repeated, put together, and words put in that mean something to somebody.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// No input is longer.
const MAX_INPUT_BYTES: usize = 32 << 10;
/// Changes of one input.
const MAX_CHANGES: usize = 6;
/// How deep a part may be put into brackets at once.
const MAX_NESTING: usize = 600;

/// Words of more than one target.
const WORDS: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "-9223372036854775808",
    "18446744073709551616",
    "0.1",
    "\"\"",
    "{}",
    "[]",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\u{fffd}",
    "\u{202e}",
    "\"$patch\":\"delete\"",
    "\"$patch\":\"replace\"",
    "\"$setElementOrder/containers\":[{}]",
    "\"$deleteFromPrimitiveList/finalizers\":[\"a\"]",
    "\"$retainKeys\":[\"a\"]",
    "\"op\":\"copy\",\"from\":\"\",\"path\":\"/a\"",
    "/-",
    "~0",
    "~1",
    "/01",
    "&a [*a]",
    "<<: *a",
    "!!binary ",
    "---\n",
    "...\n",
    "? a\n: b",
    "|+\n",
    "%41",
    "%",
    "%2F",
    "..",
    "//",
    "!=",
    " notin ()",
    ",",
    "()",
    "k:{\"name\":\"a\"}",
    "v:1",
    "i:-1",
    "f:spec",
    ".",
    "*",
    "9999999999999999999999Ki",
    "1e3Mi",
    "[].map(x, x)",
    "?:",
    "'a'.matches('(a+)+$')",
    "size(",
    "oldSelf",
    "0x7fffffffffffffff",
    "cel.bind(x, x, x)",
];

/// Makes inputs, always the same ones of one seed and corpus.
pub struct Mutator<'c> {
    random: StdRng,
    corpus: &'c [Vec<u8>],
}

impl<'c> Mutator<'c> {
    pub fn new(seed: u64, corpus: &'c [Vec<u8>]) -> Mutator<'c> {
        Mutator { random: StdRng::seed_from_u64(seed), corpus }
    }

    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.corpus.choose(&mut self.random).cloned().unwrap_or_default();
        for _ in 0..self.random.random_range(1..=MAX_CHANGES) {
            self.change(&mut input);
            input.truncate(MAX_INPUT_BYTES);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.place(input.len());
        match self.random.random_range(0..9) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
            1 => input.insert(at, self.random.random()),
            2 => _ = input.drain(at..self.end(at, input.len())),
            3 => {
                let part = input[at..self.end(at, input.len())].to_vec();
                let to = self.place(input.len());
                input.splice(to..to, part);
            }
            4 => {
                let other = self.corpus.choose(&mut self.random).cloned().unwrap_or_default();
                let from = self.place(other.len());
                let part = &other[from..self.end(from, other.len())];
                let end = self.end(at, input.len());
                input.splice(at..end, part.iter().copied());
            }
            5 | 6 => {
                let word = WORDS.choose(&mut self.random).copied().unwrap_or_default();
                let end = if self.random.random() { at } else { self.end(at, input.len()) };
                input.splice(at..end, word.bytes());
            }
            7 => self.number(input),
            _ => self.nest(input, at),
        }
    }

    fn place(&mut self, len: usize) -> usize {
        self.random.random_range(0..=len)
    }

    /// Most parts are short.
    fn end(&mut self, from: usize, len: usize) -> usize {
        let most = if self.random.random_range(0..8) == 0 { len - from } else { (len - from).min(24) };
        from + self.random.random_range(0..=most)
    }

    /// Another number in place of one that is there.
    fn number(&mut self, input: &mut Vec<u8>) {
        let numbers: Vec<usize> = (0..input.len()).filter(|at| input[*at].is_ascii_digit()).collect();
        let Some(&at) = numbers.choose(&mut self.random) else { return };
        let end = (at..input.len()).find(|at| !input[*at].is_ascii_digit()).unwrap_or(input.len());
        let edge = [0, 1, -1, i64::MAX, i64::MIN, i64::from(i32::MAX) + 1, 65536, 1 << 53];
        let number = edge.choose(&mut self.random).copied().unwrap_or_default();
        input.splice(at..end, number.to_string().into_bytes());
    }

    fn nest(&mut self, input: &mut Vec<u8>, at: usize) {
        let (open, close) = *[("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("- ", "")]
            .choose(&mut self.random)
            .unwrap_or(&("", ""));
        let times = self.random.random_range(1..=MAX_NESTING);
        let end = self.end(at, input.len());
        input.splice(end..end, close.repeat(times).into_bytes());
        input.splice(at..at, open.repeat(times).into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_inputs_and_another_others() {
        let corpus = [b"{\"a\": 1}".to_vec(), b"b in (c, d)".to_vec()];
        let made = |seed| {
            let mut mutator = Mutator::new(seed, &corpus);
            (0..100).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        assert!(made(3).iter().all(|input| input.len() <= MAX_INPUT_BYTES));
        let changed = made(4).iter().filter(|input| !corpus.contains(input)).count();
        assert!(changed > 90, "{changed} of 100 differ from the corpus");
    }
}
