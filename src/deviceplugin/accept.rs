//! Accepting connections, also while no descriptor can be had.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use log::warn;
use tokio::time::sleep;

/// The time after a failure until the next attempt. The connection still waits then, so that an
/// attempt at once would fail in the same way, at full speed.
const BACK_OFF: Duration = Duration::from_millis(500);

/// Accepts the connections of a listener.
#[derive(Debug, Default)]
pub struct Acceptor {
    failing: bool,
}

impl Acceptor {
    /// The next connection, by the listener's `poll_accept`. Nothing is lost if the future is
    /// dropped before.
    pub async fn accept<T>(
        &mut self,
        mut poll_accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> T {
        loop {
            match poll_fn(&mut poll_accept).await {
                Ok(connection) => {
                    self.failing = false;
                    return connection;
                }
                Err(error) => {
                    if !self.failing {
                        warn!(error:%; "cannot accept connections; retrying");
                    }
                    self.failing = true;
                    sleep(BACK_OFF).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn waits_after_a_failure() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        runtime.block_on(async {
            let (start, failed) = (tokio::time::Instant::now(), Cell::new(false));
            let poll_accept = |_: &mut Context<'_>| {
                let again = failed.replace(true);
                Poll::Ready(again.then_some(()).ok_or(io::ErrorKind::Other.into()))
            };
            Acceptor::default().accept(poll_accept).await;
            assert!(start.elapsed() >= BACK_OFF);
        });
    }
}
