//! `cargo xtask`: what a developer of Skiff runs.

mod bench;
mod cel;
mod check;
mod clients;
mod cluster;
mod codegen;
mod command;
mod conformance;
mod differ;
mod drills;
mod fixtures;
mod guest;
mod kubectl;
mod peers;
mod reliability;
mod setup;
mod structure;
mod test;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What a developer of Skiff runs")]
enum Task {
    /// Formatting, lints, crate arrows, licences, banned crates
    Check,
    /// Install what is missing on this machine
    Setup,
    /// Build the images of the samples and tests, and serve them locally
    Fixtures {
        #[arg(long)]
        stop: bool,
    },
    /// Start a throw-away cluster and run samples/mixed on it
    Up {
        /// Use these registries instead of the local fixtures
        #[arg(long)]
        registries: Option<PathBuf>,
    },
    /// Remove the throw-away cluster and show that nothing is left
    Down,
    /// Run all tests
    Test,
    /// Build the stock clients that tests drive Skiff with, and say where they are
    Clients,
    /// Run upstream's conformance tests against a throw-away cluster
    Conformance(conformance::Options),
    /// Run upstream's command suite of kubectl against the API server and the controllers
    Kubectl(kubectl::Options),
    /// Derive anew what comes of upstream's sources: the schema, and what tests compare with
    Codegen(codegen::Options),
    /// Record anew what upstream's cel-go says to cel/tests/cases.txt
    Cel,
    /// Compare the API server's answers, or what comes of images, with upstream's; may write docs/differences.md
    Differ(differ::Options),
    /// Give everything that reads what others write hostile input, for as long as is said
    Fuzz {
        /// Names of targets, `--seconds`, `--seed`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure Skiff beside upstream's own programs; writes docs/benchmarks.md
    Bench(bench::Options),
    /// Bring about a fault again and again and count what it costs; writes its section of docs/reliability.md
    Drills(drills::Options),
    /// Boot a Debian guest and judge a list of claims in it; writes docs/platforms.md
    Guest(guest::Options),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Check => check::run(),
        Task::Setup => setup::run(),
        Task::Fixtures { stop: true } => fixtures::stop(),
        Task::Fixtures { stop: false } => fixtures::run().map(drop),
        Task::Up { registries } => cluster::up(registries),
        Task::Down => cluster::down(),
        Task::Test => test::run_all(),
        Task::Clients => clients::build().map(|folder| println!("{}", folder.display())),
        Task::Conformance(options) => conformance::run(options),
        Task::Kubectl(options) => kubectl::run(&options),
        Task::Codegen(options) => codegen::run(&options),
        Task::Cel => cel::record(),
        Task::Differ(options) => differ::run(&options),
        Task::Fuzz { arguments } => test::fuzz(&arguments),
        Task::Bench(options) => bench::run(&options),
        Task::Drills(options) => drills::run(&options),
        Task::Guest(options) => guest::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn every_command_can_be_parsed() {
        super::Task::command().debug_assert();
    }
}
