//! How many connections of whom the node API holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// From one address, until it has shown that it is the API server's: more than a client needs, and few enough that one pod does not
/// take the places of all.
const MAX_OF_ONE: usize = 64;

#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place, until it is dropped.
pub(super) struct Place {
    places: Places,
    peer: IpAddr,
}

impl Places {
    pub(super) fn take(&self, peer: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock();
        let count = taken.entry(peer).or_default();
        if *count >= MAX_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_the_places_of_another_and_gets_its_own_back() {
        let places = Places::default();
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut of_a: Vec<Place> = (0..MAX_OF_ONE).filter_map(|_| places.take(a)).collect();
        assert_eq!(of_a.len(), MAX_OF_ONE);
        assert!(places.take(a).is_none());
        assert!(places.take(b).is_some());
        of_a.pop();
        assert!(places.take(a).is_some());
        drop(of_a);
        assert!(places.0.lock().is_empty());
    }
}
