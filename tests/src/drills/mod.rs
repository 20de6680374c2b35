//! Faults that a story brings about on purpose. Each is a guard: dropping it undoes it.
//!
//! | drill | what happens | how |
//! |---|---|---|
//! | [`Process::kill`] | a process ends at once | SIGKILL through a pidfd |
//! | [`Process::stop`] | a process stands still, its connections open | SIGSTOP and SIGCONT through a pidfd |
//! | [`Link::partition`] | packets to and from an address vanish | nft in a namespace of the test's own |
//! | [`Link::lose`] | some packets to an address vanish | nft, at random |
//! | [`Link::delay`] | bytes to and from an address come late | nft leads connections through a relay that waits |
//! | [`SmallDisk::fill`] | a file system is full | a tmpfs of its own, and a file that takes the rest |
//! | [`PowerDisk::cut`] | a disk loses what was not synced | its file system is shut down by ioctl, without a flush |
//! | [`Boot::restart`] | the machine of a cluster is restarted | all that does not outlive a boot is ended |
//! | [`OwnClock`] | a process has a wall clock of its own, which may be set | libfaketime, by a file |
//! | [`ShiftedClock`] | whoever shows credentials has a clock that is off | certificates and tokens with shifted times |
//!
//! # Caveats
//! - A wall clock is the whole machine's: no namespace shifts it. For processes that ask libc for the time there is
//!   [`OwnClock`]; for the others, what is shifted are the times that a machine whose
//!   clock is off would sign. Time namespaces shift only the monotonic clocks, of which nothing but differences is used.
//! - The kernels that these run on have no `netem`: a delay is one of bytes on connections, not of packets.

mod boot;
mod clock;
mod disk;
mod network;
mod power;
mod process;

pub use boot::Boot;
pub(crate) use boot::{children, groups};
pub use clock::{Credential, OwnClock, ShiftedClock};
pub use disk::{Full, SmallDisk};
pub use network::{Delay, Link, Loss, Partition};
pub use power::{FileSystem, PowerDisk, in_own_mounts};
pub use process::{Process, Started, Stopped};
