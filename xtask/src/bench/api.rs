//! The API server, the scheduler and the DNS server, without a node on upstream's side.

use std::time::Duration;

use anyhow::Result;

use super::sides::{Both, Tools, Who, words};
use super::turns::Book;
use crate::peers::{NODE_IP, Part};

const API: [Part; 2] = [Part::Etcd, Part::ApiServer];
const TURN: Duration = Duration::from_secs(300);
const FILL: Duration = Duration::from_secs(600);
/// Where Skiff's nodes answer queries.
const SKIFF_DNS: &str = "10.43.0.10:53";
const DNS_SERVICES: usize = 1000;

pub(super) fn create(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &API)?;
    both.prepare(tools, TURN, &words("create --namespace warm --count 500"))?;
    book.case("5,000 pods of 3 kB, 64 clients", "creates_per_s");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!("create --namespace create-{pair} --count 5000 --clients 64"))
    });
    book.case("2,000 pods of 12 kB, 64 clients", "creates_per_s");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!("create --namespace large-{pair} --size large --count 2000 --clients 64"))
    });
    both.down()
}

pub(super) fn crd(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &API)?;
    both.prepare(tools, FILL, &words("custom-fill --namespace listed --count 10000"))?;
    book.case("2,000 creates by 32 clients, 4 lists of 10,000", "creates_per_s");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!(
            "custom --namespace custom-{pair} --count 2000 --listed listed --items 10000 --lists 4"
        ))
    });
    both.down()
}

pub(super) fn apply(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &API)?;
    book.case("4,000 applies of Deployments by four managers, 16 clients", "applies_per_s");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!("apply --namespace apply-{pair} --count 4000 --clients 16"))
    });
    both.down()
}

/// A store of its own for each size, so that neither sees the other's pods.
pub(super) fn list(tools: &Tools, book: &mut Book) -> Result<()> {
    for (text, pods, lists) in [("10,000", 10_000, 10), ("50,000", 50_000, 4)] {
        let both = Both::up(tools, &API)?;
        book.prepared(both.try_prepare(
            tools,
            FILL,
            &words(&format!("create --namespace listed --count {pods} --clients 64")),
        ));
        book.case(&format!("{text} pods, {lists} lists a turn"), "list_p50_ms");
        book.alternate(tools, &both.sides(), TURN, |_, _| {
            words(&format!("list --namespace listed --pods {pods} --count {lists}"))
        });
        both.down()?;
    }
    Ok(())
}

pub(super) fn watch(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &API)?;
    book.case("1,000 watchers on connections of their own", "paced_write_to_event_p50_ms");
    book.alternate(tools, &both.sides(), TURN, |_, pair| {
        words(&format!("watch --namespace watch-{pair} --watchers 1000 --writes 20 --burst 100"))
    });
    both.down()
}

pub(super) fn access(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &API)?;
    for (text, bindings) in [("10", 10), ("10,000", 10_000)] {
        book.case(&format!("{text} bindings of others"), "reads_per_s");
        book.alternate(tools, &both.sides(), FILL, |_, pair| {
            words(&format!("access --namespace access-{bindings}-{pair} --bindings {bindings}"))
        });
    }
    both.down()
}

pub(super) fn scheduler(tools: &Tools, book: &mut Book) -> Result<()> {
    for (text, nodes) in [("1,000", 1000), ("5,000", 5000)] {
        let both = Both::up(tools, &[Part::Etcd, Part::ApiServer, Part::Scheduler])?;
        book.prepared(both.try_prepare(tools, FILL, &words(&format!("nodes --count {nodes}"))));
        for (placement, pods) in [("basic", 1000), ("spread", 500), ("affinity", 500), ("anti-affinity", 300)]
        {
            book.case(&format!("{text} nodes, {placement}, {pods} pods"), "pods_per_s");
            book.alternate(tools, &both.sides(), TURN, |_, pair| {
                words(&format!(
                    "schedule --namespace {placement}-{pair} --placement {placement} --count {pods}"
                ))
            });
        }
        both.down()?;
    }
    Ok(())
}

pub(super) fn dns(tools: &Tools, book: &mut Book) -> Result<()> {
    let both = Both::up(tools, &[Part::Etcd, Part::ApiServer, Part::Dns])?;
    both.prepare(tools, FILL, &words(&format!("proxy-fill --namespace named --services {DNS_SERVICES}")))?;
    book.case("A records of 1,000 Services, 32 clients", "queries_per_s");
    book.alternate(tools, &both.sides(), TURN, |side, _| {
        let address = match side.who {
            Who::Skiff => SKIFF_DNS.to_owned(),
            Who::Upstream => format!("{NODE_IP}:53"),
        };
        words(&format!(
            "dns --namespace named --services {DNS_SERVICES} --address {address} --clients 32 --seconds 5"
        ))
    });
    both.down()
}
