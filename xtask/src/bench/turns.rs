//! Turns of both sides, and what came of them.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::sides::{Side, Tools, Who};
use super::{MIN_PAIRS, page, store};

/// What one bench has measured so far.
pub(super) struct Book {
    bench: String,
    pub(super) pairs: usize,
    start: Instant,
    cases: Vec<Value>,
    lines: Vec<Value>,
    /// Sides that could not be prepared for what follows, and why.
    unable: Vec<(Who, String)>,
    has_turns: bool,
    /// Why this run is printed and not stored.
    unfit: Option<String>,
}

impl Book {
    pub(super) fn new(bench: &str, pairs: usize) -> Book {
        Book {
            bench: bench.into(),
            pairs,
            start: Instant::now(),
            cases: Vec::new(),
            lines: Vec::new(),
            unable: Vec::new(),
            has_turns: true,
            unfit: (pairs < MIN_PAIRS).then(|| format!("{pairs} pairs are less than {MIN_PAIRS}")),
        }
    }

    /// Begins a case; its headline is the figure that the chart shows.
    pub(super) fn case(&mut self, name: &str, headline: &str) {
        self.cases.push(json!({"name": name, "headline": headline}));
    }

    fn current(&self) -> Value {
        self.cases.last().map_or(Value::Null, |case| case["name"].clone())
    }

    pub(super) fn note(&mut self, who: Who, pair: usize, answer: &Value) {
        let mut line =
            json!({"case": self.current(), "side": who.text(), "pair": pair, "values": answer["values"]});
        if answer["parts"].is_object() {
            line["parts"] = answer["parts"].clone();
        }
        eprintln!("{line}");
        self.lines.push(line);
    }

    /// The whole report of a run of one side alone, without turns.
    pub(super) fn keep(&mut self, who: Who, report: Value, unfit: Option<String>) {
        self.lines.push(json!({"side": who.text(), "report": report}));
        (self.has_turns, self.unfit) = (false, unfit);
    }

    /// What a side cannot do is a result too.
    pub(super) fn refuse(&mut self, who: Who, why: &anyhow::Error) {
        let why = format!("{why:#}");
        eprintln!("{} cannot: {why}", who.text());
        self.lines.push(json!({"case": self.current(), "side": who.text(), "refused": why}));
    }

    /// From here on, sides whose preparation failed have no turns.
    pub(super) fn prepared(&mut self, outcome: [(Who, Result<()>); 2]) {
        let failed = outcome.into_iter().filter_map(|(who, outcome)| Some((who, outcome.err()?)));
        self.unable = failed.map(|(who, error)| (who, format!("{error:#}"))).collect();
    }

    /// Has each turn of each side taken, one after the other. A side that fails has no more turns.
    pub(super) fn take(&mut self, whos: [Who; 2], mut turn: impl FnMut(Who, usize) -> Result<Value>) {
        let mut out = whos.map(|who| self.unable.iter().any(|(unable, _)| *unable == who));
        for (who, why) in self.unable.clone() {
            self.refuse(who, &anyhow::anyhow!(why));
        }
        for pair in 1..=self.pairs {
            for (who, out) in whos.iter().zip(&mut out) {
                if *out {
                    continue;
                }
                match turn(*who, pair) {
                    Ok(answer) => self.note(*who, pair, &answer),
                    Err(error) => {
                        self.refuse(*who, &error);
                        *out = true;
                    }
                }
            }
        }
    }

    /// Turns of the load tool alone.
    pub(super) fn alternate(
        &mut self,
        tools: &Tools,
        sides: &[Side; 2],
        timeout: Duration,
        arguments: impl Fn(&Side, usize) -> Vec<String>,
    ) {
        let of = |who| &sides[usize::from(sides[0].who != who)];
        self.take([Who::Skiff, Who::Upstream], |who, pair| {
            let side = of(who);
            side.ask(tools, timeout, &arguments(side, pair))
        });
    }

    /// Stores what was measured, and draws the page anew.
    pub(super) fn finish(self, tools: &Tools) -> Result<()> {
        // Of the other side's programs, where there is one.
        let versions = if self.has_turns { tools.programs.versions()? } else { Vec::new() };
        let versions: Map<String, Value> =
            versions.into_iter().map(|(name, version)| (name, version.into())).collect();
        let head = json!({
            "bench": self.bench, "date": store::date()?, "commit": store::commit(),
            "pairs": self.has_turns.then_some(self.pairs),
            "seconds": self.start.elapsed().as_secs(), "machine": store::machine(), "versions": versions,
            "cases": self.cases,
        });
        let lines: Vec<Value> = [head].into_iter().chain(self.lines).collect();
        print!("{}", page::section(&lines)?);
        if let Some(why) = self.unfit {
            eprintln!("not stored: {why}");
            return Ok(());
        }
        store::write(&self.bench, &lines)?;
        page::render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_and_one_that_fails_has_no_more_while_the_other_goes_on() {
        let mut book = Book::new("x", 3);
        book.case("c", "f");
        let mut taken = Vec::new();
        book.take([Who::Skiff, Who::Upstream], |who, pair| {
            taken.push((who.text(), pair));
            match (who, pair) {
                (Who::Skiff, 2) => anyhow::bail!("not built"),
                _ => Ok(json!({"values": {"f": 1}})),
            }
        });
        let expected = [("skiff", 1), ("upstream", 1), ("skiff", 2), ("upstream", 2), ("upstream", 3)];
        assert_eq!(taken, expected);
        let refused: Vec<&Value> = book.lines.iter().filter(|line| line["refused"].is_string()).collect();
        assert_eq!(refused, [&json!({"case": "c", "side": "skiff", "refused": "not built"})]);
        assert_eq!(book.lines.len(), 5);
    }

    #[test]
    fn a_side_that_could_not_be_prepared_has_no_turns_until_the_next_preparation() {
        let mut book = Book::new("x", 1);
        let turns = |book: &mut Book| {
            let mut taken = Vec::new();
            book.take([Who::Skiff, Who::Upstream], |who, _| {
                taken.push(who);
                Ok(json!({"values": {}}))
            });
            taken
        };
        book.prepared([(Who::Skiff, Err(anyhow::anyhow!("too many"))), (Who::Upstream, Ok(()))]);
        assert_eq!(turns(&mut book), [Who::Upstream]);
        assert_eq!(book.lines[0]["refused"], "too many");
        book.prepared([(Who::Skiff, Ok(())), (Who::Upstream, Ok(()))]);
        assert_eq!(turns(&mut book), [Who::Skiff, Who::Upstream]);
    }
}
