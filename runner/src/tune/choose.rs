//! Which sizes of blocks a command uses: a measured set that fits, or what the caches imply.

use super::key::Key;
use super::store;
use crate::error::{Error, Result};
use crate::settings::TuningChoice;
use cllm_core::{Blocking, Caches};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Sizes of blocks and where they are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The sizes.
    pub blocking: Blocking,
    /// The file that they were stored in; `None` if they follow from the caches.
    pub file: Option<PathBuf>,
}

impl Chosen {
    /// The file, as reports write it.
    #[must_use]
    pub fn file_name(&self) -> Option<String> {
        self.file.as_ref().map(|file| file.display().to_string())
    }
}

/// Sizes that follow from this CPU's caches.
#[must_use]
pub fn default_blocking() -> Blocking {
    Blocking::for_caches(&Caches::detect())
}

/// The sizes for what `key` says. Bits do not depend on them.
///
/// # Errors
/// A tuning file that is broken, or was asked for and is not there or cannot be read. That of the
/// user's configuration, which nobody asked for, may be out of reach.
pub fn choose(choice: &TuningChoice, key: &Key) -> Result<Chosen> {
    let (file, entries) = match choice {
        TuningChoice::Off => (None, None),
        TuningChoice::Auto => {
            let file = store::default_path();
            let entries = file.as_deref().map(store::read_if_possible).transpose()?.flatten();
            (file, entries)
        }
        TuningChoice::File(path) => {
            let entries = store::read(path)?.ok_or_else(|| {
                Error::usage(format!(
                    "--tuning {}: there is no such file; `cllm tune --out FILE` makes one, and \
                     --tuning off does without",
                    path.display()
                ))
            })?;
            (Some(path.clone()), Some(entries))
        }
    };
    let found = entries.into_iter().flatten().find(|entry| entry.key == *key);
    Ok(match found {
        Some(entry) => Chosen { blocking: entry.blocking, file },
        None => Chosen { blocking: default_blocking(), file: None },
    })
}

/// Sizes of blocks in JSON: their names and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes(pub Blocking);

impl Serialize for Sizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> core::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.fields())
    }
}

impl<'de> Deserialize<'de> for Sizes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> core::result::Result<Self, D::Error> {
        let mut blocking = Blocking::default();
        for (name, value) in BTreeMap::<String, usize>::deserialize(deserializer)? {
            if !blocking.set(&name, value) {
                return Err(D::Error::custom(format!("{name}: no such size of blocks")));
            }
        }
        blocking.check().map_err(D::Error::custom)?;
        Ok(Self(blocking))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_travel_by_name() {
        let sizes = Sizes(Blocking { weight_rows: 512, ..Blocking::default() });
        let text = serde_json::to_string(&sizes).unwrap();
        assert!(text.contains("\"weight_rows\":512"), "{text}");
        assert_eq!(serde_json::from_str::<Sizes>(&text).unwrap(), sizes);
        for wrong in ["{\"rows\":1}", "{\"row_block\":5}", "[1]"] {
            assert!(serde_json::from_str::<Sizes>(wrong).is_err(), "{wrong}");
        }
    }
}
