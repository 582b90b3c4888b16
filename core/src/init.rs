//! Seeded initial weights: the same bits on every platform.
//!
//! Each tensor draws from its own ChaCha8 stream, numbered by its place in the
//! table, so a tensor's start does not depend on the others' sizes.

use crate::adapter::AdapterTable;
use crate::built::COMPACT;
use crate::params::{Init, ParamTable};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Fills the parameter arena with the starting values of every tensor.
///
/// # Panics
/// If the arena is shorter than the table says.
pub(crate) fn initialise(table: &ParamTable, seed: u64, arena: &mut [f32]) {
    for (index, spec) in table.iter().enumerate() {
        let values = &mut arena[spec.range()];
        match spec.init {
            Init::Ones => values.fill(1.0),
            Init::Zeros => values.fill(0.0),
            Init::Normal(std) => {
                let mut rng = stream(seed, index as u64);
                for pair in values.chunks_mut(2) {
                    let (a, b) = normal_pair(&mut rng);
                    pair[0] = std * a;
                    if let Some(second) = pair.get_mut(1) {
                        *second = std * b;
                    }
                }
            }
        }
    }
}

/// Fills the arena of adapters: every B with zeros, so that they add nothing at first, and every A
/// uniformly within `1 / sqrt(inputs)` of zero, as PEFT begins (Kaiming's bound for a gain of
/// `sqrt(1 / 3)`).
///
/// # Panics
/// If the arena is shorter than the table says.
pub(crate) fn initialise_adapters(table: &AdapterTable, seed: u64, arena: &mut [f32]) {
    /// Streams behind those of the parameters.
    const FIRST_STREAM: u64 = 1 << 40;
    arena.fill(0.0);
    for (number, spec) in table.iter().enumerate() {
        let mut rng = stream(seed, FIRST_STREAM + number as u64);
        let bound = 1.0 / libm::sqrtf(spec.inputs as f32);
        for row in 0..spec.inputs {
            for value in &mut arena[spec.a.0 + row * spec.a.1..][..spec.rank] {
                let unit = (rng.next_u32() >> 8) as f32 * UNIT;
                *value = bound * (2.0 * unit - 1.0);
            }
        }
    }
}

/// Stream `number` of a seed.
fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

/// Two independent standard normal values (Box and Muller, 1958).
fn normal_pair(rng: &mut impl Rng) -> (f32, f32) {
    // (0, 1]: the logarithm stays finite.
    let u = ((rng.next_u32() >> 8) + 1) as f32 * UNIT;
    let v = (rng.next_u32() >> 8) as f32 * UNIT;
    let radius = libm::sqrtf(-2.0 * libm::logf(u));
    let angle = core::f32::consts::TAU * v;
    // Never so (9 pi / 4), but the compiler sees that what is for larger angles is of no use, and leaves it out.
    if COMPACT && angle.to_bits() > 0x40e2_31d5 {
        return (0.0, 0.0);
    }
    let (sin, cos) = libm::sincosf(angle);
    (radius * cos, radius * sin)
}

/// 2^-24.
pub(crate) const UNIT: f32 = 1.0 / 16_777_216.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_values_have_the_right_moments() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (mut sum, mut squares, mut fourth) = (0.0_f64, 0.0_f64, 0.0_f64);
        let n = 200_000;
        for _ in 0..n / 2 {
            let (a, b) = normal_pair(&mut rng);
            for x in [f64::from(a), f64::from(b)] {
                sum += x;
                squares += x * x;
                fourth += x * x * x * x;
            }
        }
        let n = f64::from(n);
        // Standard errors: 0.0022, 0.0032, 0.022.
        assert!((sum / n).abs() < 0.01, "mean {}", sum / n);
        assert!((squares / n - 1.0).abs() < 0.015, "variance {}", squares / n);
        assert!((fourth / n - 3.0).abs() < 0.1, "kurtosis {}", fourth / n);
    }
}
