//! What of a block can have an adapter.

use crate::config::ModelConfig;
use crate::program::Matrix;

/// Which matrix of every block has an adapter, or which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AdapterSite {
    /// Queries, keys and values together.
    Qkv,
    /// Queries alone.
    Queries,
    /// Keys alone.
    Keys,
    /// Values alone.
    Values,
    /// Output projection of attention.
    AttnOut,
    /// First matrix of the feed-forward layer, all of it.
    Fc,
    /// Its gate alone.
    Gate,
    /// What that lets through alone.
    Up,
    /// Second matrix of the feed-forward layer.
    MlpOut,
}

use AdapterSite::{AttnOut, Fc, Gate, Keys, MlpOut, Qkv, Queries, Up, Values};

impl AdapterSite {
    /// All, in the order of matrices and of columns.
    pub const ALL: [Self; 9] = [Qkv, Queries, Keys, Values, AttnOut, Fc, Gate, Up, MlpOut];

    /// For messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Qkv => "Qkv",
            Queries => "Queries",
            Keys => "Keys",
            Values => "Values",
            AttnOut => "AttnOut",
            Fc => "Fc",
            Gate => "Gate",
            Up => "Up",
            MlpOut => "MlpOut",
        }
    }

    pub(crate) const fn matrix(self) -> Matrix {
        match self {
            Qkv | Queries | Keys | Values => Matrix::Qkv,
            AttnOut => Matrix::AttnOut,
            Fc | Gate | Up => Matrix::Fc,
            MlpOut => Matrix::MlpOut,
        }
    }

    /// First column in the matrix, and columns.
    pub(super) const fn columns(self, c: &ModelConfig) -> (usize, usize) {
        let (queries, keys) = (c.query_width(), c.kv_width());
        match self {
            Queries => (0, queries),
            Keys => (queries, keys),
            Values => (queries + keys, keys),
            Gate => (0, c.d_ff),
            Up => (c.d_ff, c.d_ff),
            Qkv | AttnOut | Fc | MlpOut => (0, c.matrices()[self.matrix() as usize].1),
        }
    }
}

/// A set of [`AdapterSite`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterSites(pub(super) u16);

impl AdapterSites {
    /// Those of a list.
    #[must_use]
    pub const fn of(sites: &[AdapterSite]) -> Self {
        let (mut set, mut i) = (0, 0);
        while i < sites.len() {
            set |= 1 << sites[i] as u16;
            i += 1;
        }
        Self(set)
    }

    /// The set as bits, to be written.
    pub(crate) fn bits(self) -> u64 {
        self.0.into()
    }

    /// The set of bits that were written; `None` if one is of no site.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let set = Self(u16::try_from(bits).ok()?);
        (set.0 < 1 << AdapterSite::ALL.len()).then_some(set)
    }

    /// Whether one is in it.
    #[must_use]
    pub const fn has(self, site: AdapterSite) -> bool {
        self.0 & 1 << site as u16 != 0
    }

    /// Its sites in the order of [`AdapterSite::ALL`].
    pub fn iter(self) -> impl Iterator<Item = AdapterSite> {
        AdapterSite::ALL.into_iter().filter(move |site| self.has(*site))
    }
}
