//! Values of settings: read from a flag's text or from a value of a TOML file.
//!
//! Both ways accept the same values and refuse the rest with the same words.

use crate::parts::{ActivationChoice, NormChoice, PositionsChoice};
use crate::settings::{
    LogFormat, LossOn, ScheduleChoice, SpikeChoice, Threads, TokenizerChoice, TuningChoice,
};
use crate::simulate::Link;
use cllm_core::{Dtype, Isa, OptimizerKind};
use core::str::FromStr;
use std::path::PathBuf;
use toml::de::DeValue;

/// A type that a setting may have.
pub(crate) trait Setting: Sized + Clone + Send + Sync + 'static {
    /// What is accepted, to follow "expected".
    const ACCEPTS: &'static str;

    /// Reads a flag's value.
    fn from_text(text: &str) -> Option<Self>;

    /// Reads a value of a TOML file; texts count as a flag's value unless said otherwise.
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }
}

/// Parser of a flag for clap.
pub(crate) fn parse<T: Setting>(text: &str) -> Result<T, String> {
    T::from_text(text).ok_or_else(|| format!("expected {}", T::ACCEPTS))
}

/// A TOML integer, or a text where only a flag can be that large.
fn integer<T: FromStr + TryFrom<i128>>(value: &DeValue<'_>) -> Option<T> {
    let number = value.as_integer()?;
    T::try_from(i128::from_str_radix(number.as_str(), number.radix()).ok()?).ok()
}

impl Setting for usize {
    const ACCEPTS: &'static str = "a whole number";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        integer(value)
    }
}

impl Setting for u64 {
    const ACCEPTS: &'static str = "a whole number";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        integer(value)
    }
}

/// Rust would read `nan` and `inf`: neither is a value of any setting.
fn number<T: FromStr + Into<f64> + Copy>(text: &str) -> Option<T> {
    text.parse().ok().filter(|x: &T| (*x).into().is_finite())
}

/// The text of a TOML number, whole or not.
fn number_text<'v>(value: &'v DeValue<'_>) -> Option<&'v str> {
    match value {
        DeValue::Float(float) => Some(float.as_str()),
        DeValue::Integer(integer) if integer.radix() == 10 => Some(integer.as_str()),
        _ => None,
    }
}

impl Setting for f32 {
    const ACCEPTS: &'static str = "a number";

    fn from_text(text: &str) -> Option<Self> {
        number(text)
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        number(number_text(value)?)
    }
}

impl Setting for f64 {
    const ACCEPTS: &'static str = "a number";

    fn from_text(text: &str) -> Option<Self> {
        number(text)
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        number(number_text(value)?)
    }
}

impl Setting for bool {
    const ACCEPTS: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => None,
        }
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }
}

impl Setting for Link {
    const ACCEPTS: &'static str = "1gbe, 10gbe, 25gbe, 100gbe or hdr";

    fn from_text(text: &str) -> Option<Self> {
        Self::named(text)
    }
}

impl Setting for String {
    const ACCEPTS: &'static str = "text";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Setting for PathBuf {
    const ACCEPTS: &'static str = "a path";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
}

impl Setting for Isa {
    const ACCEPTS: &'static str = "scalar, neon, avx, avx2, avx512 or amx";

    fn from_text(text: &str) -> Option<Self> {
        text.to_ascii_lowercase().parse().ok()
    }
}

impl Setting for LogFormat {
    const ACCEPTS: &'static str = "text or json";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl Setting for LossOn {
    const ACCEPTS: &'static str = "completions or all";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "completions" => Some(Self::Completions),
            "all" => Some(Self::All),
            _ => None,
        }
    }
}

impl Setting for Dtype {
    const ACCEPTS: &'static str = "f32 or bf16";

    fn from_text(text: &str) -> Option<Self> {
        text.to_ascii_lowercase().parse().ok()
    }
}

impl Setting for OptimizerKind {
    const ACCEPTS: &'static str = "adamw, adamw8, momentum, sgd or muon";

    fn from_text(text: &str) -> Option<Self> {
        text.to_ascii_lowercase().parse().ok()
    }
}

impl Setting for ScheduleChoice {
    const ACCEPTS: &'static str = "constant, linear, cosine or wsd";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "constant" => Some(Self::Constant),
            "linear" => Some(Self::Linear),
            "cosine" => Some(Self::Cosine),
            "wsd" | "warmup-stable-decay" | "warmup_stable_decay" => Some(Self::Wsd),
            _ => None,
        }
    }
}

impl Setting for SpikeChoice {
    const ACCEPTS: &'static str = "off, stop, rewind or skip";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "stop" => Some(Self::Stop),
            "rewind" => Some(Self::Rewind),
            "skip" => Some(Self::Skip),
            _ => None,
        }
    }
}

impl Setting for NormChoice {
    const ACCEPTS: &'static str = "layer or rms";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "layer" => Some(Self::Layer),
            "rms" => Some(Self::Rms),
            _ => None,
        }
    }
}

impl Setting for PositionsChoice {
    const ACCEPTS: &'static str = "learned or rotary";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "learned" => Some(Self::Learned),
            "rotary" => Some(Self::Rotary),
            _ => None,
        }
    }
}

impl Setting for ActivationChoice {
    const ACCEPTS: &'static str = "gelu, relu2 or swiglu";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "gelu" => Some(Self::Gelu),
            // transformers' name for the gate's.
            "relu2" => Some(Self::Relu2),
            "swiglu" | "silu" => Some(Self::Swiglu),
            _ => None,
        }
    }
}

impl Setting for Threads {
    const ACCEPTS: &'static str = "auto or a number from 1 to 1024";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            _ => text.parse().ok().and_then(Self::count),
        }
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        match value.as_str() {
            Some(text) => Self::from_text(text),
            None => integer(value).and_then(Self::count),
        }
    }
}

impl Threads {
    fn count(count: usize) -> Option<Self> {
        (1..=1024).contains(&count).then_some(Self::Count(count))
    }
}

impl Setting for TuningChoice {
    const ACCEPTS: &'static str = "auto, off, or the path of a file of `cllm tune`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => PathBuf::from_text(text).map(Self::File),
        }
    }
}

impl Setting for TokenizerChoice {
    const ACCEPTS: &'static str = "bytes, chars, bpe:N (N ids), or the path of a tokenizer.json";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "bytes" => return Some(Self::Bytes),
            "chars" => return Some(Self::Chars),
            _ => {}
        }
        if let Some(size) = text.strip_prefix("bpe:") {
            return size.parse().ok().map(Self::Bpe);
        }
        // A bare word that is no file is a misspelt name rather than a missing file.
        let path = PathBuf::from(text);
        let is_path = path.extension().is_some() || path.components().count() > 1 || path.exists();
        is_path.then_some(Self::File(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml<T: Setting>(text: &str) -> Option<T> {
        T::from_toml(DeValue::parse(text).unwrap().get_ref())
    }

    #[test]
    fn numbers_are_read_in_full_or_not_at_all() {
        assert_eq!(usize::from_text("16"), Some(16));
        for text in ["", "-1", "1.5", "16x", "1e3", "99999999999999999999999"] {
            assert_eq!(usize::from_text(text), None, "{text}");
        }
        assert_eq!(f32::from_text("6e-4"), Some(6e-4));
        for text in ["", "nan", "inf", "-inf", "1e99", "3e-4f"] {
            assert_eq!(f32::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn toml_values_must_have_the_type() {
        assert_eq!(toml::<usize>("1_024"), Some(1024));
        assert_eq!(toml::<usize>("0x10"), Some(16));
        assert_eq!(toml::<usize>("-1"), None);
        assert_eq!(toml::<usize>("1.0"), None);
        assert_eq!(toml::<usize>("'16'"), None);
        assert_eq!(toml::<f32>("1"), Some(1.0));
        assert_eq!(toml::<f32>("1_0.5e-1_0"), Some(10.5e-10));
        assert_eq!(toml::<f32>("nan"), None);
        assert_eq!(toml::<f32>("-inf"), None);
        assert_eq!(toml::<f32>("'1'"), None);
        assert_eq!(toml::<bool>("true"), Some(true));
        assert_eq!(toml::<bool>("1"), None);
        assert_eq!(toml::<String>("\"a\""), Some("a".to_owned()));
        assert_eq!(toml::<String>("1"), None);
        assert_eq!(toml::<Threads>("4"), Some(Threads::Count(4)));
        assert_eq!(toml::<Threads>("'auto'"), Some(Threads::Auto));
        assert_eq!(toml::<Threads>("0"), None);
    }

    #[test]
    fn tokenizers_are_named_or_files() {
        use TokenizerChoice::*;
        assert_eq!(TokenizerChoice::from_text("bytes"), Some(Bytes));
        assert_eq!(TokenizerChoice::from_text("bpe:5000"), Some(Bpe(5000)));
        let file = TokenizerChoice::from_text("some/tokenizer.json");
        assert_eq!(file, Some(File("some/tokenizer.json".into())));
        for text in ["byte", "bpe", "bpe:", "bpe:x"] {
            assert_eq!(TokenizerChoice::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn words_of_pythons_truth_are_understood() {
        assert_eq!(bool::from_text("True"), Some(true));
        assert_eq!(bool::from_text("0"), Some(false));
        assert_eq!(bool::from_text("maybe"), None);
    }
}
