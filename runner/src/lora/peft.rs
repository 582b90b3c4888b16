//! Adapters as PEFT has them: a folder of a config and a file of safetensors.
//!
//! ```text
//! adapter_config.json         rank, factor, which matrices
//! adapter_model.safetensors   base_model.model.<matrix>.lora_A.weight   rank x inputs
//!                             base_model.model.<matrix>.lora_B.weight   outputs x rank
//! ```
//! Both are the transposes of what is here. What this program cannot compute (DoRA, ranks by
//! pattern, biases, layers that are trained whole) is refused, never dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cllm_core::checkpoint::Header;
use cllm_core::{AdapterSite, AdapterSites, AdapterTable, Adapters, ModelConfig};
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Module, base_in, modules};
use crate::checkpoint::CheckpointFile;
use crate::error::{Error, Result};
use crate::exchange::{
    ExportSettings, Family, Imported, NewRun, check_held, create_run, origin_of,
};
use crate::files;
use crate::generate::for_terminal;
use crate::hf::weights::{Mapped, dtype};
use crate::tokenizer::usage::Usage;
use crate::train::stored_settings;
use crate::trained::Trained;

/// The file that tells a folder of an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// The file of its factors.
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

/// What of a config matters.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    /// What would make it another kind of adapter: all of it.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// Fields that make another kind of adapter, unless they are empty.
const OTHERS: [&str; 11] = [
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "exclude_modules",
];

/// Whether a field says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let bad = |what: String| Error::failure(format!("{}: {what}", path.display()));
        let text = files::read(path).map_err(|e| Error::io("read", path, &e))?;
        let config: Self = crate::json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if config.peft_type != "LORA" {
            let kind = &config.peft_type;
            return Err(bad(format!("peft_type {kind:?} is not supported; only \"LORA\" is")));
        }
        for field in OTHERS {
            if let Some(value) = config.more.get(field).filter(|value| !is_empty(value)) {
                return Err(bad(format!("{field} {value} is not supported")));
            }
        }
        match config.more.get("bias") {
            None | Some(Value::Null) => Ok(config),
            Some(Value::String(bias)) if bias == "none" => Ok(config),
            Some(bias) => Err(bad(format!("bias {bias} is not supported; only \"none\" is"))),
        }
    }

    fn scale(&self) -> f32 {
        let rank = self.r as f64;
        (self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// Most characters of a model's name that are told, and kept.
const LONGEST: usize = 300;

/// What is to be said of adapters that name another model than the one they are put onto, or one that
/// nothing here can tell from it: shapes alone do not show it.
fn doubt(said: Option<&str>, base: &Path, origin: Option<&str>) -> Option<String> {
    let said = said.filter(|said| !said.trim().is_empty())?;
    // It may lie in the Hub's cache under the name that the base came by.
    let named = origin_of(Path::new(said));
    let said = if said.contains("models--") { named.as_deref().unwrap_or(said) } else { said };
    // It goes to a terminal, and may be of any length.
    let said: &str = &for_terminal(said).chars().take(LONGEST).collect::<String>();
    // The same model may lie in another place.
    let last = |name: &str| {
        let name = name.trim_end_matches(['/', '\\']);
        name.rsplit(['/', '\\']).next().unwrap_or(name).to_lowercase()
    };
    let whence = match origin {
        Some(origin) if last(origin) == last(said) => return None,
        Some(origin) => format!("was imported from {origin}"),
        None => "does not say where it has come from".to_owned(),
    };
    Some(format!(
        "{CONFIG} says that the adapter was trained beside {said}, and --base {} {whence}: beside other \
         weights its answers are wrong",
        base.display()
    ))
}

/// A factor's name in the file.
fn name(family: Family, block: usize, module: &Module, factor: &str) -> String {
    let blocks = match family {
        Family::Gpt2 => "transformer.h",
        Family::Llama | Family::Qwen2 | Family::Qwen3 => "model.layers",
    };
    format!("base_model.model.{blocks}.{block}.{}.lora_{factor}.weight", module.path)
}

/// The module of a site.
fn module_of(config: &ModelConfig, site: AdapterSite) -> Option<&'static Module> {
    modules(config).iter().find(|module| module.site == site)
}

/// Writes the adapters of a run as PEFT's folder `settings.out`. Gives the checkpoint of the model that they
/// stand beside: of adapters trained on adapters it is not the model at the bottom.
///
/// # Errors
/// A model without adapters, or that `transformers` does not have; values that are no numbers of the
/// wanted type; a folder that has such files or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<PathBuf> {
    let trained = Trained::open(&settings.checkpoint)?;
    let bad = |e: String| Error::failure(format!("{}: {e}", settings.checkpoint.display()));
    let Some((table, values)) = trained.adapters()? else {
        return Err(bad(
            "a model without adapters; take --format safetensors, or train some with --lora-rank"
                .to_owned(),
        ));
    };
    let (config, out) = (trained.config(), &settings.out);
    let family = Family::of(config).map_err(bad)?;
    for name in [CONFIG, WEIGHTS] {
        files::refuse_to_replace(&out.join(name))?;
    }
    let mut tensors = Vec::new();
    for spec in table.iter() {
        let Some(module) = module_of(config, spec.site) else { continue };
        let a = transposed(&values, spec.a, (spec.inputs, spec.rank));
        let b = transposed(&values, spec.b, (spec.rank, spec.outputs));
        let shapes = [vec![spec.rank, spec.inputs], vec![spec.outputs, spec.rank]];
        for ((factor, values), shape) in [("A", a), ("B", b)].into_iter().zip(shapes) {
            let name = name(family, spec.block, module, factor);
            check_held(&values, settings.element, &name)?;
            let mut bytes = Vec::new();
            settings.element.write(&values, &mut bytes);
            tensors.push((name, shape, bytes));
        }
    }
    let dtype = dtype(settings.element);
    let views: core::result::Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)))
        .collect();
    let about = Some([("format".to_owned(), "pt".to_owned())].into());
    let bytes = views
        .and_then(|views| safetensors::serialize(views, about))
        .map_err(|e| bad(format!("cannot write {WEIGHTS}: {e}")))?;
    // What has been imported has none.
    let dropout = stored_settings(&trained.dir()).map_or(0.0, |settings| settings.lora_dropout);
    // The decimals that it was given in.
    let dropout = dropout.to_string().parse().unwrap_or(0.0);
    let base = base_in(&trained.dir());
    // Adapters are whole without it.
    let found = CheckpointFile::open(&base).and_then(Trained::of);
    let origin = found.ok().and_then(|found| found.origin().map(str::to_owned));
    let mut json = json(&table, config, family, dropout);
    json["base_model_name_or_path"] = origin.into();
    let json = serde_json::to_string_pretty(&json)
        .map_err(|e| bad(format!("cannot write {CONFIG}: {e}")))?;
    files::create_dir(out)?;
    // The config last: a folder with it is whole.
    files::write_all(out, &[(WEIGHTS, &bytes), (CONFIG, (json + "\n").as_bytes())])?;
    Ok(base)
}

/// The values of a `rows x cols` factor whose rows are `stride` apart, by columns.
fn transposed(
    values: &[f32],
    (at, stride): (usize, usize),
    (rows, cols): (usize, usize),
) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[at + row * stride + col])).collect()
}

/// `adapter_config.json`.
fn json(table: &AdapterTable, config: &ModelConfig, family: Family, dropout: f64) -> Value {
    let Adapters { rank, scale, sites } = *table.adapters();
    let both = sites.has(AdapterSite::AttnOut) && sites.has(AdapterSite::MlpOut);
    let targets = sites.iter().filter_map(|site| {
        let module = module_of(config, site)?;
        // GPT-2's two of one name want no more than that if both are meant.
        module.names.get(if both { 0 } else { module.names.len() - 1 }).copied()
    });
    let mut targets: Vec<&str> = targets.collect();
    targets.sort_unstable();
    targets.dedup();
    let alpha = f64::from(scale) * rank as f64;
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "r": rank,
        "lora_alpha": if alpha.fract() == 0.0 { json!(alpha as u64) } else { json!(alpha) },
        "lora_dropout": dropout,
        "target_modules": targets,
        "bias": "none",
        // Its matrices are inputs x outputs.
        "fan_in_fan_out": family == Family::Gpt2,
        "use_rslora": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    })
}

/// Makes the run folder `out_dir` of PEFT's folder `from` and the model `base` that it stands beside.
///
/// # Errors
/// Files that are missing or damaged, or of another model; what this program cannot compute; a folder
/// that has a run or cannot be written.
pub fn import(from: &Path, base: &Path, out_dir: &Path) -> Result<Imported> {
    let config_file = Config::read(&from.join(CONFIG))?;
    let weights = from.join(WEIGHTS);
    if !weights.exists() && from.join("adapter_model.bin").exists() {
        return Err(Error::failure(format!(
            "{}: no {WEIGHTS}; adapter_model.bin is not read: load it with PEFT and \
             save_pretrained(..., safe_serialization=True)",
            from.display()
        )));
    }
    let trained = Trained::open(base)?;
    let config = *trained.config();
    let bad = |what: String| Error::failure(format!("{}: {what}", from.display()));
    let family = Family::of(&config)
        .map_err(|e| Error::failure(format!("--base {}: {e}", base.display())))?;
    let mapped = Mapped::file(&weights)?;
    let mut tensors = mapped.tensors()?;
    let there = modules(&config).iter().filter(|module| tensors.has(&name(family, 0, module, "A")));
    let sites: Vec<AdapterSite> = there.map(|module| module.site).collect();
    if sites.is_empty() {
        let first = tensors.left().map_or_else(String::new, |(name, _)| format!(", but {name}"));
        return Err(bad(format!("no adapter of a matrix of {}{first}", base.display())));
    }
    let (rank, scale) = (config_file.r, config_file.scale());
    let adapters = Adapters { rank, scale, sites: AdapterSites::of(&sites) };
    let table = AdapterTable::new(&config, &adapters).map_err(|e| bad(e.to_string()))?;
    let mut values = vec![0.0; table.arena_len()];
    for spec in table.iter() {
        let Some(module) = module_of(&config, spec.site) else { continue };
        let factors =
            [("A", spec.a, spec.inputs, spec.rank), ("B", spec.b, spec.rank, spec.outputs)];
        for (factor, (at, stride), rows, cols) in factors {
            let tensor = tensors.take(&name(family, spec.block, module, factor), &[cols, rows])?;
            let mut theirs = vec![0.0; rows * cols];
            tensor.read(&mut theirs)?;
            for (n, value) in theirs.into_iter().enumerate() {
                values[at + n % rows * stride + n / rows] = value;
            }
        }
    }
    if let Some((name, path)) = tensors.left() {
        return Err(Error::failure(format!(
            "{}: {name} is no adapter of a matrix of {}",
            path.display(),
            base.display()
        )));
    }
    let said = config_file.base_model_name_or_path;
    if let Some(doubt) = doubt(said.as_deref(), base, trained.origin()) {
        say!("cllm: {}: {doubt}", from.display());
    }
    let tokenizer = if trained.has_tokenizer() { Some(trained.tokenizer(None)?) } else { None };
    let json = tokenizer.as_ref().map(|tokenizer| tokenizer.to_json()).transpose()?;
    let checkpoint = create_run(&NewRun {
        dir: out_dir,
        header: Header { config, adapters: Some(adapters), seed: 0, updates: 0 },
        values: &values,
        base: Some(&trained.parameters()?),
        tokenizer: json.as_deref().map(str::as_bytes),
        usage: &Usage::of_folder(&trained.dir())?,
        // What the adapter says of it, where nothing else is known.
        origin: trained.origin().map(str::to_owned).or(said.filter(|said| said.len() <= LONGEST)),
    })?;
    let parameters = table.parameters();
    Ok(Imported { config, parameters, checkpoint, has_tokenizer: tokenizer.is_some() })
}
