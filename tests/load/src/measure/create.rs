//! Durable creates from many clients at once.

use anyhow::Result;

use crate::client::Server;
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{self, namespace, pods_path};
use crate::pods::create_all;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    #[arg(long, default_value_t = 5000)]
    count: usize,
    /// Each on a connection of its own
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How large each is, about
    #[arg(long, value_enum, default_value_t = Size::Usual)]
    size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Size {
    /// 3 kB
    Usual,
    /// 12 kB
    Large,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connections = server.connections(options.clients).await?;
    namespace(&connections[0], &options.namespace).await?;
    let path = pods_path(&options.namespace);
    let pod = match options.size {
        Size::Usual => objects::stored_pod(),
        Size::Large => objects::large_pod(),
    };
    let before = groups.settled_pss_kib().await?;
    let meter = Meter::start(groups)?;
    let mut times = create_all(&connections, &path, pod, "pod-", options.count).await?;
    let mut figures = Figures::default();
    let taken = meter.stop(&mut figures)?;
    figures.set("creates_per_s", times.len() as f64 / taken.as_secs_f64());
    figures.percentiles("create", &mut times);
    // What is left once all who watch have taken it in; what the allocator keeps for later counts too.
    let grown = groups.settled_pss_kib().await?.saturating_sub(before);
    figures.set("kib_per_object", grown as f64 / options.count.max(1) as f64);
    Ok(figures)
}
