//! Connections: one thread that waits for all of them, and limits of what they may take.

use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::pin;
use core::time::Duration;
use std::net::TcpListener;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::patient::{PATIENCE, Patient};
use super::{Server, routes};
use crate::error::{Error, Result};
use crate::train::stop::Stop;

/// Most connections at a time; others wait to be accepted.
const CONNECTIONS: usize = 512;
/// Most bytes of the head of a request, and its headers.
const HEAD: usize = 32 << 10;
const HEADERS: usize = 100;
/// How long a head may take, or the next request on a connection that is kept.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether the server is to end.
const LOOK: Duration = Duration::from_millis(50);
/// How long replies under way may take when the server is to end.
const GRACE: Duration = Duration::from_secs(10);
/// Threads that make tokens of texts, beside those that compute.
const READERS: usize = 2;

/// What connections run on.
///
/// # Errors
/// The system refuses it.
pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(READERS)
        .build()
        .map_err(|e| Error::failure(format!("cannot wait for connections: {e}")))
}

/// Serves connections until `stop`, and then those who wait for a reply for a while.
///
/// # Errors
/// The listener cannot be waited for.
pub(super) fn run(
    runtime: Runtime,
    listener: TcpListener,
    server: &Arc<Server>,
    stop: &Stop,
) -> Result<()> {
    let served = runtime.block_on(serve(listener, server, stop));
    // Who still makes tokens makes them for nobody.
    runtime.shutdown_background();
    served.map_err(|e| Error::failure(format!("cannot wait for connections: {e}")))
}

async fn serve(listener: TcpListener, server: &Arc<Server>, stop: &Stop) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let (end, ending) = watch::channel(false);
    while !stop.requested() {
        let Ok(Ok(permit)) = timeout(LOOK, Arc::clone(&free).acquire_owned()).await else {
            continue;
        };
        let stream = match timeout(LOOK, listener.accept()).await {
            Ok(Ok((stream, _))) => stream,
            // No more files may be open, or the client has gone: neither lasts.
            Ok(Err(_)) => {
                sleep(LOOK).await;
                continue;
            }
            Err(_) => continue,
        };
        // Pieces of a stream are small, and wanted at once.
        let _ = stream.set_nodelay(true);
        let (server, ending) = (Arc::clone(server), ending.clone());
        drop(tokio::spawn(async move {
            connection(Patient::new(stream, PATIENCE), server, ending).await;
            drop(permit);
        }));
    }
    drop(listener);
    server.queue.close();
    let _ = end.send(true);
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = timeout(GRACE, free.acquire_many(all)).await;
    Ok(())
}

/// Serves one connection until it ends; once `ending` says so, no more than the request under way.
pub(super) async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: Patient<S>,
    server: Arc<Server>,
    mut ending: watch::Receiver<bool>,
) {
    let service = service_fn(|request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(routes::reply(&server, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut end = pin!(ending.wait_for(|ending| *ending));
    let mut told = false;
    // Errors are the client's: a broken connection, or what is no HTTP, which it was told.
    let _ = poll_fn(|cx| {
        if !told && end.as_mut().poll(cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await;
}
