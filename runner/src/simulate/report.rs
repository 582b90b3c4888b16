//! What a simulation found, for people and as JSON.

use core::fmt::Write as _;

use serde::Serialize;

use super::SimulateSettings;
use super::cluster::{self, RankPrediction};
use super::network::Network;
use super::replay::{Prices, Sums};
use crate::trace::about::About;

/// A share of something.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Operations of a tile: one, or the first and last of a chain.
    pub name: String,
    /// Of 1.
    pub share: f64,
}

/// A step on some number of workers. Shares are of all workers' time, unless said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// How many.
    pub workers: usize,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// How many times as fast as one worker with the same tiles.
    pub speedup: f64,
    /// Running tiles, at the speed of the recording.
    pub utilisation: f64,
    /// Taking, stealing and completing tiles.
    pub dispatch: f64,
    /// Running tiles longer, for memory was busy.
    pub memory: f64,
    /// No tile was ready.
    pub wait: f64,
    /// The training thread was between two runs, or began or ended one.
    pub outside: f64,
    /// Bandwidth assumed, in GB/s.
    pub bandwidth_gb_per_s: f64,
    /// Tiles of a step.
    pub tiles: u64,
    /// Those of them that were stolen.
    pub stolen: u64,
    /// What waits were for, the longest first: the tile whose end ended the wait.
    pub waits: Vec<Share>,
    /// What the critical path of the step is made of, as shares of the step's time.
    pub critical_path: Vec<Share>,
}

/// The recorded steps gone through again, against what they took: how good the model is here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Workers that recorded.
    pub workers: usize,
    /// Steps compared.
    pub steps: usize,
    /// Milliseconds of a step as predicted, the mean.
    pub predicted_ms: f64,
    /// As measured.
    pub measured_ms: f64,
}

impl Check {
    /// By how much the prediction is too long, as a share.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.predicted_ms / self.measured_ms - 1.0
    }
}

/// All that was simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What the trace says of itself.
    pub recorded: About,
    /// Milliseconds of a step in the recording, the median.
    pub recorded_step_ms: f64,
    /// Tokens a second in the recording.
    pub recorded_tokens_per_s: f64,
    /// Bandwidth asked for, in GB/s.
    pub bandwidth: Option<f64>,
    /// Tiles take their fastest times, not their medians.
    pub fastest: bool,
    /// Each recorded step with its own tiles.
    pub check: Option<Check>,
    /// One for each number of workers.
    pub predictions: Vec<Prediction>,
    /// What joins ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// They share the recorded batch.
    pub fixed_batch: bool,
    /// One for each number of ranks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankPrediction>,
}

/// Names with their shares of `all`, the largest first.
fn shares(labels: &[String], nanos: &[u64], all: f64) -> Vec<Share> {
    let named = labels.iter().zip(nanos).filter(|(_, nanos)| **nanos > 0);
    let mut shares: Vec<_> = named
        .map(|(name, nanos)| Share { name: name.clone(), share: *nanos as f64 / all })
        .collect();
    shares.sort_by(|a, b| b.share.total_cmp(&a.share));
    shares
}

impl Prediction {
    pub(super) fn new(
        about: &About,
        workers: usize,
        prices: &Prices,
        sums: &Sums,
        labels: &[String],
    ) -> Self {
        let outside = about.costs.main_ns + about.costs.data_ns;
        let step = sums.elapsed as f64 + outside;
        let all = step * workers as f64;
        let share = |nanos: u64| nanos as f64 / all;
        Self {
            workers,
            step_ms: step / 1e6,
            tokens_per_s: about.tokens() / (step / 1e9),
            speedup: 1.0,
            utilisation: share(sums.busy),
            dispatch: share(sums.dispatch),
            memory: share(sums.memory),
            wait: share(sums.waits.iter().sum()),
            outside: share(sums.edges) + outside / step,
            bandwidth_gb_per_s: prices.bandwidth,
            tiles: sums.tiles,
            stolen: sums.stolen,
            waits: shares(labels, &sums.waits, all),
            critical_path: shares(labels, &sums.critical, step),
        }
    }

    /// Speed-up against the prediction for one worker.
    pub(super) fn against(self, alone: &Self) -> Self {
        Self { speedup: alone.step_ms / self.step_ms, ..self }
    }
}

impl Report {
    pub(super) fn new(
        recorded: About,
        settings: &SimulateSettings,
        check: Option<Check>,
        predictions: Vec<Prediction>,
        ranks: Vec<RankPrediction>,
    ) -> Self {
        let step = recorded.costs.step_ns;
        Self {
            recorded_step_ms: step / 1e6,
            recorded_tokens_per_s: recorded.tokens() / (step / 1e9),
            recorded,
            bandwidth: settings.bandwidth,
            fastest: settings.fastest,
            check,
            predictions,
            network: settings.cluster.as_ref().map(|cluster| cluster.network),
            fixed_batch: settings.cluster.as_ref().is_some_and(|cluster| cluster.fixed_batch),
            ranks,
        }
    }

    /// The report for people.
    #[must_use]
    pub fn text(&self) -> String {
        const SHOWN: usize = 5;
        let (about, costs) = (&self.recorded, &self.recorded.costs);
        let memory = match self.bandwidth {
            Some(rate) => format!("{rate} GB/s, as told, for any number of workers"),
            None => format!(
                "{:.1} GB/s as measured on {cpus} CPU(s), and as much again for each further {cpus} \
                 workers: assumes memory that grows with the cores (--bandwidth sets it)",
                costs.memory_gb_per_s,
                cpus = about.cpus
            ),
        };
        let check = match &self.check {
            Some(check) => format!(
                "{} recorded step(s) with their own tiles on {} worker(s): {:.2} ms predicted, {:.2} \
                 measured ({:+.2} %)",
                check.steps,
                check.workers,
                check.predicted_ms,
                check.measured_ms,
                100.0 * check.error()
            ),
            None => "no recorded step is whole".to_owned(),
        };
        let tiles = if self.fastest { "the fastest of each" } else { "the median of each" };
        let mut text = format!(
            "recorded  {} step(s) on {} worker(s), {} kernels, tiles for {}: {:.2} ms a step, \
             {:.0} tokens/s\n\
             costs     dispatch {:.0} ns, steal {:.0} ns, wake {:.1} us, start {:.1} us, end {:.1} \
             us, main thread {:.1} us and data {:.1} us a step\n\
             memory    {memory}\n\
             tiles     {tiles}\n\
             check     {check}\n",
            about.steps,
            about.workers,
            about.kernel_names(),
            about.tiles_for,
            self.recorded_step_ms,
            self.recorded_tokens_per_s,
            costs.dispatch_ns,
            costs.steal_ns,
            costs.wake_ns / 1e3,
            costs.start_ns / 1e3,
            costs.end_ns / 1e3,
            costs.main_ns / 1e3,
            costs.data_ns / 1e3,
        );
        if let Some(network) = &self.network {
            text.push_str(&cluster::text(&self.ranks, network, self.fixed_batch));
            return text;
        }
        let _ = write!(
            text,
            "\n{:>7}{:>11}{:>12}{:>10}{:>8}{:>10}{:>8}{:>8}{:>9}{:>8}{:>8}\n",
            "workers",
            "ms a step",
            "tokens/s",
            "speed-up",
            "busy",
            "dispatch",
            "memory",
            "wait",
            "outside",
            "tiles",
            "stolen",
        );
        let percent = |x: f64| 100.0 * x;
        for p in &self.predictions {
            let _ = writeln!(
                text,
                "{:>7}{:>11.2}{:>12.0}{:>10.2}{:>6.1} %{:>8.2} %{:>6.1} %{:>6.1} %{:>7.2} %{:>8}{:>8}",
                p.workers,
                p.step_ms,
                p.tokens_per_s,
                p.speedup,
                percent(p.utilisation),
                percent(p.dispatch),
                percent(p.memory),
                percent(p.wait),
                percent(p.outside),
                p.tiles,
                p.stolen,
            );
        }
        let listed = |shares: &[Share]| {
            let shown = shares.iter().take(SHOWN);
            let shown: Vec<_> =
                shown.map(|s| format!("{} {:.1} %", s.name, percent(s.share))).collect();
            shown.join("; ")
        };
        for p in &self.predictions {
            let _ = write!(
                text,
                "\n{} worker(s)\n  waits for      {}\n  critical path  {}\n",
                p.workers,
                listed(&p.waits),
                listed(&p.critical_path)
            );
        }
        text
    }
}
