//! Connections to a server, which it closes when it stops, however idle they are.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::watch,
};
use tonic::transport::server::Connected;

/// How far a server has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves.
    Serving,
    /// It finishes what it was asked, and closes the connections on which nothing ever came: a
    /// device plugin that waits for the end of this one has such a connection.
    Stopping,
    /// All connections are closed.
    Closed,
}

/// Returns when the server has reached a stage, or is gone.
pub async fn reached(mut stage: watch::Receiver<Stage>, wanted: Stage) {
    // There is no sender any more when the server is gone.
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}

/// A connection.
pub struct Connection {
    stream: UnixStream,
    stage: watch::Receiver<Stage>,
    /// Ends when the connection has to be closed; none when it has ended.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Whether anything came.
    is_used: bool,
}

impl Connection {
    /// A connection to the server that is at this stage.
    #[must_use]
    pub fn new(stream: UnixStream, stage: watch::Receiver<Stage>) -> Self {
        Self {
            stream,
            end: Some(Box::pin(reached(stage.clone(), Stage::Stopping))),
            stage,
            is_used: false,
        }
    }

    /// Whether it is to be closed; if not, the task is woken when it is.
    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        let end = self.end.as_mut();
        if end.is_some_and(|end| end.as_mut().poll(context).is_ready()) {
            self.end = None;
        }
        self.end.is_none()
    }
}

impl AsyncRead for Connection {
    /// A connection that is to be closed ends as if the peer had closed it.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_ended(context) {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if !self.is_used && buffer.filled().len() > before {
            self.is_used = true;
            self.end = Some(Box::pin(reached(self.stage.clone(), Stage::Closed)));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}
