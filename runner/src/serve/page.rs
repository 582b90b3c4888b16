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
    use core::fmt;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};
    use std::time::SystemTime;

    use super::Problem;
    use crate::report::data::{self, Follower, RunData};
    use crate::report::page;
    use crate::train::folder::RunFolder;

    /// Which version of a run's files was read: when each was written, and its bytes.
    type Version = [Option<(Option<SystemTime>, u64)>; 2];

    /// A run folder, of which only what is new is read, and only if there is any.
    pub(in super::super) struct Run {
        dir: PathBuf,
        read: Mutex<Read>,
    }

    /// What was read last, and what was made of that.
    struct Read {
        follower: Follower,
        version: Option<Version>,
        runs: Vec<RunData>,
        json: Option<String>,
    }

    impl fmt::Debug for Run {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Run({})", self.dir.display())
        }
    }

    impl Run {
        /// The run in `dir`, if there is one.
        pub(in super::super) fn of(dir: &Path) -> Option<Self> {
            let folder = RunFolder::existing(dir);
            let is_run = dir.is_dir() && (folder.has_settings() || folder.metrics().exists());
            is_run.then(|| {
                let follower = Follower::new(dir);
                let read = Read { follower, version: None, runs: Vec::new(), json: None };
                Self { dir: dir.to_path_buf(), read: Mutex::new(read) }
            })
        }

        /// The page, with what is known by now.
        pub(super) fn page(&self) -> Result<String, Problem> {
            self.with(|read| page::render(&read.runs, true))
        }

        /// What is known by now.
        pub(super) fn json(&self) -> Result<String, Problem> {
            self.with(|read| read.json.get_or_insert_with(|| data::to_json(&read.runs)).clone())
        }

        /// What `make` makes of the run as it is now.
        fn with<R>(&self, make: impl FnOnce(&mut Read) -> R) -> Result<R, Problem> {
            let folder = RunFolder::existing(&self.dir);
            // Before they are read: what is written meanwhile is then read the next time.
            let version = [folder.metrics(), folder.settings_file()].map(|path| {
                let about = fs::metadata(path).ok()?;
                Some((about.modified().ok(), about.len()))
            });
            // Held while it is read: others who ask meanwhile wait for that.
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if read.version.as_ref() != Some(&version) {
                let run = read.follower.load().map_err(|error| {
                    Problem::unavailable(format!("the run cannot be read: {error}"))
                })?;
                (read.runs, read.json) = (vec![run], None);
                read.version = Some(version);
            }
            Ok(make(&mut read))
        }
    }
}
