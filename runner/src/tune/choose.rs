//! Which sizes of blocks a command uses: a measured set that fits, or what the caches imply.

use super::key::{Key, cpu_name};
use super::store::{self, Entry};
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

/// The sizes for what `key` says. Bits do not depend on them. Of a file that was asked for and has
/// none that fit, standard error gets a line.
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
    let entries = entries.unwrap_or_default();
    if let Some(entry) = entries.iter().find(|entry| entry.key == *key) {
        return Ok(Chosen { blocking: entry.blocking, file });
    }
    if let TuningChoice::File(path) = choice {
        say!(
            "cllm: --tuning {}: no set of sizes in it is for {key}; {}; the usual sizes are taken",
            path.display(),
            nearest(key, &entries)
        );
    }
    Ok(Chosen { blocking: default_blocking(), file: None })
}

/// The file of the user's configuration, if there can be one, and how many sets it has for
/// this CPU.
///
/// # Errors
/// A broken file.
pub fn stored_for_this_cpu() -> Result<(Option<PathBuf>, usize)> {
    let file = store::default_path();
    let entries = file.as_deref().map(store::read_if_possible).transpose()?.flatten();
    let cpu = cpu_name();
    let sets = entries.unwrap_or_default().iter().filter(|entry| entry.key.cpu == cpu).count();
    Ok((file, sets))
}

/// What a file has that has nothing for `key`: how many sets, and by what the nearest ones differ.
fn nearest(key: &Key, entries: &[Entry]) -> String {
    const SHOWN: usize = 3;
    let mut all: Vec<_> = entries.iter().map(|entry| key.differences(&entry.key)).collect();
    all.sort_by_key(Vec::len);
    let shown: Vec<_> = all.iter().take(SHOWN).map(|one| one.join(", ")).collect();
    let shown = shown.join("; or ");
    match all.len() {
        0 => "it has none at all".to_owned(),
        1 => format!("its one set is for {shown}"),
        sets if sets <= SHOWN => format!("its {sets} sets are for {shown}"),
        sets => format!("the nearest of its {sets} sets are for {shown}"),
    }
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
    fn what_a_file_has_instead_is_told_the_nearest_first() {
        let key = Key { cpu: "A".to_owned(), isa: "avx2".to_owned(), threads: 2, ..Key::default() };
        let of = |key: &Key| Entry { key: key.clone(), blocking: Blocking::default(), ratio: 0.5 };
        let [one, two, more] = [1, 4, 8].map(|threads| of(&Key { threads, ..key.clone() }));
        let far = of(&Key { cpu: "B \"2\"".to_owned(), rows: 5, ..key.clone() });
        assert_eq!(nearest(&key, &[]), "it has none at all");
        assert_eq!(nearest(&key, core::slice::from_ref(&one)), "its one set is for threads = 1");
        assert_eq!(
            nearest(&key, &[far.clone(), one.clone()]),
            "its 2 sets are for threads = 1; or cpu = \"B \\\"2\\\"\", rows = 5"
        );
        assert_eq!(
            nearest(&key, &[far, one, two, more]),
            "the nearest of its 4 sets are for threads = 1; or threads = 4; or threads = 8"
        );
    }

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
