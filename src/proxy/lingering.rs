//! The end of a connection whose caller was refused and may still be sending: closing it at once would answer those bytes
//! with a reset, which takes the refusal away from whoever has not read it yet (RFC 9112 section 9.6).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::limits::{LINGER_BYTES, LINGER_TIME};

/// A socket whose shutdown is over when the peer has closed its side, too, or has sent or waited for enough.
pub struct Lingering {
    stream: TcpStream,
    lingers: bool,
    /// Since our side was closed: until when, and how many bytes more.
    ending: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Lingering {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, lingers: true, ending: None }
    }

    /// From now on its shutdown is the socket's.
    pub fn no_more(&mut self) {
        self.lingers = false;
    }

    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    pub fn into_inner(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        if !this.lingers {
            return Poll::Ready(Ok(()));
        }
        let (until, left) =
            this.ending.get_or_insert_with(|| (Box::pin(tokio::time::sleep(LINGER_TIME)), LINGER_BYTES));
        loop {
            let mut buffer = [0; 1024];
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return until.as_mut().poll(cx).map(Ok),
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() || buffer.filled().len() >= *left => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) => *left -= buffer.filled().len(),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's own client, towards its own listener")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_was_said_last_is_read_by_one_who_still_sends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut ours = Lingering::new(listener.accept().await.unwrap().0);
        caller.write_all(&[1; 100_000]).await.unwrap();
        let ending = tokio::spawn(async move {
            ours.write_all(b"no").await.unwrap();
            ours.shutdown().await.unwrap();
        });
        let mut said = Vec::new();
        caller.read_to_end(&mut said).await.expect("no reset");
        assert_eq!(said, b"no");
        drop(caller);
        ending.await.unwrap();
    }
}
