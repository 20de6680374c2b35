//! `skiff certs`: which certificates a machine goes by, and a new one for the cluster's authority.
//!
//! Most are kept from ending by whoever uses them. What a person has to look after is the authority, and a clock that was wrong when
//! something was signed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};
use x509_parser::pem::Pem;

use crate::agent;
use crate::identity::{self, Validity};
use crate::layout::Layout;
use crate::pki::{self, Clock};

/// Nodes renew theirs when a tenth of the year is left at the latest: what is closer to its end is not being renewed.
const WITHIN_DAYS: u16 = 30;

#[derive(Subcommand, Debug)]
pub(crate) enum CertsCommand {
    /// Print the certificates of this machine and how long they are good; fails if one is not good now, or ends soon
    Check {
        /// How many days before its end a certificate counts as ending soon
        #[arg(long, default_value_t = WITHIN_DAYS)]
        within_days: u16,
    },
    /// Give the cluster's authority, on the server's machine, a new certificate for ten years, with the key that it has
    RotateCa {
        /// Another key as well (refused: nodes go by the one that there is)
        #[arg(long)]
        new_key: bool,
        /// Though this machine's clock shows a time before this program was built
        #[arg(long)]
        accept_clock: bool,
    },
}

/// Runs it for the nodes that lie in these directories; answers whether all is well.
pub(crate) fn run(command: &CertsCommand, layouts: &[Layout]) -> Result<bool> {
    match command {
        CertsCommand::Check { within_days } => {
            check(layouts, SignedDuration::from_hours(24 * i64::from(*within_days)), Timestamp::now())
        }
        CertsCommand::RotateCa { new_key, accept_clock } => {
            let layout = layouts.first().context("there is no data directory to look in")?;
            rotate(layout, *new_key, Clock::of(*accept_clock)).map(|()| true)
        }
    }
}

fn rotate(layout: &Layout, new_key: bool, clock: Clock) -> Result<()> {
    if new_key {
        bail!(
            "--new-key is not built: nodes, tokens and kubeconfigs go by the key that there is, and those that are off while it \
             changes could not come back. Without it the authority gets a new certificate for that key; if somebody else has \
             the key, make a new cluster"
        );
    }
    let directory = layout.pki();
    let last = pki::rotate(&directory, clock)?;
    let now = read(&pki::authority_file(&directory))?;
    let until = now.first().map(|certificate| certificate.validity.until).unwrap_or_default();
    println!("The cluster's authority has a new certificate, good until {until:.0}; its key is the same.");
    println!("What it signed before stays good. The certificate before is kept in {}.", last.display());
    println!("A server that runs takes it up within ten seconds, nodes within ten minutes.");
    Ok(())
}

/// One certificate, by what it says of itself.
#[derive(Debug)]
struct Certificate {
    subject: String,
    validity: Validity,
}

/// What was found where a certificate is kept.
#[derive(Debug)]
struct Found {
    whose: String,
    certificate: Result<Certificate>,
    /// Whether anything goes by it: the one before the last is only kept.
    counts: bool,
}

/// How a certificate's time lies to the clock's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Good,
    EndsSoon,
    NotYet,
    Ended,
}

impl Time {
    fn of(validity: Validity, now: Timestamp, within: SignedDuration) -> Time {
        if now < validity.from {
            Time::NotYet
        } else if now >= validity.until {
            Time::Ended
        } else if validity.until.duration_since(now) < within {
            Time::EndsSoon
        } else {
            Time::Good
        }
    }

    fn text(self) -> &'static str {
        match self {
            Time::Good => "good",
            Time::EndsSoon => "ends soon",
            Time::NotYet => "not good yet",
            Time::Ended => "has ended",
        }
    }
}

fn check(layouts: &[Layout], within: SignedDuration, now: Timestamp) -> Result<bool> {
    let mut found = Vec::new();
    for layout in layouts {
        found.extend(of_layout(layout)?);
    }
    let places: Vec<String> = layouts.iter().map(|layout| layout.data_dir.display().to_string()).collect();
    ensure!(
        !found.is_empty(),
        "no certificate is kept in {}: is it the data directory (--data-dir) of a server or an agent?",
        places.join(" or ")
    );
    println!("This machine's clock shows {now:.0}.");
    let mut is_well = true;
    if let Some(fault) = pki::clock_fault(now) {
        println!("That cannot be right: {fault}");
        is_well = false;
    }
    let (rows, are_well) = table(&found, within, now);
    print_rows(&rows);
    Ok(is_well && are_well)
}

/// A line for each with its head, and whether all that count are good and stay so.
fn table(found: &[Found], within: SignedDuration, now: Timestamp) -> (Vec<[String; 6]>, bool) {
    let head = ["CERTIFICATE", "SUBJECT", "NOT BEFORE", "NOT AFTER", "DAYS LEFT", "STATE"];
    let (mut rows, mut is_well) = (vec![head.map(str::to_owned)], true);
    for Found { whose, certificate, counts } in found {
        let row = match certificate {
            Ok(Certificate { subject, validity }) => {
                let time = Time::of(*validity, now, within);
                is_well &= time == Time::Good || !counts;
                let left = validity.until.duration_since(now).as_hours().div_euclid(24);
                let (from, until) = (format!("{:.0}", validity.from), format!("{:.0}", validity.until));
                [whose.clone(), subject.clone(), from, until, left.to_string(), time.text().to_owned()]
            }
            Err(error) => {
                is_well &= !counts;
                let none = String::new;
                [whose.clone(), none(), none(), none(), none(), format!("unreadable: {error:#}")]
            }
        };
        rows.push(row);
    }
    (rows, is_well)
}

fn print_rows(rows: &[[String; 6]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..5).map(width).collect();
    for [whose, subject, from, until, left, state] in rows {
        println!(
            "{whose:<w0$}  {subject:<w1$}  {from:<w2$}  {until:<w3$}  {left:>w4$}  {state}",
            w0 = widths[0],
            w1 = widths[1],
            w2 = widths[2],
            w3 = widths[3],
            w4 = widths[4],
        );
    }
}

/// All that are kept in a node's data directory.
fn of_layout(layout: &Layout) -> Result<Vec<Found>> {
    let (pki, agent) = (layout.pki(), layout.agent());
    let mut found = Vec::new();
    for ((now, before), whose) in
        pki::authority_files(&pki).iter().zip(["authority", "front proxy authority"])
    {
        add(&mut found, whose, now, true);
        add(&mut found, &format!("{whose}, the one before"), before, false);
    }
    let mut shown = files(&pki::shown_directory(&pki))?;
    shown.sort();
    for path in shown {
        let whose = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        add(&mut found, &format!("server: {whose}"), &path, true);
    }
    if agent.join(agent::MEMBERSHIP).exists() {
        add(&mut found, "node: the cluster's authority", &agent.join("ca.crt"), true);
        for (whose, name) in [("client", "client"), ("node API", "serving")] {
            let path = agent.join(format!("{name}.pem"));
            add(&mut found, &format!("node: {whose}"), &path, true);
            add(&mut found, &format!("node: {whose}, the one before"), &identity::last(&path), false);
        }
    }
    Ok(found)
}

/// The files of a directory, which may be missing.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing = || format!("listing {}", directory.display());
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.with_context(listing)?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(listing),
    }
}

/// Adds what is in a file, if it is there.
fn add(found: &mut Vec<Found>, whose: &str, path: &Path, counts: bool) {
    if !path.exists() {
        return;
    }
    let whose = whose.to_owned();
    match read(path) {
        Ok(all) => found.extend(all.into_iter().map(|one| Found {
            whose: whose.clone(),
            certificate: Ok(one),
            counts,
        })),
        Err(error) => found.push(Found { whose, certificate: Err(error), counts }),
    }
}

/// The certificates of a file, which may hold a key as well.
fn read(path: &Path) -> Result<Vec<Certificate>> {
    let reading = || format!("reading {}", path.display());
    let bytes = fs::read(path).with_context(reading)?;
    let mut all = Vec::new();
    for block in Pem::iter_from_buffer(&bytes) {
        let block = block.context("it is damaged").with_context(reading)?;
        if block.label != "CERTIFICATE" {
            continue;
        }
        let certificate = block.parse_x509().context("a certificate is damaged").with_context(reading)?;
        let subject = certificate.subject().to_string();
        all.push(Certificate {
            subject,
            validity: identity::validity_of(&certificate).with_context(reading)?,
        });
    }
    ensure!(!all.is_empty(), "{} holds no certificate", path.display());
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Pki, write_private};

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    #[test]
    fn a_certificate_is_told_by_the_clock_to_be_good_or_near_its_end_or_outside_its_time() {
        let validity = Validity { from: at(100), until: at(200) };
        let time = |day| Time::of(validity, at(day), SignedDuration::from_hours(24 * 30));
        let told = [99, 100, 169, 170, 171, 199, 200, 600].map(time);
        use Time::{Ended, EndsSoon, Good, NotYet};
        assert_eq!(told, [NotYet, Good, Good, Good, EndsSoon, EndsSoon, Ended, Ended]);
    }

    fn layout(directory: &Path) -> Layout {
        let mut layout = Layout::of_cluster("test", Path::new("/none"));
        layout.data_dir = directory.to_owned();
        layout
    }

    /// The names of what is found, and whether all is well so many days from now.
    fn judged(layout: &Layout, in_days: i64) -> (Vec<String>, bool) {
        let found = of_layout(layout).unwrap();
        let now = Timestamp::now() + SignedDuration::from_hours(24 * in_days);
        let (rows, is_well) = table(&found, SignedDuration::from_hours(24 * 30), now);
        (rows.into_iter().skip(1).map(|[whose, ..]| whose).collect(), is_well)
    }

    #[test]
    fn a_servers_certificates_are_found_and_one_that_ends_within_thirty_days_is_not_well() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path());
        assert!(
            check(std::slice::from_ref(&layout), SignedDuration::ZERO, Timestamp::now()).is_err(),
            "there is nothing"
        );
        let pki = Pki::open(&layout.pki(), Clock::Checked).unwrap();
        pki.shows("administrator", &pki.administrator().unwrap()).unwrap();
        pki::rotate(&layout.pki(), Clock::Checked).unwrap();
        let names = [
            "authority",
            "authority, the one before",
            "front proxy authority",
            "front proxy authority, the one before",
            "server: administrator",
        ];
        assert_eq!(judged(&layout, 0), (names.map(str::to_owned).to_vec(), true));
        assert!(judged(&layout, 334).1);
        assert!(!judged(&layout, 336).1, "it ends soon");
        assert!(!judged(&layout, 400).1, "it has ended");
        assert!(!judged(&layout, -2000).1, "it is not good yet");
    }

    #[test]
    fn an_agents_certificates_are_found_and_of_two_only_the_newest_counts() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path());
        let pki = Pki::open(&directory.path().join("elsewhere"), Clock::Checked).unwrap();
        fs::create_dir_all(layout.agent()).unwrap();
        let pair = pki.client("system:node:a", Some("system:nodes")).unwrap();
        let pem = format!("{}{}", pair.certificate_pem, pair.key_pem);
        let file = |name: &str| layout.agent().join(name);
        write_private(&file("ca.crt"), &pki.ca_pem()).unwrap();
        write_private(&file("client.pem"), &pem).unwrap();
        write_private(&file("client.last.pem"), "no certificate").unwrap();
        assert_eq!(of_layout(&layout).unwrap().len(), 0, "it has not joined");
        write_private(&file(agent::MEMBERSHIP), "{}").unwrap();
        let names = ["node: the cluster's authority", "node: client", "node: client, the one before"];
        assert_eq!(judged(&layout, 0), (names.map(str::to_owned).to_vec(), true));
        write_private(&file("client.pem"), "no certificate").unwrap();
        assert!(!judged(&layout, 0).1, "it cannot be read");
    }

    #[test]
    fn another_key_for_the_authority_is_refused_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path());
        let before = Pki::open(&layout.pki(), Clock::Checked).unwrap().ca_pem();
        let error = rotate(&layout, true, Clock::Checked).unwrap_err().to_string();
        assert!(error.contains("--new-key is not built"), "{error}");
        assert_eq!(fs::read_to_string(pki::authority_file(&layout.pki())).unwrap(), before);
        rotate(&layout, false, Clock::Checked).unwrap();
        assert_ne!(fs::read_to_string(pki::authority_file(&layout.pki())).unwrap(), before);
    }
}
