//! Adapters of low rank by the names that people know from PEFT, and where they lie on disk.
//!
//! ```text
//! base.cllm         weights of the model that they stand beside, made when the run begins
//! step-<n>.cllm     adapters, with their moments
//! ```
//! So a run folder needs nothing outside of it: whoever uses its model reads the base and adds the
//! adapters to it (`crate::trained::Trained`).

#[cfg(feature = "lora")]
pub mod peft;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use cllm_core::{AdapterSite, AdapterSites, Adapters, ModelConfig, Trainer};

use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::settings::TrainSettings;
use crate::trained::Trained;

/// Name of the base's checkpoint in a folder of adapters.
pub(crate) const BASE: &str = "base.cllm";

/// All matrices of the blocks, by PEFT's name for that.
pub(crate) const ALL: &str = "all-linear";

/// A matrix that may have an adapter: PEFT's names of it, its place here, and the last parts of the
/// names of its tensors.
struct Module {
    names: &'static [&'static str],
    site: AdapterSite,
    #[cfg_attr(not(feature = "lora"), allow(dead_code, reason = "only files have it"))]
    path: &'static str,
}

const fn module(names: &'static [&'static str], site: AdapterSite, path: &'static str) -> Module {
    Module { names, site, path }
}

/// GPT-2 has two matrices of one name.
const GPT2: [Module; 4] = [
    module(&["c_attn", "attn.c_attn"], AdapterSite::Qkv, "attn.c_attn"),
    module(&["c_proj", "attn.c_proj"], AdapterSite::AttnOut, "attn.c_proj"),
    module(&["c_fc", "mlp.c_fc"], AdapterSite::Fc, "mlp.c_fc"),
    module(&["c_proj", "mlp.c_proj"], AdapterSite::MlpOut, "mlp.c_proj"),
];

const LLAMA: [Module; 7] = [
    module(&["q_proj"], AdapterSite::Queries, "self_attn.q_proj"),
    module(&["k_proj"], AdapterSite::Keys, "self_attn.k_proj"),
    module(&["v_proj"], AdapterSite::Values, "self_attn.v_proj"),
    module(&["o_proj"], AdapterSite::AttnOut, "self_attn.o_proj"),
    module(&["gate_proj"], AdapterSite::Gate, "mlp.gate_proj"),
    module(&["up_proj"], AdapterSite::Up, "mlp.up_proj"),
    module(&["down_proj"], AdapterSite::MlpOut, "mlp.down_proj"),
];

/// The modules of a model, by what tells the families apart that others know.
fn modules(config: &ModelConfig) -> &'static [Module] {
    if config.arch.is_gated() { &LLAMA } else { &GPT2 }
}

/// The adapters that a run trains, if it trains any.
///
/// # Errors
/// A rank, a factor or a name that makes no sense, in the words of the flags.
pub(crate) fn adapters(settings: &TrainSettings, config: &ModelConfig) -> Result<Option<Adapters>> {
    let Some(rank) = settings.lora_rank else { return Ok(None) };
    if !cfg!(feature = "lora") {
        return Err(Error::usage("--lora-rank: this program was built without its feature lora"));
    }
    let alpha = settings.lora_alpha.unwrap_or(2.0 * rank as f32);
    let sites = sites(&settings.lora_targets, config)?;
    let adapters = Adapters { rank, scale: alpha / rank as f32, sites };
    adapters.validate(config).map_err(|e| Error::usage(format!("--lora-rank {rank}: {e}")))?;
    Ok(Some(adapters))
}

/// The matrices that a list of names means.
fn sites(targets: &str, config: &ModelConfig) -> Result<AdapterSites> {
    let modules = modules(config);
    let mut sites: Vec<AdapterSite> = Vec::new();
    for name in targets.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let named = modules.iter().filter(|m| name == ALL || m.names.contains(&name));
        let before = sites.len();
        sites.extend(named.map(|module| module.site));
        if sites.len() == before {
            let mut known: Vec<&str> = modules.iter().flat_map(|m| m.names).copied().collect();
            known.dedup();
            return Err(Error::usage(format!(
                "--lora-targets {name}: the model has no such matrix; it has {}, and {ALL} are all",
                known.join(", ")
            )));
        }
    }
    if sites.is_empty() {
        return Err(Error::usage(format!("--lora-targets: no name; {ALL} are all matrices")));
    }
    Ok(AdapterSites::of(&sites))
}

/// The path of the base's checkpoint in a folder.
pub(crate) fn base_in(dir: &Path) -> PathBuf {
    dir.join(BASE)
}

/// The base of the adapters in `dir`, of the model `config`.
///
/// # Errors
/// There is none, it is damaged, or it is of another model.
pub(crate) fn base_of(dir: &Path, config: &ModelConfig) -> Result<Trained> {
    let path = base_in(dir);
    let base = Trained::of(CheckpointFile::open(&path)?)?;
    // Dropout is the run's.
    let same = ModelConfig { dropout: config.dropout, ..*base.config() } == *config;
    if !same || base.adapters()?.is_some() {
        return Err(Error::failure(format!(
            "{}: this is not the model that the adapters beside it are for",
            path.display()
        )));
    }
    Ok(base)
}

/// The weights of a trainer's model. Adapters are added to those of the base in `dir`: the trainer may have
/// of them what its products read alone.
///
/// # Errors
/// As [`base_of`].
pub(crate) fn merged<'t>(trainer: &'t Trainer<'_>, dir: &Path) -> Result<Cow<'t, [f32]>> {
    let plan = trainer.plan();
    let Some(adapters) = plan.adapters() else { return Ok(Cow::Borrowed(trainer.parameters())) };
    let mut weights = base_of(dir, plan.config())?.parameters()?;
    adapters.merge(plan.table(), trainer.adapters(), &mut weights);
    Ok(Cow::Owned(weights))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cllm_core::Architecture;

    fn config(arch: Architecture) -> ModelConfig {
        ModelConfig {
            vocab_size: 20,
            block_size: 8,
            n_layer: 2,
            n_head: 2,
            d_model: 8,
            d_ff: 12,
            bias: arch == Architecture::GPT2,
            tied: true,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch,
        }
    }

    #[test]
    fn names_are_those_of_the_models_family() {
        use AdapterSite::{AttnOut, Fc, Gate, Keys, MlpOut, Qkv, Queries, Up, Values};
        let (gpt2, llama) = (config(Architecture::GPT2), config(Architecture::LLAMA));
        let of = |targets: &str, config| sites(targets, config).unwrap();
        assert_eq!(of(ALL, &gpt2), AdapterSites::of(&[Qkv, AttnOut, Fc, MlpOut]));
        assert_eq!(of("c_attn, c_proj", &gpt2), AdapterSites::of(&[Qkv, AttnOut, MlpOut]));
        assert_eq!(of("mlp.c_proj", &gpt2), AdapterSites::of(&[MlpOut]));
        let all = [Queries, Keys, Values, AttnOut, Gate, Up, MlpOut];
        assert_eq!(of(ALL, &llama), AdapterSites::of(&all));
        assert_eq!(of("q_proj,v_proj", &llama), AdapterSites::of(&[Queries, Values]));
        let refused = sites("c_attn", &llama).unwrap_err().to_string();
        assert!(refused.contains("--lora-targets c_attn") && refused.contains("q_proj, k_proj"));
        let refused = sites("c_atn", &gpt2).unwrap_err().to_string();
        assert!(refused.contains("it has c_attn, attn.c_attn, c_proj"), "{refused}");
        assert!(sites(" , ", &gpt2).is_err());
        // Rotary positions with GELU: nobody else knows it.
        let own = Architecture { positions: Architecture::LLAMA.positions, ..Architecture::GPT2 };
        assert_eq!(of(ALL, &config(own)), AdapterSites::of(&[Qkv, AttnOut, Fc, MlpOut]));
    }
}
