//! Node ports, and which of them are taken.

/// Upstream's default `--service-node-port-range`.
pub(super) const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// A bit for each port of the range: a number, its highest byte first, without leading zeros, as upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports(pub(super) Vec<u8>);

impl Ports {
    fn place(port: u16) -> Option<(usize, u8)> {
        let offset = usize::from(port.checked_sub(*NODE_PORTS.start())?);
        NODE_PORTS.contains(&port).then_some((offset / 8, 1 << (offset % 8)))
    }

    pub(super) fn has(&self, port: u16) -> bool {
        Ports::place(port)
            .is_some_and(|(byte, bit)| self.0.iter().rev().nth(byte).is_some_and(|b| b & bit != 0))
    }

    pub(super) fn set(&mut self, port: u16) {
        let Some((byte, bit)) = Ports::place(port) else { return };
        if self.0.len() <= byte {
            let missing = byte + 1 - self.0.len();
            self.0.splice(0..0, std::iter::repeat_n(0, missing));
        }
        let at = self.0.len() - 1 - byte;
        self.0[at] |= bit;
    }

    pub(super) fn clear(&mut self, port: u16) {
        let Some((byte, bit)) = Ports::place(port) else { return };
        if let Some(found) = self.0.iter_mut().rev().nth(byte) {
            *found &= !bit;
        }
        *self = std::mem::take(self).trimmed();
    }

    pub(super) fn trimmed(mut self) -> Ports {
        let zeros = self.0.iter().take_while(|byte| **byte == 0).count();
        self.0.drain(..zeros);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_bits_of_upstreams_number() {
        let mut ports = Ports::default();
        ports.set(30000);
        assert_eq!(ports.0, [1]);
        ports.set(30009);
        assert_eq!(ports.0, [2, 1]);
        ports.set(32767);
        assert_eq!((ports.0.len(), ports.0[0]), (346, 0x80));
        assert!(ports.has(30000) && ports.has(30009) && ports.has(32767));
        assert!(!ports.has(30001) && !ports.has(80) && !ports.has(32768));
        ports.clear(32767);
        assert_eq!(ports.0, [2, 1], "no leading zeros");
        ports.clear(30000);
        ports.clear(30009);
        assert_eq!(ports, Ports::default());
        ports.set(80);
        assert_eq!(ports, Ports::default());
    }
}
