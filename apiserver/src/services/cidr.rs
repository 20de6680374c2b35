//! The range that Services have their addresses of.

use std::net::Ipv4Addr;

/// An IPv4 range of addresses, such as `10.96.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    pub(super) network: u32,
    prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("service range {text:?} is not an IPv4 network of /8 to /28, such as 10.96.0.0/16")]
pub struct ServiceCidrError {
    text: String,
}

impl std::str::FromStr for ServiceCidr {
    type Err = ServiceCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ServiceCidrError { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        if !(8..=28).contains(&prefix) {
            return Err(refuse());
        }
        let network = u32::from(address) & (u32::MAX << (32 - prefix));
        Ok(ServiceCidr { network, prefix })
    }
}

impl std::fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

impl ServiceCidr {
    /// The address of the `kubernetes` Service.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// How many addresses can be given out: all but network and broadcast.
    pub(super) fn size(&self) -> u32 {
        (1 << (32 - self.prefix)) - 2
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.network);
        (1..=self.size()).contains(&offset)
    }
}
