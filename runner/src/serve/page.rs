//! What a browser sees: the run as it goes on, if a run is served, or else what can be asked for.

use super::Server;
use super::problem::Problem;

/// The page at `/`.
///
/// # Errors
/// The run cannot be read.
pub(super) fn page(server: &Server) -> Result<String, Problem> {
    #[cfg(feature = "report")]
    if let Some(run) = &server.run {
        return run.page();
    }
    Ok(plain(server))
}

/// What the page asks for again and again.
///
/// # Errors
/// No run is served, or it cannot be read.
pub(super) fn runs(server: &Server) -> Result<String, Problem> {
    #[cfg(feature = "report")]
    if let Some(run) = &server.run {
        return run.json();
    }
    let _ = server;
    Err(Problem::new(hyper::StatusCode::NOT_FOUND, "no run is served here, only a model"))
}

fn plain(server: &Server) -> String {
    let safe: String = server
        .name
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_. ".contains(c) { c } else { '?' })
        .collect();
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>cllm: {safe}</title>\
         <h1>{safe}</h1><p>The interface is OpenAI's:</p><ul>\
         <li>POST /v1/completions<li>POST /v1/chat/completions\
         <li>GET <a href=\"v1/models\">/v1/models</a><li>GET <a href=\"health\">/health</a></ul>\n"
    )
}

#[cfg(feature = "report")]
pub(super) use live::Run;

#[cfg(feature = "report")]
mod live {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};
    use std::time::SystemTime;

    use super::Problem;
    use crate::report::{data, page};
    use crate::train::folder::RunFolder;

    /// Which version of a run's events was read: when they were written, and their bytes.
    type Version = Option<(Option<SystemTime>, u64)>;

    /// A run folder, which is read again only when there is more in it.
    #[derive(Debug)]
    pub(in super::super) struct Run {
        dir: PathBuf,
        /// What was read last, and of which version.
        read: Mutex<Option<(Version, Texts)>>,
    }

    #[derive(Clone, Debug)]
    struct Texts {
        page: String,
        json: String,
    }

    impl Run {
        /// The run in `dir`, if there is one.
        pub(in super::super) fn of(dir: &Path) -> Option<Self> {
            let is_run = dir.is_dir()
                && (RunFolder::existing(dir).has_settings()
                    || RunFolder::existing(dir).metrics().exists());
            is_run.then(|| Self { dir: dir.to_path_buf(), read: Mutex::new(None) })
        }

        /// The page, with what is known by now.
        pub(super) fn page(&self) -> Result<String, Problem> {
            self.texts().map(|texts| texts.page)
        }

        /// What is known by now.
        pub(super) fn json(&self) -> Result<String, Problem> {
            self.texts().map(|texts| texts.json)
        }

        fn texts(&self) -> Result<Texts, Problem> {
            let about = fs::metadata(RunFolder::existing(&self.dir).metrics()).ok();
            let version = about.map(|about| (about.modified().ok(), about.len()));
            // Held while it is read: others who ask meanwhile wait for that.
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((of, texts)) = &*read
                && *of == version
            {
                return Ok(texts.clone());
            }
            let run = data::load(&self.dir).map_err(|error| {
                Problem::unavailable(format!("the run cannot be read: {error}"))
            })?;
            let runs = [run];
            let texts = Texts { page: page::render(&runs, true), json: data::to_json(&runs) };
            *read = Some((version, texts.clone()));
            Ok(texts)
        }
    }
}
