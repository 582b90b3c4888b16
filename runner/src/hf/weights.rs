//! Tensors of `.safetensors` files: found by name, checked, turned into `f32` and back.
//!
//! The `safetensors` crate reads headers, and refuses sizes that overflow, ranges that overlap or
//! leave gaps, and files that are too short or too long.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{INDEX, WEIGHTS};
use crate::error::{Error, Result};
use crate::exchange::{Element, check_finite};
use crate::files;

/// The crate's name for a type of elements.
pub(crate) fn dtype(element: Element) -> Dtype {
    match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
    }
}

/// The mapped files of a folder's weights.
#[derive(Debug)]
pub(crate) struct Mapped {
    files: Vec<(PathBuf, Mmap)>,
}

/// `model.safetensors.index.json`, as far as it matters.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Mapped {
    /// Maps the weights of `dir`: those that its index names, or its one file.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be read, or that an index names outside of `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let mut all = Self { files: Vec::new() };
        for name in file_names(dir)? {
            all.files.append(&mut Self::file(&dir.join(name))?.files);
        }
        Ok(all)
    }

    /// Maps one file.
    ///
    /// # Errors
    /// Names the file when it cannot be read.
    pub(crate) fn file(path: &Path) -> Result<Self> {
        let io = |e| Error::io("read the weights", path, &e);
        let map = files::open(path).and_then(|file| files::map(&file, path)).map_err(io)?;
        Ok(Self { files: vec![(path.to_path_buf(), map)] })
    }

    /// Reads their headers.
    ///
    /// # Errors
    /// Names a file with a damaged header, or with a tensor that another one has too.
    pub(crate) fn tensors(&self) -> Result<Tensors<'_>> {
        let mut by_name = BTreeMap::new();
        for (path, map) in &self.files {
            let bad = |what: String| Error::failure(format!("{}: {what}", path.display()));
            let tensors = SafeTensors::deserialize(map)
                .map_err(|e| bad(format!("not a whole file of safetensors: {e}")))?;
            for (name, view) in tensors.tensors() {
                if let Some((other, _)) = by_name.insert(name.clone(), (path.as_path(), view)) {
                    return Err(bad(format!("tensor {name:?} is in {} too", other.display())));
                }
            }
        }
        let place = match self.files.first() {
            Some((path, _)) if self.files.len() == 1 => path.clone(),
            files => files.and_then(|(path, _)| path.parent()).unwrap_or(Path::new("")).into(),
        };
        Ok(Tensors { by_name, place })
    }
}

/// Names of the files of weights in `dir`, in order.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    match files::read(&index) {
        Ok(text) => {
            let bad = |what: String| Error::failure(format!("{}: {what}", index.display()));
            let read: Index = crate::json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
            let mut names: Vec<String> = read.weight_map.into_values().collect();
            names.sort_unstable();
            names.dedup();
            let is_plain = |name: &String| {
                let mut parts = Path::new(name).components();
                matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
            };
            match names.iter().find(|name| !is_plain(name)) {
                Some(name) => Err(bad(format!("{name:?} is not a file of this folder"))),
                None if names.is_empty() => Err(bad("weight_map names no file".to_owned())),
                None => Ok(names),
            }
        }
        Err(_) if dir.join(WEIGHTS).exists() => Ok(vec![WEIGHTS.to_owned()]),
        Err(_) => {
            let pickled = dir.join("pytorch_model.bin").exists();
            let hint = if pickled {
                "; pytorch_model.bin is not read: load it with transformers and \
                 save_pretrained(..., safe_serialization=True)"
            } else {
                ""
            };
            Err(Error::failure(format!("{}: no {WEIGHTS} and no {INDEX}{hint}", dir.display())))
        }
    }
}

/// Tensors of mapped files by their names.
#[derive(Debug)]
pub(crate) struct Tensors<'a> {
    /// The one file, or the folder of several.
    place: PathBuf,
    by_name: BTreeMap<String, (&'a Path, TensorView<'a>)>,
}

impl<'a> Tensors<'a> {
    /// Takes the tensor `name` out, which must have this shape.
    ///
    /// # Errors
    /// It is not there, or of another shape, or not of f32, f16 or bf16.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<'a>> {
        let Some((path, view)) = self.by_name.remove(name) else {
            let place = self.place.display();
            return Err(Error::failure(format!("{place}: no tensor {name}")));
        };
        let bad = |what: String| Error::failure(format!("{}: {name} {what}", path.display()));
        if view.shape() != shape {
            return Err(bad(format!(
                "has the shape {:?}, but the config makes it {shape:?}",
                view.shape()
            )));
        }
        let element = match view.dtype() {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            other => {
                return Err(bad(format!("is of {other:?}; F32, F16 and BF16 can be imported")));
            }
        };
        Ok(Tensor { path, name: name.to_owned(), element, bytes: view.data() })
    }

    /// Whether the tensor `name` is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Whether a name begins so.
    pub(super) fn has_prefix(&self, prefix: &str) -> bool {
        self.by_name.keys().any(|name| name.starts_with(prefix))
    }

    /// The one file, or the folder of several.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Drops the tensors of names that `is` says.
    pub(super) fn forget(&mut self, is: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| !is(name));
    }

    /// Name, shape and type of each, by name.
    pub(super) fn list(&self) -> impl Iterator<Item = (&str, &[usize], Dtype)> {
        self.by_name.iter().map(|(name, (_, view))| (name.as_str(), view.shape(), view.dtype()))
    }

    /// The first of those left, and its file.
    pub(crate) fn left(&self) -> Option<(&str, &'a Path)> {
        self.by_name.iter().next().map(|(name, (path, _))| (name.as_str(), *path))
    }
}

/// A tensor of a mapped file.
#[derive(Debug)]
pub(crate) struct Tensor<'a> {
    path: &'a Path,
    name: String,
    element: Element,
    bytes: &'a [u8],
}

impl Tensor<'_> {
    /// Writes its values to `to`, which has as many.
    ///
    /// # Errors
    /// Names the first that is not a finite number.
    pub(crate) fn read(&self, to: &mut [f32]) -> Result<()> {
        self.element.read(self.bytes, to);
        check_finite(to, &self.name).map_err(|e| self.bad(&e))
    }

    /// Writes the values of a row to `to`, which has as many.
    ///
    /// # Errors
    /// Names the first that is not a finite number.
    pub(super) fn read_row(&self, row: usize, to: &mut [f32]) -> Result<()> {
        let bytes = to.len() * self.element.bytes();
        self.element.read(&self.bytes[row * bytes..][..bytes], to);
        check_finite(to, &self.name).or_else(|_| {
            check_finite(to, &format!("row {row} of {}", self.name)).map_err(|e| self.bad(&e))
        })
    }

    fn bad(&self, what: &str) -> Error {
        Error::failure(format!("{}: {what}", self.path.display()))
    }

    /// Whether `other` has the same bytes of the same kind.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.element == other.element && self.bytes == other.bytes
    }
}
