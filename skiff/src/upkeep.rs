//! What a process made from its clock and its address, made anew when they have changed.
//!
//! ```text
//!  every ten seconds, and when the address changes:
//!    is now in the middle of the certificate's life, is it for this address,
//!    and has who signed it the certificate that it had then?                       no ─▶ make another, and show that
//! ```
//!
//! # Guarantees
//! - A server that started before its clock was set, or that has run for longer than a certificate lives, shows good ones
//!   within ten seconds of the clock being right, without a restart.
//! - What cannot be made stays as it is, is complained of, and is tried again at the next look.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::complaint::Complaint;
use crate::identity::Validity;
use crate::pki::{BACKDATE_S, Pki};

/// By the monotonic clock, whatever the other one does meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Half of what a certificate is dated back by: clocks of others that are a little behind find it good all the time.
const YOUTH: SignedDuration = SignedDuration::from_secs(BACKDATE_S / 2);
/// In the last three tenths of its life a certificate is made anew.
const JITTER: f64 = 0.0;

/// Makes a certificate for an address, and has it shown.
type Make = Box<dyn FnMut(Ipv4Addr) -> Result<Validity> + Send>;

struct Certificate {
    what: &'static str,
    /// Of the one that is shown, if there is one yet.
    made: Option<Made>,
    make: Make,
}

#[derive(Clone, Copy)]
struct Made {
    validity: Validity,
    ip: Ipv4Addr,
}

/// Whether who signs is another than at the last look.
type IsOther = Box<dyn FnMut() -> bool + Send>;

/// The certificates that a process makes for itself.
#[derive(Default)]
pub(crate) struct Certificates {
    all: Vec<Certificate>,
    is_other: Option<IsOther>,
}

impl Certificates {
    /// One that is made at the first look.
    pub(crate) fn add(
        &mut self,
        what: &'static str,
        make: impl FnMut(Ipv4Addr) -> Result<Validity> + Send + 'static,
    ) {
        self.all.push(Certificate { what, made: None, make: Box::new(make) });
    }

    /// Has all made anew, and `changed` called before, whenever the authority has been given another certificate.
    pub(crate) fn signed_by(&mut self, pki: Arc<Pki>, changed: impl Fn() + Send + 'static) {
        let mut complaint = Complaint::default();
        self.is_other = Some(Box::new(move || match pki.reload() {
            Ok(false) => false,
            Ok(true) => {
                info!("the authority has another certificate");
                changed();
                true
            }
            Err(error) => {
                if complaint.is_due() {
                    let error = format!("{error:#}");
                    warn!(
                        error,
                        "the authority's certificate cannot be taken up; going on with the last one"
                    );
                }
                false
            }
        }));
    }

    /// Makes what is not good now, or not for this address.
    pub(crate) fn look(&mut self, now: Timestamp, ip: Ipv4Addr) {
        let is_other = self.is_other.as_mut().is_some_and(|is_other| is_other());
        for certificate in &mut self.all {
            if is_other {
                // Whatever becomes of the next lines, it is not good until it was made.
                certificate.made = None;
            }
            let is_good = |made: &Made| made.ip == ip && made.validity.is_in_middle(now, YOUTH, JITTER);
            if certificate.made.as_ref().is_some_and(is_good) {
                continue;
            }
            match (certificate.make)(ip) {
                Ok(validity) => {
                    if certificate.made.is_some() {
                        let (from, until) = (validity.from, validity.until);
                        info!(what = certificate.what, %ip, %from, %until, "a certificate was made anew");
                    }
                    certificate.made = Some(Made { validity, ip });
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(what = certificate.what, error, "a certificate cannot be made anew; trying again");
                }
            }
        }
    }

    /// Looks every ten seconds, and when the address changes, until `shutdown`.
    pub(crate) async fn keep(mut self, mut ip: watch::Receiver<Ipv4Addr>, shutdown: CancellationToken) {
        let mut looks = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = *ip.borrow_and_update();
            self.look(Timestamp::now(), now);
            tokio::select! {
                // All only wait.
                () = shutdown.cancelled() => return,
                _ = looks.tick() => {}
                Ok(()) = ip.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::pki::{self, Clock};

    const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const YEAR_S: i64 = 365 * 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Certificates of which one is made by the clock that the test sets, and how often that was.
    struct World {
        certificates: Certificates,
        now_s: Arc<Mutex<i64>>,
        made_for: Arc<Mutex<Vec<Ipv4Addr>>>,
    }

    impl World {
        fn new() -> World {
            let (now_s, made_for) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(Vec::new())));
            let mut certificates = Certificates::default();
            let (clock, made) = (now_s.clone(), made_for.clone());
            certificates.add("one", move |ip| {
                made.lock().push(ip);
                let now_s = *clock.lock();
                Ok(Validity { from: at(now_s - BACKDATE_S), until: at(now_s + YEAR_S) })
            });
            World { certificates, now_s, made_for }
        }

        /// How many are made by a look at this time.
        fn look(&mut self, now_s: i64, ip: Ipv4Addr) -> usize {
            *self.now_s.lock() = now_s;
            let before = self.made_for.lock().len();
            self.certificates.look(at(now_s), ip);
            self.made_for.lock().len() - before
        }
    }

    #[test]
    fn a_certificate_is_made_anew_when_the_clock_has_left_the_middle_of_its_life_on_either_side() {
        let mut world = World::new();
        let start = 1_800_000_000;
        assert_eq!(world.look(start, HERE), 1, "the first");
        assert_eq!(world.look(start + 60, HERE), 0);
        assert_eq!(world.look(start + YEAR_S / 2, HERE), 0);
        assert_eq!(world.look(start + 400 * 86_400, HERE), 1, "400 days ahead");
        assert_eq!(world.look(start + 400 * 86_400 + 60, HERE), 0);
        assert_eq!(world.look(start, HERE), 1, "and back");
        assert_eq!(world.look(0, HERE), 1, "in 1970");
        assert_eq!(world.look(start, HERE), 1, "once the clock is set");
    }

    #[test]
    fn a_certificate_is_made_anew_for_another_address() {
        let mut world = World::new();
        let there = Ipv4Addr::new(192, 0, 2, 2);
        world.look(0, HERE);
        assert_eq!(world.look(60, there), 1);
        assert_eq!(world.look(120, there), 0);
        assert_eq!(*world.made_for.lock(), [HERE, there]);
    }

    #[test]
    fn all_certificates_are_made_anew_once_when_the_authority_has_another() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(directory.path(), Clock::Checked).unwrap());
        let (mut world, told) = (World::new(), Arc::new(Mutex::new(0)));
        let counted = told.clone();
        world.certificates.signed_by(pki, move || *counted.lock() += 1);
        assert_eq!(world.look(0, HERE), 1);
        assert_eq!(world.look(60, HERE), 0);
        pki::rotate(directory.path(), Clock::Checked).unwrap();
        assert_eq!(world.look(120, HERE), 1);
        assert_eq!(world.look(180, HERE), 0);
        assert_eq!(*told.lock(), 1);
    }

    #[test]
    fn what_cannot_be_made_is_tried_again_at_the_next_look() {
        let mut certificates = Certificates::default();
        let tries = Arc::new(Mutex::new(0));
        let counted = tries.clone();
        certificates.add("one", move |_| {
            *counted.lock() += 1;
            anyhow::ensure!(*counted.lock() > 1, "the disk is full");
            Ok(Validity { from: at(-BACKDATE_S), until: at(YEAR_S) })
        });
        for wanted in [1, 2, 2] {
            certificates.look(at(0), HERE);
            assert_eq!(*tries.lock(), wanted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_comes_every_ten_seconds_whatever_the_wall_clock_does() {
        let mut certificates = Certificates::default();
        let looks = Arc::new(Mutex::new(0));
        let counted = looks.clone();
        certificates.add("one", move |_| {
            *counted.lock() += 1;
            // Never good: each look makes it anew.
            Ok(Validity { from: at(0), until: at(1) })
        });
        let (_address, ip) = watch::channel(HERE);
        let kept = certificates.keep(ip, CancellationToken::new());
        assert!(tokio::time::timeout(Duration::from_secs(45), kept).await.is_err());
        assert_eq!(*looks.lock(), 5);
    }
}
