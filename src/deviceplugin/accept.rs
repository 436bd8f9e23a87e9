//! Accepting connections, also while no descriptor can be had.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use tokio::time::sleep_until;

use crate::host::accept_pause::AcceptPause;

/// Accepts the connections of a listener.
#[derive(Debug, Default)]
pub struct Acceptor(AcceptPause);

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
                    self.0.end();
                    return connection;
                }
                Err(error) => sleep_until(self.0.begin(&error).into()).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::host::accept_pause::PAUSE;

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
            assert!(start.elapsed() >= PAUSE);
        });
    }
}
