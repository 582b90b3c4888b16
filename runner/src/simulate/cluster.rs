//! A recorded step on many ranks: what the network adds to it, and what of that is hidden.
//!
//! ```text
//! compute      outside + packing, forward and backward of all micro-batches + update * share
//!              outside: what the training thread did between runs, and waiting for data
//!              share:   of the blocks of the arena, those of the rank that has most (all, without pieces)
//! bucket b     latency + messages * m + bytes(b) / bandwidth + 3 * bytes(b) / memory
//!              bytes(b): what the rank that has most of it receives, (R - 1) times its own; m: for each message
//!              to be added to what is there, read twice and written once, at the recording's memory bandwidth
//! begin(b)     max(end(b + 1), when b is final)          buckets go from the last to the first, one at a time
//! gradients    sum of all buckets; exposed: end(0) - the backward pass's end, if that is above 0
//! weights      as a bucket of everything, with nothing to add; exposed
//! numbers      losses, then sums of squares: ceil(log2 R) rounds each; exposed
//! step         compute + exposed gradients + weights + numbers
//! efficiency   compute / step
//! ```
//! When a bucket is final is known from the recording: the tiles of the last micro-batch are gone through by the
//! engine's own code in virtual time (`replay`), and what has written above a place is done at some time of that.
//!
//! **Not modelled:** that the exchange takes the memory and now and then the core of a worker; ranks that are slower than
//! others, for which all wait; switches that cannot carry what all links do at once; several ranks behind one link (have
//! each link's bandwidth divided by them). Ranks are joined all to all, as the exchange is.

use core::fmt::Write as _;

use serde::Serialize;

use super::network::Network;
use crate::error::{Error, Result};
use crate::ranks::reduce::Share;

/// What is asked of many ranks.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// What joins them.
    pub network: Network,
    /// The step's batch is the recorded one for all of them together, not for each.
    pub fixed_batch: bool,
}

/// A run of the engine in virtual time. Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Timeline {
    /// From the call to its return.
    pub(super) elapsed: f64,
    /// When gradients from some float on became final, in the order of time.
    pub(super) finals: Vec<(f64, usize)>,
}

impl Timeline {
    /// When the gradients from float `first` on were final.
    fn ready(&self, first: usize) -> f64 {
        let mut finals = self.finals.iter();
        finals.find(|(_, from)| *from <= first).map_or(self.elapsed, |(time, _)| *time)
    }
}

/// What a rank does by itself. Nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Alone {
    /// Micro-batches of the recorded step.
    pub(super) micros: usize,
    /// Tokens of one.
    pub(super) tokens: f64,
    /// Gradients of a step's first micro-batch, and of another.
    pub(super) first: Timeline,
    pub(super) other: Timeline,
    /// Norm and update of everything.
    pub(super) update: f64,
    /// Of the training thread between two runs, in a step, and waiting for data of it.
    pub(super) main: f64,
    pub(super) data: f64,
    /// Blocks of the arena, and whether ranks update pieces.
    pub(super) blocks: usize,
    pub(super) has_pieces: bool,
    /// Bytes a nanosecond that memory moves.
    pub(super) memory: f64,
}

/// A step on some number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankPrediction {
    /// How many.
    pub ranks: usize,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Of them those in which a rank computes.
    pub compute_ms: f64,
    /// In which gradients go from rank to rank and are added up.
    pub gradients_ms: f64,
    /// Share of those that is hidden behind the backward pass.
    pub hidden: f64,
    /// In which updated weights go to all ranks.
    pub weights_ms: f64,
    /// In which losses and sums of squares do.
    pub numbers_ms: f64,
    /// Tokens a second of all.
    pub tokens_per_s: f64,
    /// How many times as fast as one rank.
    pub speedup: f64,
    /// Share of the step in which ranks compute.
    pub efficiency: f64,
}

impl Alone {
    /// Micro-batches of a rank.
    ///
    /// # Errors
    /// A fixed batch cannot be shared so.
    fn micros_of(&self, ranks: usize, is_fixed: bool) -> Result<usize> {
        if !is_fixed {
            return Ok(self.micros);
        }
        if !self.micros.is_multiple_of(ranks) {
            return Err(Error::usage(format!(
                "--ranks {ranks}: with --fixed-batch they share the {} micro-batch(es) that were recorded equally: record \
                 with a --batch-parts that they can share, or leave --fixed-batch out, so that each rank has as many",
                self.micros
            )));
        }
        Ok(self.micros / ranks)
    }

    /// A step of `ranks` ranks, which sum the buckets `shares`, the first first.
    ///
    /// # Errors
    /// A fixed batch cannot be shared so.
    pub(super) fn on(
        &self,
        ranks: usize,
        shares: &[Share],
        cluster: &Cluster,
    ) -> Result<RankPrediction> {
        let (network, others) = (&cluster.network, (ranks - 1) as f64);
        let micros = self.micros_of(ranks, cluster.fixed_batch)?;
        let last = if micros == 1 { &self.first } else { &self.other };
        let runs = self.first.elapsed + (micros - 1) as f64 * self.other.elapsed;
        let own_blocks = self.blocks.div_ceil(ranks);
        let share =
            if self.has_pieces { own_blocks as f64 / self.blocks.max(1) as f64 } else { 1.0 };
        let data = self.data * micros as f64 / self.micros as f64;
        let compute = self.main + data + runs + self.update * share;
        let (mut gradients, mut exposed, mut weights, mut numbers) = (0.0, 0.0, 0.0, 0.0);
        if ranks > 1 {
            let received = |own: usize| 4.0 * others * own as f64;
            let mut end = 0.0_f64;
            for bucket in shares.iter().rev() {
                let (messages, bytes) = (2 * (ranks - 1) * bucket.blocks, received(bucket.own));
                let takes = network.nanos(messages, bytes) + 3.0 * bytes / self.memory;
                gradients += takes;
                end = end.max(last.ready(bucket.first)) + takes;
            }
            exposed = (end - last.elapsed).max(0.0);
            let own: usize = shares.iter().map(|bucket| bucket.own).sum();
            weights = network.nanos(2 * (ranks - 1) * own_blocks, received(own));
            numbers = network.nanos_to_tell(ranks, 8.0 * (micros + 1) as f64)
                + network.nanos_to_tell(ranks, 8.0 * own_blocks as f64);
        }
        let step = compute + exposed + weights + numbers;
        let tokens_per_s = self.tokens * (micros * ranks) as f64 / (step / 1e9);
        Ok(RankPrediction {
            ranks,
            step_ms: step / 1e6,
            compute_ms: compute / 1e6,
            gradients_ms: gradients / 1e6,
            hidden: if gradients > 0.0 { 1.0 - exposed / gradients } else { 1.0 },
            weights_ms: weights / 1e6,
            numbers_ms: numbers / 1e6,
            tokens_per_s,
            speedup: 1.0,
            efficiency: compute / step,
        })
    }
}

/// The table for people.
pub(super) fn text(predictions: &[RankPrediction], network: &Network, is_fixed: bool) -> String {
    let Network { gbit_per_s, latency_us, message_us } = network;
    let batch = if is_fixed { "the recorded batch, shared" } else { "the recorded batch on each" };
    let mut text = format!(
        "network   {gbit_per_s} Gbit/s each way, {latency_us} us latency, {message_us} us a message; {batch}\n\n\
         {:>7}{:>11}{:>11}{:>11}{:>10}{:>10}{:>10}{:>13}{:>10}{:>12}\n",
        "ranks",
        "ms a step",
        "compute",
        "gradients",
        "hidden",
        "weights",
        "numbers",
        "tokens/s",
        "speed-up",
        "efficiency",
    );
    for p in predictions {
        let _ = writeln!(
            text,
            "{:>7}{:>11.2}{:>11.2}{:>11.2}{:>8.1} %{:>10.2}{:>10.2}{:>13.0}{:>10.2}{:>10.1} %",
            p.ranks,
            p.step_ms,
            p.compute_ms,
            p.gradients_ms,
            100.0 * p.hidden,
            p.weights_ms,
            p.numbers_ms,
            p.tokens_per_s,
            p.speedup,
            100.0 * p.efficiency,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: [Share; 3] = [
        Share { first: 0, blocks: 1, own: 1000 },
        Share { first: 2000, blocks: 1, own: 1000 },
        Share { first: 4000, blocks: 1, own: 500 },
    ];

    /// 1 ms of a first micro-batch, 0.9 of another, 0.2 of an update. Half of the gradients are final after 0.4.
    fn alone(micros: usize) -> Alone {
        let finals = vec![(400_000.0, 4000), (500_000.0, 2000), (890_000.0, 0)];
        Alone {
            micros,
            tokens: 512.0,
            first: Timeline {
                elapsed: 1_000_000.0,
                finals: finals.iter().map(|(time, at)| (time + 100_000.0, *at)).collect(),
            },
            other: Timeline { elapsed: 900_000.0, finals },
            update: 200_000.0,
            main: 10_000.0,
            data: 4_000.0,
            blocks: 5,
            has_pieces: true,
            memory: 12.0,
        }
    }

    fn cluster(gbit_per_s: f64, latency_us: f64, fixed_batch: bool) -> Cluster {
        let network = Network { gbit_per_s, latency_us, message_us: 0.0 };
        Cluster { ranks: Vec::new(), network, fixed_batch }
    }

    #[test]
    fn one_rank_computes_and_nothing_else() {
        let step = alone(2).on(1, &SHARES, &cluster(1.0, 30.0, false)).unwrap();
        let compute = 1.0 + 0.9 + 0.2 + 0.010 + 0.004;
        assert!((step.step_ms - compute).abs() < 1e-9, "{step:?}");
        assert_eq!((step.compute_ms, step.efficiency), (step.step_ms, 1.0));
        assert_eq!((step.gradients_ms, step.weights_ms, step.numbers_ms), (0.0, 0.0, 0.0));
        let rate = 1024.0 / (compute / 1e3);
        assert!((step.tokens_per_s / rate - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_step_of_two_ranks_is_that_by_hand() {
        // 0.1 bytes a nanosecond, and 10 us for whatever there is.
        let step = alone(2).on(2, &SHARES, &cluster(0.8, 10.0, false)).unwrap();
        // Of five blocks three: 0.2 ms * 3 / 5. Memory moves 12 bytes a nanosecond.
        let compute = 1.9 + 0.12 + 0.014;
        // 2,000 bytes: 20 us; 4,000: 40 us. With latency and sums, 3 * bytes / 12 ns.
        let (last, whole) = (0.010 + 0.020 + 0.0005, 0.010 + 0.040 + 0.001);
        // The last is there at 0.4 and through at 0.4305, the second at 0.551; the first begins at 0.89.
        let exposed = 0.89 + whole - 0.9;
        let weights = 0.010 + 0.1;
        // One round each: 3 numbers, and 3 sums.
        let numbers = 2.0 * (0.010 + 0.00024);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}: {step:?}");
        near(step.compute_ms, compute);
        near(step.gradients_ms, last + 2.0 * whole);
        near(step.hidden, 1.0 - exposed / (last + 2.0 * whole));
        near(step.weights_ms, weights);
        near(step.numbers_ms, numbers);
        near(step.step_ms, compute + exposed + weights + numbers);
        near(step.efficiency, compute / step.step_ms);
    }

    #[test]
    fn a_shared_batch_is_less_for_each_and_its_only_micro_batch_packs() {
        let cluster = cluster(1e9, 0.0, true);
        let step = alone(2).on(2, &SHARES, &cluster).unwrap();
        assert!((step.compute_ms - (1.0 + 0.12 + 0.010 + 0.002)).abs() < 1e-9, "{step:?}");
        let refused = alone(2).on(4, &SHARES, &cluster).unwrap_err().to_string();
        assert!(refused.contains("share the 2 micro-batch(es)"), "{refused}");
    }

    #[test]
    fn a_network_without_end_costs_nothing_and_a_better_one_never_more() {
        let shares = |ranks: usize| {
            let own = 4000 / ranks;
            [Share { first: 0, blocks: 1, own }, Share { first: 4000, blocks: 1, own }]
        };
        for ranks in [2, 4, 16, 256, 1024] {
            // What a rank has to add up is not the network's.
            let alone = Alone { memory: f64::INFINITY, ..alone(3) };
            let best =
                alone.on(ranks, &shares(ranks), &cluster(f64::INFINITY, 0.0, false)).unwrap();
            assert!((best.efficiency - 1.0).abs() < 1e-12, "{best:?}");
            let mut before = best;
            for (gbit, latency) in
                [(100.0, 0.0), (100.0, 2.0), (25.0, 2.0), (1.0, 2.0), (1.0, 50.0)]
            {
                let step = alone.on(ranks, &shares(ranks), &cluster(gbit, latency, false)).unwrap();
                assert!(step.step_ms >= before.step_ms && step.efficiency <= before.efficiency);
                assert!((0.0..=1.0).contains(&step.hidden) && step.compute_ms == before.compute_ms);
                before = step;
            }
            assert!(before.efficiency < 0.99, "{before:?}");
        }
    }
}
