//! What ranks are joined by: how fast bytes go, and what a message takes.

use serde::Serialize;

/// A kind of link by its published speed, each way.
///
/// Ethernet's are those of IEEE 802.3ab, ae, by and bj; InfiniBand's is that of four lanes of HDR (InfiniBand Trade
/// Association). What is left of them behind headers is a few percent less. Latencies are those from program to program
/// that one can expect: some tens of microseconds through the system's TCP, one or two where the adapter (sub-600 ns by
/// its vendor) is used directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// 1 Gbit/s.
    Ethernet1,
    /// 10 Gbit/s.
    Ethernet10,
    /// 25 Gbit/s.
    Ethernet25,
    /// 100 Gbit/s.
    Ethernet100,
    /// 200 Gbit/s.
    InfinibandHdr,
}

impl Link {
    const ALL: [Self; 5] = [
        Self::Ethernet1,
        Self::Ethernet10,
        Self::Ethernet25,
        Self::Ethernet100,
        Self::InfinibandHdr,
    ];

    /// The name of the flag.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ethernet1 => "1gbe",
            Self::Ethernet10 => "10gbe",
            Self::Ethernet25 => "25gbe",
            Self::Ethernet100 => "100gbe",
            Self::InfinibandHdr => "hdr",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|link| link.name() == name)
    }

    /// Bits a second, in billions.
    #[must_use]
    pub const fn gbit_per_s(self) -> f64 {
        match self {
            Self::Ethernet1 => 1.0,
            Self::Ethernet10 => 10.0,
            Self::Ethernet25 => 25.0,
            Self::Ethernet100 => 100.0,
            Self::InfinibandHdr => 200.0,
        }
    }

    /// Microseconds from program to program.
    #[must_use]
    pub const fn latency_us(self) -> f64 {
        match self {
            Self::InfinibandHdr => 2.0,
            _ => 30.0,
        }
    }
}

/// The network that is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Network {
    /// Billions of bits a second that a rank sends, and as many that it receives at the same time.
    pub gbit_per_s: f64,
    /// Microseconds from program to program.
    pub latency_us: f64,
    /// Microseconds of a rank for each message that it sends or receives.
    pub message_us: f64,
}

impl Network {
    /// Nanoseconds in which a rank has `messages` messages of `bytes` together, which are all under way at once.
    pub(super) fn nanos(&self, messages: usize, bytes: f64) -> f64 {
        let wire = bytes * 8.0 / self.gbit_per_s;
        1e3 * (self.latency_us + self.message_us * messages as f64) + wire
    }

    /// Nanoseconds until all of `ranks` ranks know `bytes` bytes of each, by doubling what is known each time.
    pub(super) fn nanos_to_tell(&self, ranks: usize, bytes: f64) -> f64 {
        let rounds = ranks.next_power_of_two().trailing_zeros() as usize;
        let wire = bytes * (ranks - 1) as f64 * 8.0 / self.gbit_per_s;
        1e3 * rounds as f64 * (self.latency_us + self.message_us) + wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_known_by_their_names() {
        for link in Link::ALL {
            assert_eq!(Link::named(link.name()), Some(link));
        }
        assert_eq!(Link::named("token-ring"), None);
    }

    #[test]
    fn a_megabyte_takes_a_millisecond_on_eight_gigabits_and_what_messages_take() {
        let network = Network { gbit_per_s: 8.0, latency_us: 5.0, message_us: 0.5 };
        assert_eq!(network.nanos(4, 1e6), 1_000_000.0 + 5_000.0 + 2_000.0);
        // Three rounds, in which seven times as much comes in as a rank has.
        assert_eq!(network.nanos_to_tell(8, 1000.0), 7_000.0 + 3.0 * 5_500.0);
        assert_eq!(network.nanos_to_tell(1, 1000.0), 0.0);
    }
}
