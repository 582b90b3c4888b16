//! A connection that is not waited for without end: who takes nothing of a reply for some time is gone.

use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long nothing may be taken.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A connection and how long it has taken nothing. (Reading has limits where it is known what is read.)
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    patience: Duration,
    until: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, until: Box::pin(sleep(patience)), waiting: false }
    }

    /// Passes on what came of writing, or that it takes too long.
    fn check<T>(&mut self, cx: &mut Context<'_>, came: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if came.is_ready() {
            self.waiting = false;
            return came;
        }
        if !self.waiting {
            self.waiting = true;
            let until = Instant::now() + self.patience;
            self.until.as_mut().reset(until);
        }
        match self.until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let came = pin!(&mut self.stream).poll_write(cx, buf);
        self.check(cx, came)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let came = pin!(&mut self.stream).poll_write_vectored(cx, bufs);
        self.check(cx, came)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let came = pin!(&mut self.stream).poll_flush(cx);
        self.check(cx, came)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let came = pin!(&mut self.stream).poll_shutdown(cx);
        self.check(cx, came)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::poll_fn;
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream as Plain};
    use std::thread;
    use tokio::net::TcpStream;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// What ends a connection that is written to without end, and the bytes until then. Its client
    /// takes a piece now and then, `times` times.
    fn written(times: usize) -> (io::ErrorKind, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Plain::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let client = thread::spawn(move || {
            let mut piece = vec![0; 1 << 20];
            for _ in 0..times {
                thread::sleep(PATIENCE / 3);
                client.read_exact(&mut piece).unwrap();
            }
            client
        });
        let (kind, bytes) = crate::serve::http::runtime().unwrap().block_on(async {
            let mut patient = Patient::new(TcpStream::from_std(stream).unwrap(), PATIENCE);
            let (piece, mut bytes) = ([0; 1 << 16], 0);
            loop {
                match poll_fn(|cx| Pin::new(&mut patient).poll_write(cx, &piece)).await {
                    Ok(n) => bytes += n,
                    Err(error) => return (error.kind(), bytes),
                }
            }
        });
        drop(client.join().unwrap());
        (kind, bytes)
    }

    #[test]
    fn who_takes_nothing_is_gone_and_who_takes_little_is_not() {
        let (kind, bytes) = written(0);
        assert_eq!(kind, io::ErrorKind::TimedOut);
        // Three times as long as nothing may be taken.
        let (kind, more) = written(9);
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(more >= bytes.max(9 << 20), "{bytes} bytes, then {more}");
    }
}
