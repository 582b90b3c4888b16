//! `cllm serve`: generates for whoever asks over HTTP, by OpenAI's interface, and shows the run.
//!
//! ```text
//! cllm-http (one thread, `http`)                  the calling thread (`worker`)
//!   connection -> guard -> routes
//!     request: parameters, all checked
//!     texts: tokens, all that fits      ------>     queue: in line, texts of many take turns
//!     reply: whole, or a stream         <------     sequence: a piece of text, or its end
//! ```
//! What a request may take is limited before it is taken: bytes and time of its head and body (`http`,
//! `body`), connections, requests in line, texts of a request. A client that goes drops its end of a
//! channel, which ends its texts at their next turn.
//!
//! HTTP is hyper's, on one thread of tokio's: the two that are most used and best looked after, which
//! check what clients send and see them go while a reply is computed. With TLS, HTTP/2 and threads left
//! out the stripped program grows by some 0.8 MB, with all of this module (`cargo build --release --package
//! cllm`, with and without the feature).

mod body;
mod events;
mod fields;
pub(crate) mod given;
mod guard;
mod http;
mod log;
mod model;
mod page;
mod patient;
mod problem;
mod queue;
mod reply;
mod request;
mod routes;
mod sequence;
mod texts;
mod worker;

use core::net::SocketAddr;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use cllm_core::{Dtype, Isa};

use crate::error::{Error, Result};
use crate::model::kernels;
use crate::settings::{LogFormat, Threads};
use crate::train::stop::Stop;
use body::Held;
use guard::Guard;
use log::Log;
use model::{Found, Model};
use queue::Queue;

/// What `cllm serve` is told.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeSettings {
    /// Run folder or checkpoint file.
    pub path: PathBuf,
    /// Address or name of the interface to listen on.
    pub host: String,
    /// Port; 0 takes any that is free.
    pub port: u16,
    /// What requests call the model; `None` is the name of the folder.
    pub name: Option<String>,
    /// Texts that take turns.
    pub parallel: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Tokens that the model sees at a time; `None` is the model's, at most 8192.
    pub context: Option<usize>,
    /// File with the token; without it the environment may have one.
    pub token_file: Option<PathBuf>,
    /// Lets everybody ask who reaches a server that more than this machine reaches.
    pub without_token: bool,
    /// Pages from elsewhere that may ask, as `https://host`.
    pub origins: Vec<String>,
    /// Takes checkpoints that are newer than the first.
    pub reload: bool,
    /// Threads that compute; texts do not depend on it.
    pub threads: Threads,
    /// Instruction set; `None` is the best that the CPU has.
    pub isa: Option<Isa>,
    /// What the operands of products are rounded to.
    pub dtype: Dtype,
    /// How the server speaks of what it does.
    pub log_format: LogFormat,
    /// Says nothing of single requests.
    pub quiet: bool,
}

/// What both threads know.
#[derive(Debug)]
struct Server {
    settings: ServeSettings,
    name: String,
    /// The instruction set and the type of products: bits of texts depend on them.
    kernels: String,
    guard: Guard,
    log: Log,
    queue: Queue,
    held: Held,
    replies: Held,
    model: RwLock<Option<Arc<Model>>>,
    /// What takes a while is done beside the connections; not where there is one alone.
    beside: bool,
    #[cfg(feature = "report")]
    run: Option<page::Run>,
}

impl Server {
    /// The model that is served, if there is one already.
    fn model(&self) -> Option<Arc<Model>> {
        self.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves `model` from now on.
    fn publish(&self, model: Option<Model>) {
        if let Some(model) = &model {
            let path = model.path.display().to_string();
            self.log.model(&path, model.step, model.texts.context);
        }
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = model.map(Arc::new);
    }
}

/// Serves until SIGINT or SIGTERM comes.
///
/// # Errors
/// Settings out of range, a model that cannot be loaded, an address that cannot be listened on; one that
/// more than this machine reaches, without a token.
pub fn serve(settings: ServeSettings) -> Result<()> {
    let token = guard::token(settings.token_file.as_deref())?;
    let address = address(&settings.host, settings.port)?;
    if !address.ip().is_loopback() && token.is_none() && !settings.without_token {
        return Err(Error::usage(format!(
            "--host {}: other machines reach it; give a token for those who may ask, in a file \
             (--token-file) or in {}, or let everybody with --without-token",
            settings.host,
            guard::TOKEN_VARIABLE
        )));
    }
    let kernels = kernels(settings.isa, settings.dtype)?.set().to_string();
    let found = Found::look(&settings, None)?;
    let listener = TcpListener::bind(address)
        .map_err(|e| Error::failure(format!("cannot listen on {address}: {e}")))?;
    let address = listener.local_addr();
    let address = address.map_err(|e| Error::failure(format!("cannot listen: {e}")))?;
    let runtime = http::runtime()?;
    let stop = Stop::on_signals()?;
    let server = Arc::new(Server {
        name: settings.name.clone().unwrap_or_else(|| model::name_of(&settings.path)),
        kernels: kernels.replace([' ', ','], "-"),
        guard: Guard::new(address, token.as_deref(), &settings.origins),
        log: Log { format: settings.log_format, quiet: settings.quiet },
        queue: Queue::new(settings.queue),
        held: Held::default(),
        replies: Held::default(),
        model: RwLock::new(None),
        beside: true,
        #[cfg(feature = "report")]
        run: page::Run::of(&settings.path),
        settings,
    });
    if found.is_none() {
        server.log.note("no checkpoint yet; texts are generated as soon as there is one");
    }
    server.log.started(&format!("http://{address}/"), &server.name, server.guard.has_token());
    thread::scope(|scope| {
        let ending = Ending { server: &server, stop: &stop };
        let serve = || {
            // The calling thread would wait for requests for ever.
            let _ending = Ending { server: &server, stop: &stop };
            http::run(runtime, listener, &server, &stop)
        };
        let http = thread::Builder::new().name("cllm-http".to_owned()).spawn_scoped(scope, serve);
        let http = http.map_err(|e| Error::failure(format!("cannot start a thread: {e}")))?;
        let worked = worker::work(&server, found);
        drop(ending);
        // A panic has printed its line.
        let waited = http.join().unwrap_or_else(|_| Err(Error::failure("the server broke off")));
        worked.and(waited)
    })
}

/// Ends the server, whatever happens.
struct Ending<'s> {
    server: &'s Server,
    stop: &'s Stop,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.stop.request();
        self.server.queue.close();
    }
}

/// The address that `host` means.
fn address(host: &str, port: u16) -> Result<SocketAddr> {
    let cannot = |cause: &dyn core::fmt::Display| Error::usage(format!("--host {host}: {cause}"));
    let mut all =
        (host.trim_matches(['[', ']']), port).to_socket_addrs().map_err(|e| cannot(&e))?;
    all.next().ok_or_else(|| cannot(&"no such address"))
}
