//! `cllm import` and `cllm export`.

use super::args::{ExportArgs, ImportArgs};
use super::output;
use crate::error::Result;
use crate::hf::{self, ExportSettings, ImportSettings};

pub(super) fn import(args: ImportArgs) -> Result<()> {
    let ImportArgs { from, out_dir } = args;
    let settings = ImportSettings { from, out_dir };
    let imported = hf::import(&settings)?;
    let config = imported.config;
    let mut text = format!(
        "{}: {} parameters in {} layers of width {}, {} ids, sequences of up to {}\n",
        imported.checkpoint.display(),
        imported.parameters,
        config.n_layer,
        config.d_model,
        config.vocab_size,
        config.block_size,
    );
    if !imported.has_tokenizer {
        text.push_str(&format!(
            "no tokenizer.json in {}: put one into {} to generate and to evaluate text\n",
            settings.from.display(),
            settings.out_dir.display()
        ));
    }
    output::print(&text)
}

pub(super) fn export(args: ExportArgs) -> Result<()> {
    let ExportArgs { checkpoint, out, weights } = args;
    let settings = ExportSettings { checkpoint, out, element: weights };
    hf::export(&settings)?;
    output::print(&format!("{}: a model for transformers\n", settings.out.display()))
}
