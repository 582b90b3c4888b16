//! What a run may be told: the range of every setting, checked before anything starts.

use crate::data::prefetch::MAX_DEPTH;
use crate::error::{Error, Result};
use crate::parts::PositionsChoice;
use crate::settings::{TokenizerChoice, TrainSettings};
use crate::train::bigrams::LEAST_WIDTH;
use cllm_core::{Architecture, Isa, MAX_DIMENSION, OptimizerKind};
use core::fmt::Display;

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field of [`TrainSettings`].
    pub field: &'static str,
    /// Its value, as a person would write it.
    pub value: String,
    /// What is wrong, and what is accepted.
    pub problem: String,
}

impl Invalid {
    fn new(field: &'static str, value: impl Display, problem: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), problem: problem.into() }
    }

    /// The name of the field's flag.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.field.replace('_', "-"))
    }
}

/// Every block costs dozens of operations a step; nobody has trained a hundredth as many.
const MOST_LAYERS: u64 = 10_000;
/// Steps are counted in 32 bits where dropout masks are drawn.
const MOST_STEPS: u64 = u32::MAX as u64;
/// More than anybody goes through data that are worth it.
const MOST_EPOCHS: f64 = 1e6;
/// Tokens of a step, all micro-batches together.
const MOST_TOKENS: u64 = 1 << 40;
/// Steps of a trace: hundreds of megabytes.
const MOST_TRACED: u64 = 1000;
/// Fewer have no deviation; of more a checkpoint would have to keep too many.
const SPIKE_WINDOWS: [u64; 2] = [4, 10_000];
/// As for `threads`.
const MOST_WORKERS: u64 = 1024;
const MOST: u64 = MAX_DIMENSION as u64;

impl TrainSettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// A usage error that names the flag.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(|wrong| {
            Error::usage(format!("{} {}: {}", wrong.flag(), wrong.value, wrong.problem))
        })
    }

    /// Checks every setting and says which is wrong.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn check(&self) -> core::result::Result<(), Invalid> {
        self.check_model()?;
        self.check_rates()?;
        self.check_run()
    }

    fn check_model(&self) -> core::result::Result<(), Invalid> {
        whole("n_layer", self.n_layer as u64, 1, MOST_LAYERS)?;
        whole("n_head", self.n_head as u64, 1, MOST)?;
        whole("n_embd", self.n_embd as u64, 1, MOST)?;
        whole("block_size", self.block_size as u64, 1, MOST)?;
        whole("batch_size", self.batch_size as u64, 1, MOST)?;
        whole("gradient_accumulation_steps", self.gradient_accumulation_steps as u64, 1, MOST)?;
        whole("batch_parts", self.batch_parts.unwrap_or(1) as u64, 1, MOST)?;
        match self.d_ff {
            Some(d_ff) => whole("d_ff", d_ff as u64, 1, MOST)?,
            // The feed-forward layer is four times as wide.
            None => whole("n_embd", self.n_embd as u64, 1, MOST / 4)?,
        }
        if let Some(vocab_size) = self.vocab_size {
            whole("vocab_size", vocab_size as u64, 1, MOST)?;
        }
        // Rows of a batch are counted in 32 bits where dropout masks are drawn.
        let tokens = self.batch_size as u64 * self.block_size as u64;
        if tokens > MOST {
            let problem = format!(
                "with --block-size {} that is {tokens} tokens at once, more than {MOST}",
                self.block_size
            );
            return Err(Invalid::new("batch_size", self.batch_size, problem));
        }
        if tokens.saturating_mul(self.gradient_accumulation_steps as u64) > MOST_TOKENS {
            let problem = format!("more than {MOST_TOKENS} tokens a step");
            let steps = self.gradient_accumulation_steps;
            return Err(Invalid::new("gradient_accumulation_steps", steps, problem));
        }
        whole("n_kv_head", self.n_kv_head.unwrap_or(1) as u64, 1, MOST)?;
        whole("head_size", self.head_size.unwrap_or(1) as u64, 1, MOST / self.n_head as u64)?;
        if self.lora_rank.is_some() && self.base.is_none() {
            let problem = "adapters stand beside the weights of a model: give --base".to_owned();
            return Err(Invalid::new("lora_rank", self.lora_rank.unwrap_or(0), problem));
        }
        if self.lora_rank.is_some() && self.optimizer == OptimizerKind::Muon {
            let problem = "muon trains the model's own matrices, and with --lora-rank those stay as they are: give \
                           --optimizer adamw, or leave --lora-rank out";
            return Err(Invalid::new("optimizer", self.optimizer, problem));
        }
        whole("lora_rank", self.lora_rank.unwrap_or(1) as u64, 1, MOST)?;
        if let Some(alpha) = self.lora_alpha.filter(|alpha| *alpha <= 0.0) {
            let problem = "it must be above 0".to_owned();
            return Err(Invalid::new("lora_alpha", alpha, problem));
        }
        whole("window", self.window.unwrap_or(1) as u64, 1, MOST)?;
        if let Some(n_kv_head) = self.n_kv_head.filter(|n| !self.n_head.is_multiple_of(*n)) {
            let problem = format!("it must divide --n-head {}", self.n_head);
            return Err(Invalid::new("n_kv_head", n_kv_head, problem));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return Err(Invalid::new("rope_theta", self.rope_theta, "it must be above 1"));
        }
        let cap = self.logit_softcap;
        if cap != 0.0 && !(1e-3..=1e6).contains(&cap) {
            let problem = "it must be at least 0.001 and at most 1000000, or 0 for none";
            return Err(Invalid::new("logit_softcap", cap, problem));
        }
        let scale = self.embedding_scale;
        if !(1e-3..=1e6).contains(&scale) {
            let problem =
                "it must be at least 0.001 and at most 1000000; 1 leaves embeddings as they are";
            return Err(Invalid::new("embedding_scale", scale, problem));
        }
        let most = Architecture::MOST_PREVIOUS as u64;
        whole("previous_tokens", self.previous_tokens as u64, 0, most)?;
        self.check_bigrams()?;
        self.check_heads()?;
        share("lora_dropout", f64::from(self.lora_dropout), self.lora_dropout)?;
        share("dropout", f64::from(self.dropout), self.dropout)
    }

    /// First weights that are counted.
    fn check_bigrams(&self) -> core::result::Result<(), Invalid> {
        let refused = |problem: &str| Err(Invalid::new("bigram_init", true, problem.to_owned()));
        match () {
            () if !self.bigram_init => Ok(()),
            () if self.base.is_some() => {
                refused("the weights of --base are there already: leave one of the two out")
            }
            () if self.tied => refused(
                "what a token says of the next is not what it is told by: give --tied false",
            ),
            () if self.norm != crate::parts::NormChoice::Rms => {
                refused("its rows have one length, which --norm layer changes: give --norm rms")
            }
            () if self.n_embd < LEAST_WIDTH => {
                refused(&format!("--n-embd has to be at least {LEAST_WIDTH} for it"))
            }
            () => Ok(()),
        }
    }

    /// Columns of heads.
    fn check_heads(&self) -> core::result::Result<(), Invalid> {
        if self.head_size.is_none() && !self.n_embd.is_multiple_of(self.n_head) {
            let fits = (1..=self.n_head).rev().find(|h| self.n_embd.is_multiple_of(*h));
            return Err(Invalid::new(
                "n_head",
                self.n_head,
                format!(
                    "it must divide the width --n-embd {}, as {} does",
                    self.n_embd,
                    fits.unwrap_or(1)
                ),
            ));
        }
        let size = self.head_size.unwrap_or(self.n_embd / self.n_head);
        if self.positions == PositionsChoice::Rotary && !size.is_multiple_of(2) {
            let problem = format!(
                "it turns pairs of columns, and heads have {size}: give an even --head-size"
            );
            return Err(Invalid::new("positions", "rotary", problem));
        }
        Ok(())
    }

    fn check_rates(&self) -> core::result::Result<(), Invalid> {
        for (field, value) in [
            ("learning_rate", self.learning_rate),
            ("min_lr", self.min_lr.unwrap_or(0.0)),
            ("weight_decay", self.weight_decay),
            ("grad_clip", self.grad_clip),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Invalid::new(field, value, "it must be 0 or a positive number"));
            }
        }
        if let Some(min) = self.min_lr.filter(|min| *min > self.learning_rate) {
            let problem = format!("it must not exceed --learning-rate {}", self.learning_rate);
            return Err(Invalid::new("min_lr", min, problem));
        }
        self.check_lr_scales()?;
        if let Some(momentum) = self.momentum {
            share("momentum", f64::from(momentum), momentum)?;
            if self.optimizer.usual_momentum().is_none() {
                let problem = format!(
                    "--optimizer {} has none: give --optimizer momentum or muon, or leave it out",
                    self.optimizer
                );
                return Err(Invalid::new("momentum", momentum, problem));
            }
        }
        share("beta1", f64::from(self.beta1), self.beta1)?;
        share("beta2", f64::from(self.beta2), self.beta2)?;
        if !(self.adam_eps > 0.0 && self.adam_eps.is_finite()) {
            return Err(Invalid::new("adam_eps", self.adam_eps, "it must be a positive number"));
        }
        Ok(())
    }

    fn check_lr_scales(&self) -> core::result::Result<(), Invalid> {
        for (field, scale) in
            [("embedding_lr_scale", self.embedding_lr_scale), ("head_lr_scale", self.head_lr_scale)]
        {
            if !(1e-3..=1e3).contains(&scale) {
                let problem = "it must be at least 0.001 and at most 1000";
                return Err(Invalid::new(field, scale, problem));
            }
            if scale != 1.0 && self.lora_rank.is_some() {
                let problem = "adapters are all that is trained: leave it out, or --lora-rank";
                return Err(Invalid::new(field, scale, problem));
            }
        }
        if self.head_lr_scale != 1.0 && self.tied {
            let problem = "a tied model's output projection is the token table: give --tied false, or leave it \
                           out (--embedding-lr-scale has the table's)";
            return Err(Invalid::new("head_lr_scale", self.head_lr_scale, problem));
        }
        Ok(())
    }

    fn check_run(&self) -> core::result::Result<(), Invalid> {
        whole("max_steps", self.max_steps, 1, MOST_STEPS)?;
        if let Some(epochs) = self.epochs.filter(|n| !(*n > 0.0 && *n <= MOST_EPOCHS)) {
            let problem = format!("it must be above 0, at most {MOST_EPOCHS}");
            return Err(Invalid::new("epochs", epochs, problem));
        }
        let [least, most] = SPIKE_WINDOWS;
        whole("spike_window", self.spike_window as u64, least, most)?;
        if !(self.spike_threshold > 0.0 && self.spike_threshold.is_finite()) {
            let problem = "it must be a positive number";
            return Err(Invalid::new("spike_threshold", self.spike_threshold, problem));
        }
        whole("warmup_steps", self.warmup_steps, 0, MOST_STEPS)?;
        whole("lr_decay_steps", self.lr_decay_steps.unwrap_or(1), 1, MOST_STEPS)?;
        whole("eval_interval", self.eval_interval, 1, u64::MAX)?;
        whole("save_interval", self.save_interval, 1, u64::MAX)?;
        whole("log_interval", self.log_interval, 1, u64::MAX)?;
        whole("keep_checkpoints", self.keep_checkpoints as u64, 1, MOST)?;
        whole("trace_steps", self.trace_steps as u64, 1, MOST_TRACED)?;
        whole("tiles_for", self.tiles_for.unwrap_or(1) as u64, 1, MOST_WORKERS)?;
        if let Some(trace) = self.trace.as_ref().filter(|path| path.as_os_str().is_empty()) {
            return Err(Invalid::new("trace", format!("{trace:?}"), "it must name a file"));
        }
        whole("prefetch", self.prefetch as u64, 1, MAX_DEPTH as u64)?;
        whole("sample_tokens", self.sample_tokens as u64, 0, 1_000_000)?;
        share("val_fraction", self.val_fraction, self.val_fraction)?;
        if let TokenizerChoice::Bpe(size) = self.tokenizer
            && !(257..=MAX_DIMENSION).contains(&size)
        {
            let problem = "256 bytes and the end of text need at least 257 ids";
            return Err(Invalid::new("tokenizer", format!("bpe:{size}"), problem));
        }
        if self.text_field.is_empty() {
            return Err(Invalid::new("text_field", "''", "it must name a field"));
        }
        if self.out_dir.as_os_str().is_empty() {
            return Err(Invalid::new("out_dir", "''", "it must name a folder"));
        }
        if let Some(isa) = self.isa {
            has_isa(isa, Isa::is_supported)?;
        }
        Ok(())
    }
}

fn whole(
    field: &'static str,
    value: u64,
    least: u64,
    most: u64,
) -> core::result::Result<(), Invalid> {
    if value < least {
        return Err(Invalid::new(field, value, format!("it must be at least {least}")));
    }
    if value > most {
        return Err(Invalid::new(field, value, format!("the largest accepted value is {most}")));
    }
    Ok(())
}

/// A share of 1: the number tested and the number written.
fn share(
    field: &'static str,
    value: f64,
    written: impl Display,
) -> core::result::Result<(), Invalid> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Invalid::new(field, written, "it must be at least 0 and below 1"))
}

/// The CPU has the instruction set; `supported` answers for it.
fn has_isa(isa: Isa, supported: impl Fn(Isa) -> bool) -> core::result::Result<(), Invalid> {
    if supported(isa) {
        return Ok(());
    }
    let has: Vec<&str> =
        Isa::ALL.into_iter().filter(|isa| supported(*isa)).map(Isa::name).collect();
    Err(Invalid::new("isa", isa, format!("this CPU lacks it; it has {}", has.join(", "))))
}

/// Refuses an instruction set that the CPU lacks, for commands other than `train`.
///
/// # Errors
/// A usage error that names what the CPU has.
pub(super) fn check_isa(isa: Isa, source: &str) -> Result<()> {
    has_isa(isa, Isa::is_supported)
        .map_err(|wrong| Error::usage(format!("{source} {}: {}", wrong.value, wrong.problem)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::presets::Preset;
    use crate::parts::NormChoice;

    fn refused(change: impl FnOnce(&mut TrainSettings)) -> String {
        // Presets are tuned now and then: the messages below want fixed numbers.
        let mut settings = TrainSettings {
            n_embd: 128,
            n_head: 4,
            block_size: 128,
            batch_size: 16,
            learning_rate: 2e-3,
            ..Preset::Tiny.settings()
        };
        change(&mut settings);
        let error = settings.validate().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn zero_and_absurd_sizes_name_the_flag() {
        for (message, start) in [
            (refused(|s| s.n_layer = 0), "--n-layer 0: it must be at least 1"),
            (refused(|s| s.n_layer = 10_001), "--n-layer 10001: the largest accepted"),
            (refused(|s| s.n_head = 0), "--n-head 0"),
            (refused(|s| s.n_embd = usize::MAX), "--n-embd 18446744073709551615"),
            (refused(|s| s.block_size = 0), "--block-size 0"),
            (refused(|s| s.batch_size = 0), "--batch-size 0"),
            (refused(|s| s.gradient_accumulation_steps = 0), "--gradient-accumulation-steps 0"),
            (refused(|s| s.batch_size = 1 << 22), "--batch-size 4194304: with --block-size 128"),
            (
                refused(|s| (s.batch_size, s.gradient_accumulation_steps) = (64, 1 << 28)),
                "--gradient-accumulation-steps 268435456: more than 1099511627776 tokens",
            ),
            (refused(|s| s.n_embd = 0), "--n-embd 0"),
            (refused(|s| s.d_ff = Some(0)), "--d-ff 0"),
            (refused(|s| s.n_kv_head = Some(0)), "--n-kv-head 0: it must be at least 1"),
            (refused(|s| s.n_kv_head = Some(3)), "--n-kv-head 3: it must divide --n-head 4"),
            (refused(|s| s.head_size = Some(0)), "--head-size 0: it must be at least 1"),
            (refused(|s| s.head_size = Some(1 << 28)), "--head-size 268435456: the largest"),
            (refused(|s| s.window = Some(0)), "--window 0: it must be at least 1"),
            (refused(|s| s.previous_tokens = 17), "--previous-tokens 17: the largest"),
            (
                refused(|s| s.embedding_scale = 0.0),
                "--embedding-scale 0: it must be at least 0.001",
            ),
            (
                refused(|s| s.embedding_scale = f32::INFINITY),
                "--embedding-scale inf: it must be at least 0.001",
            ),
            (refused(|s| s.logit_softcap = -1.0), "--logit-softcap -1: it must be at least 0.001"),
            (
                refused(|s| s.logit_softcap = f32::NAN),
                "--logit-softcap NaN: it must be at least 0.001",
            ),
            (
                refused(|s| s.bigram_init = true),
                "--bigram-init true: what a token says of the next",
            ),
            (
                refused(|s| (s.bigram_init, s.tied) = (true, false)),
                "--bigram-init true: its rows have one length, which --norm layer changes",
            ),
            (
                refused(|s| (s.bigram_init, s.base) = (true, Some("base".into()))),
                "--bigram-init true: the weights of --base are there already",
            ),
            (
                refused(|s| {
                    (s.bigram_init, s.tied, s.norm) = (true, false, NormChoice::Rms);
                    (s.n_embd, s.n_head) = (4, 1);
                }),
                "--bigram-init true: --n-embd has to be at least 8",
            ),
            (
                refused(|s| s.lora_rank = Some(4)),
                "--lora-rank 4: adapters stand beside the weights",
            ),
            (
                refused(|s| {
                    (s.lora_rank, s.base) = (Some(4), Some("base".into()));
                    s.optimizer = OptimizerKind::Muon;
                }),
                "--optimizer muon: muon trains the model's own matrices",
            ),
            (
                refused(|s| (s.lora_rank, s.base) = (Some(0), Some("base".into()))),
                "--lora-rank 0: it must be at least 1",
            ),
            (refused(|s| s.lora_dropout = 1.0), "--lora-dropout 1: "),
            (refused(|s| s.lora_alpha = Some(-1.0)), "--lora-alpha -1: it must be above 0"),
            (refused(|s| s.rope_theta = 1.0), "--rope-theta 1: it must be above 1"),
            (
                refused(|s| (s.positions, s.head_size) = (PositionsChoice::Rotary, Some(7))),
                "--positions rotary: it turns pairs of columns, and heads have 7",
            ),
            (refused(|s| s.vocab_size = Some(0)), "--vocab-size 0"),
            (refused(|s| s.max_steps = 0), "--max-steps 0"),
            (refused(|s| s.max_steps = 1 << 32), "--max-steps 4294967296"),
            (refused(|s| s.epochs = Some(0.0)), "--epochs 0: it must be above 0"),
            (refused(|s| s.epochs = Some(f64::INFINITY)), "--epochs inf"),
            (refused(|s| s.eval_interval = 0), "--eval-interval 0"),
            (refused(|s| s.save_interval = 0), "--save-interval 0"),
            (refused(|s| s.log_interval = 0), "--log-interval 0"),
            (refused(|s| s.keep_checkpoints = 0), "--keep-checkpoints 0"),
            (refused(|s| s.spike_window = 3), "--spike-window 3: it must be at least 4"),
            (refused(|s| s.spike_threshold = 0.0), "--spike-threshold 0: it must be a positive"),
            (refused(|s| s.spike_threshold = f64::NAN), "--spike-threshold NaN: it must be"),
            (refused(|s| s.prefetch = 0), "--prefetch 0: it must be at least 1"),
            (refused(|s| s.prefetch = 65), "--prefetch 65: the largest accepted value is 64"),
            (refused(|s| s.lr_decay_steps = Some(0)), "--lr-decay-steps 0"),
            (refused(|s| s.tokenizer = TokenizerChoice::Bpe(256)), "--tokenizer bpe:256"),
            (refused(|s| s.text_field.clear()), "--text-field ''"),
            (refused(|s| s.out_dir = "".into()), "--out-dir ''"),
        ] {
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn rates_outside_their_range_name_the_flag() {
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            for (message, start) in [
                (refused(|s| s.learning_rate = bad), "--learning-rate"),
                (refused(|s| s.min_lr = Some(bad)), "--min-lr"),
                (refused(|s| s.weight_decay = bad), "--weight-decay"),
                (refused(|s| s.embedding_lr_scale = bad), "--embedding-lr-scale"),
                (refused(|s| s.head_lr_scale = bad), "--head-lr-scale"),
                (refused(|s| s.grad_clip = bad), "--grad-clip"),
                (refused(|s| s.dropout = bad), "--dropout"),
                (refused(|s| s.momentum = Some(bad)), "--momentum"),
                (refused(|s| s.beta1 = bad), "--beta1"),
                (refused(|s| s.beta2 = bad), "--beta2"),
                (refused(|s| s.adam_eps = bad), "--adam-eps"),
                (refused(|s| s.val_fraction = f64::from(bad)), "--val-fraction"),
            ] {
                assert!(message.starts_with(start), "{bad}: {message}");
            }
        }
        assert!(refused(|s| s.val_fraction = 1.0).starts_with("--val-fraction 1: "));
        assert!(refused(|s| s.dropout = 1.0).starts_with("--dropout 1: "));
        assert!(refused(|s| s.beta2 = 1.0).starts_with("--beta2 1: "));
        assert!(refused(|s| s.adam_eps = 0.0).starts_with("--adam-eps 0: "));
        for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8, OptimizerKind::Sgd] {
            let unused = refused(|s| (s.optimizer, s.momentum) = (kind, Some(0.8)));
            let told = format!(
                "--momentum 0.8: --optimizer {kind} has none: give --optimizer momentum or muon"
            );
            assert!(unused.starts_with(&told), "{unused}");
        }
        let zero = refused(|s| s.embedding_lr_scale = 0.0);
        assert_eq!(zero, "--embedding-lr-scale 0: it must be at least 0.001 and at most 1000");
        let tied = refused(|s| (s.tied, s.head_lr_scale) = (true, 0.5));
        assert!(
            tied.starts_with("--head-lr-scale 0.5: a tied model's output projection"),
            "{tied}"
        );
        let adapters = refused(|s| {
            (s.lora_rank, s.base, s.embedding_lr_scale) = (Some(4), Some("base".into()), 0.5);
        });
        assert!(adapters.starts_with("--embedding-lr-scale 0.5: adapters are all"), "{adapters}");
        let above = refused(|s| s.min_lr = Some(0.5));
        assert_eq!(above, "--min-lr 0.5: it must not exceed --learning-rate 0.002");
    }

    #[test]
    fn heads_that_do_not_divide_are_told_which_do() {
        let message = refused(|s| s.n_head = 7);
        assert_eq!(message, "--n-head 7: it must divide the width --n-embd 128, as 4 does");
    }

    #[test]
    fn an_instruction_set_that_the_cpu_lacks_is_refused_with_those_it_has() {
        let old = |isa| matches!(isa, Isa::Scalar | Isa::Avx);
        assert_eq!(has_isa(Isa::Scalar, old), Ok(()));
        let wrong = has_isa(Isa::Avx2, old).unwrap_err();
        assert_eq!(wrong.problem, "this CPU lacks it; it has scalar, avx");
        assert_eq!(wrong.flag(), "--isa");
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_allowed() {
        let mut settings = Preset::Reference.settings();
        settings.max_steps = 10;
        settings.validate().unwrap();
    }
}
