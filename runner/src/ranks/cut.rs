//! How the batch of a step is cut: into parts, whose gradients are added up over a fixed tree, and those into
//! micro-batches. Ranks have some of the parts each.
//!
//! ```text
//! step      S sequences: --batch-size times --gradient-accumulation-steps
//! part      S / N of them, next to one another: a leaf of the tree          (N: --batch-parts)
//! micro     gcd(--batch-size, S / N) of them: no more than fit into memory, one after the other
//!
//! tree of n leaves: that of the first 2^k < n, plus that of the others
//! rank r of R: leaves r N / R up to (r + 1) N / R, which are one branch if N / R is a power of two
//! ```
//! So the order in which gradients are added up depends on N alone. With one part it is that of a run which knows
//! nothing of parts: a micro-batch adds to the gradients of those before it while it makes its own.

use crate::error::{Error, Result};
use crate::settings::TrainSettings;

/// Parts that a run which several ranks may go on with has unless told: so one, two and four ranks agree.
const PARTS: usize = 4;

/// What of each step a rank has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Sequences of a micro-batch.
    sequences: usize,
    /// Micro-batches of a step, of all ranks.
    micros: usize,
    /// Those of a part.
    of_part: usize,
    /// Parts of this rank.
    parts: usize,
    /// The rank.
    rank: usize,
}

impl Cut {
    /// What rank `rank` of `size` has of the steps of `settings`.
    ///
    /// # Errors
    /// The batch cannot be cut so, or the parts cannot be shared by so many ranks.
    pub fn new(settings: &TrainSettings, rank: usize, size: usize) -> Result<Self> {
        let all = settings.batch_parts.unwrap_or(1);
        let sequences = sequences_of(settings);
        if all == 0 || !sequences.is_multiple_of(all) {
            return Err(Error::usage(format!(
                "--batch-parts {all}: the {sequences} sequences of a step (--batch-size times \
                 --gradient-accumulation-steps) cannot be cut into so many equal parts"
            )));
        }
        let parts = all / size;
        if !all.is_multiple_of(size) || size > 1 && !parts.is_power_of_two() {
            let fits = |ranks: &usize| {
                all.is_multiple_of(*ranks) && (*ranks == 1 || (all / ranks).is_power_of_two())
            };
            let numbers: Vec<String> =
                (1..=all).filter(fits).map(|ranks| ranks.to_string()).collect();
            return Err(Error::usage(format!(
                "{size} ranks: --batch-parts {all} can be shared by {}; a run keeps the number of parts that it \
                 began with",
                numbers.join(", ")
            )));
        }
        let of_part = sequences / all;
        let micro = gcd(settings.batch_size, of_part);
        let micros = sequences / micro;
        Ok(Self { sequences: micro, micros, of_part: of_part / micro, parts, rank })
    }

    /// The settings of the same run in micro-batches as they are cut.
    #[must_use]
    pub fn apply(&self, settings: &TrainSettings) -> TrainSettings {
        TrainSettings {
            batch_size: self.sequences,
            gradient_accumulation_steps: self.micros,
            ..settings.clone()
        }
    }

    /// Micro-batches of a step that this rank has.
    #[must_use]
    pub fn mine(&self) -> usize {
        self.parts * self.of_part
    }

    /// Parts that this rank has.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Micro-batches of a part.
    #[must_use]
    pub fn of_part(&self) -> usize {
        self.of_part
    }

    /// Micro-batches of a step.
    #[must_use]
    pub fn micros(&self) -> usize {
        self.micros
    }

    /// Number of this rank's first micro-batch among all of a step.
    #[must_use]
    pub fn first(&self) -> usize {
        self.rank * self.mine()
    }

    /// Number among all micro-batches of the run of the `n`-th of those that this rank has.
    #[must_use]
    pub fn number(&self, n: u64) -> u64 {
        let (mine, first) = (self.mine() as u64, self.first() as u64);
        (n / mine).wrapping_mul(self.micros as u64).wrapping_add(first + n % mine)
    }
}

/// The parts of a new run that `size` ranks begin: four, or as many as there are ranks.
#[must_use]
pub fn default_parts(settings: &TrainSettings, size: usize) -> usize {
    let most = size.max(PARTS);
    let shared = most.is_multiple_of(size) && (most / size).is_power_of_two();
    if shared && sequences_of(settings).is_multiple_of(most) { most } else { size }
}

fn sequences_of(settings: &TrainSettings) -> usize {
    settings.batch_size.saturating_mul(settings.gradient_accumulation_steps)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::presets::Preset;

    fn settings(batch_size: usize, accumulated: usize, parts: Option<usize>) -> TrainSettings {
        TrainSettings {
            batch_size,
            gradient_accumulation_steps: accumulated,
            batch_parts: parts,
            ..Preset::Tiny.settings()
        }
    }

    #[test]
    fn ranks_have_every_micro_batch_once_and_in_order() {
        for (batch, accumulated, parts) in [(8, 1, 4), (4, 2, 4), (2, 12, 4), (6, 2, 4), (3, 4, 6)]
        {
            let settings = settings(batch, accumulated, Some(parts));
            for size in 1..=parts {
                let Ok(cut) = Cut::new(&settings, 0, size) else { continue };
                let cuts = (0..size).map(|rank| Cut::new(&settings, rank, size).unwrap());
                let mine = cut.mine() as u64;
                let of_step = |step: u64, cut: Cut| {
                    (0..mine).map(move |n| cut.number(step * mine + n)).collect::<Vec<_>>()
                };
                let numbers: Vec<u64> = (0..3)
                    .flat_map(|step| cuts.clone().flat_map(move |c| of_step(step, c)))
                    .collect();
                assert!(numbers.iter().copied().eq(0..3 * cut.micros() as u64), "{numbers:?}");
                assert_eq!(cut.apply(&settings).batch_size * cut.micros(), batch * accumulated);
                assert!(cut.apply(&settings).batch_size <= batch);
            }
        }
    }

    #[test]
    fn one_part_is_the_run_as_it_is_told() {
        for (batch, accumulated) in [(8, 1), (4, 3), (1, 7)] {
            let settings = settings(batch, accumulated, None);
            let cut = Cut::new(&settings, 0, 1).unwrap();
            assert_eq!(cut.apply(&settings), settings);
            assert_eq!((cut.parts(), cut.of_part(), cut.mine()), (1, accumulated, accumulated));
        }
    }

    #[test]
    fn what_cannot_be_shared_is_refused_with_what_can() {
        let refused =
            |parts, size| Cut::new(&settings(12, 1, parts), 0, size).unwrap_err().to_string();
        assert!(refused(Some(5), 1).contains("12 sequences"), "{}", refused(Some(5), 1));
        assert!(refused(Some(4), 3).contains("shared by 1, 2, 4;"), "{}", refused(Some(4), 3));
        assert!(refused(Some(6), 2).contains("shared by 1, 3, 6;"), "{}", refused(Some(6), 2));
        assert!(refused(None, 2).contains("--batch-parts 1 can be shared by 1;"));
        assert!(Cut::new(&settings(12, 1, Some(12)), 0, 3).is_ok());
    }

    #[test]
    fn a_new_run_has_parts_that_more_ranks_can_go_on_with() {
        let parts = |batch, size| default_parts(&settings(batch, 1, None), size);
        assert_eq!([1, 2, 4, 8].map(|size| parts(32, size)), [4, 4, 4, 8]);
        assert_eq!([1, 2, 3].map(|size| parts(6, size)), [1, 2, 3]);
    }
}
