//! Scaling of rotary angles, which files have as keys or as a tensor of factors.
//!
//! ```text
//! linear    rope.scaling.type, rope.scaling.factor: what all angles are divided by
//! Llama 3   rope_freqs.weight: what the angle of each pair is divided by
//!           rope.scaling.llama3.*: what these factors are made of, in files of this program
//! ```
//! Of Llama 3's scaling other files have the factors alone. Those of the published models are known again.

use cllm_core::{Rotary, Scaling};

use super::keys::Keys;
use super::read::File;
use super::value::Value;

/// The tensor of the factors.
pub(super) const FACTORS: &str = "rope_freqs.weight";

const KIND: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
/// What Llama 3's factors are made of: llama.cpp passes over keys that it does not know.
const MADE_OF: [&str; 4] = [
    "rope.scaling.llama3.factor",
    "rope.scaling.llama3.low_freq_factor",
    "rope.scaling.llama3.high_freq_factor",
    "rope.scaling.llama3.original_context_length",
];
/// What files had of it before there were kinds.
const OLD_FACTOR: &str = "rope.scale_linear";

/// Most that a factor of a published model is off, relatively: scripts compute them in `f32`.
const TOLERANCE: f64 = 1e-4;

/// The published scalings: Llama 3.1's, and that of the small ones of Llama 3.2.
const PUBLISHED: [Scaling; 2] = [
    Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 },
    Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 },
];

/// What the angle of each pair of a head of so many columns is divided by, if that is a tensor.
pub(super) fn factors(rotary: &Rotary, head: usize) -> Option<Vec<f32>> {
    let Scaling::Llama3 { .. } = rotary.scaling else { return None };
    let plain = Rotary { scaling: Scaling::None, ..*rotary };
    let of_pair = |pair| (plain.step(pair, head) / rotary.step(pair, head)) as f32;
    Some((0..head / 2).map(of_pair).collect())
}

/// The keys of a scaling.
pub(super) fn keys(scaling: Scaling) -> Vec<(&'static str, Value)> {
    match scaling {
        Scaling::Linear { factor } => {
            vec![(KIND, Value::Text("linear".to_owned())), (FACTOR, Value::F32(factor))]
        }
        Scaling::Llama3 { factor, low, high, original } => {
            let values = [factor, low, high].map(Value::F32).into_iter();
            let values = values.chain([Value::U32(original)]);
            MADE_OF.into_iter().zip(values).collect()
        }
        Scaling::None => Vec::new(),
    }
}

/// What a file says that Llama 3's factors are made of, if it says all of it.
fn made_of(keys: &Keys<'_>) -> Result<Option<Scaling>, String> {
    let [factor, low, high, original] = MADE_OF;
    let numbers =
        (keys.number(factor)?, keys.number(low)?, keys.number(high)?, keys.size(original)?);
    Ok(match numbers {
        (Some(factor), Some(low), Some(high), Some(original)) => {
            let original = u32::try_from(original).unwrap_or(u32::MAX);
            Some(Scaling::Llama3 { factor, low, high, original })
        }
        _ => None,
    })
}

/// The scaling of a file, of a model of this base and heads of so many columns.
///
/// # Errors
/// One that is not computed here, in words.
pub(super) fn scaling(
    keys: &Keys<'_>,
    (file, bytes): (&File, &[u8]),
    theta: f32,
    head: usize,
) -> Result<Scaling, String> {
    let factor = match keys.number(FACTOR)? {
        None => keys.number(OLD_FACTOR)?,
        given => given,
    };
    // As llama.cpp has it: linear unless told, and nothing is scaled by 0.
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
    let linear = match keys.text(KIND)? {
        Some("none") => None,
        None | Some("linear") => factor,
        Some(other) => {
            return Err(format!(
                "{} {other:?} cannot be imported; none and linear can",
                keys.name(KIND)
            ));
        }
    };
    let Some(tensor) = file.tensors.get(FACTORS) else {
        return Ok(linear.map_or(Scaling::None, |factor| Scaling::Linear { factor }));
    };
    if linear.is_some() {
        return Err(format!("{} and {FACTORS}: angles can be scaled once", keys.name(FACTOR)));
    }
    if tensor.dims != [head / 2] {
        return Err(format!(
            "{FACTORS} has the dimensions {:?}, but a head of {head} columns has {} pairs",
            tensor.dims,
            head / 2
        ));
    }
    let mut given = vec![0.0; head / 2];
    tensor.kind.read(&bytes[tensor.bytes.clone()], &mut given);
    let is =
        |wanted: f32, given: f32| (f64::from(given) / f64::from(wanted) - 1.0).abs() <= TOLERANCE;
    if given.iter().all(|given| is(1.0, *given)) {
        return Ok(Scaling::None);
    }
    let explains = |scaling: &Scaling| {
        factors(&Rotary { theta, scaling: *scaling }, head).is_some_and(|wanted| {
            wanted.iter().zip(&given).all(|(wanted, given)| is(*wanted, *given))
        })
    };
    let said = made_of(keys)?;
    said.into_iter().chain(PUBLISHED).find(explains).ok_or_else(|| {
        format!(
            "{FACTORS} has other factors than Llama 3.1 and 3.2 (8 or 32, from 1 to 4 waves in 8192 \
             tokens), and no keys {} and so on make these: such a model cannot be imported",
            keys.name(MADE_OF[0])
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::f64::consts::TAU;

    /// Of Llama 3.1 with heads of 16, base 500,000.
    #[test]
    fn factors_go_over_from_one_to_all() {
        let rotary = Rotary { theta: 5e5, scaling: PUBLISHED[0] };
        let factors = factors(&rotary, 16).unwrap();
        // Waves of 6, 32, 167, 862, 4443, 22910, ... tokens; between 2048 and 8192 they go over.
        assert_eq!(factors[..4], [1.0; 4]);
        assert_eq!(factors[5..], [8.0; 3]);
        let waves = 8192.0 / (TAU * 5e5_f64.powf(0.5));
        let kept = (waves - 1.0) / 3.0;
        assert!((f64::from(factors[4]) - 1.0 / ((1.0 - kept) / 8.0 + kept)).abs() < 1e-6);
        assert!(factors[4] > 1.0 && factors[4] < 8.0);
        assert_eq!(super::factors(&Rotary { scaling: Scaling::None, ..rotary }, 16), None);
    }
}
