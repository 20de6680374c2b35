//! Drills: what a cluster does while something goes wrong around it, and once that is over.

mod certificates;
mod clock;
mod disk;
mod network;
mod nodes;
mod restarts;
mod rounds;
mod stopped;
