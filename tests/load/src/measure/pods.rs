//! From the create to Running, of single pods and of many at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::client::{Connection, Server};
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{self, namespace, pods_path};
use crate::pods::{Seen, Watch, create};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    image: String,
    /// One after the other; with 0, none
    #[arg(long, default_value_t = 0)]
    singles: usize,
    /// At once; with 0, none
    #[arg(long, default_value_t = 0)]
    burst: usize,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connections = server.connections(options.burst.clamp(1, 16)).await?;
    namespace(&connections[0], &options.namespace).await?;
    let path = pods_path(&options.namespace);
    let mut figures = Figures::default();
    let meter = Meter::start(groups)?;
    let mut singles = Vec::new();
    for number in 0..options.singles {
        let name = format!("single-{number}");
        singles.extend(start_all(server, &connections, &path, &[name], &options.image).await?);
    }
    figures.percentiles("create_to_running", &mut singles);
    if options.burst > 0 {
        let names: Vec<String> = (0..options.burst).map(|number| format!("burst-{number}")).collect();
        let start = Instant::now();
        let mut times = start_all(server, &connections, &path, &names, &options.image).await?;
        let all = times.iter().max().copied().unwrap_or_default();
        figures.set("pods_per_s", options.burst as f64 / all.as_secs_f64());
        figures.percentiles("create_to_running", &mut times);
        figures.set("until_all_are_gone_s", start.elapsed().as_secs_f64());
    }
    meter.stop(&mut figures)?;
    Ok(figures)
}

/// Starts pods, and ends them when all run; answers how long each took to start.
async fn start_all(
    server: &Server,
    connections: &[Connection],
    path: &str,
    names: &[String],
    image: &str,
) -> Result<Vec<Duration>> {
    let mut watch = Watch::start(server, path).await?;
    let template = objects::running_pod(image);
    let start = Instant::now();
    let creates = names
        .iter()
        .enumerate()
        .map(|(number, name)| create(&connections[number % connections.len()], path, template.named(name)));
    futures::future::try_join_all(creates).await?;
    watch.wait(Seen::Running, names.len()).await?;
    let taken = names.iter().map(|name| {
        let at = watch.at(Seen::Running, name).with_context(|| format!("{name} was not seen running"))?;
        Ok(at - start)
    });
    let taken = taken.collect::<Result<_>>()?;
    let deletes = names.iter().map(|name| format!("{path}/{name}"));
    let deletes = deletes.map(|path| async move { connections[0].delete(&path).await });
    futures::future::try_join_all(deletes).await?;
    watch.wait(Seen::Gone, names.len()).await?;
    Ok(taken)
}
