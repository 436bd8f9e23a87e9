//! The sockets on which the device plugin is queried: one of the same name in each of several
//! directories, of which not all can be had.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use anyhow::Result;
use log::debug;

use super::control_socket::{BindError, Connection, Server};
use crate::types::errors::together;

/// The sockets of one name.
pub struct Listener {
    name: String,
    servers: Vec<(PathBuf, Option<Server>)>,
}

impl Listener {
    /// Listens as `name` in none of these directories yet.
    pub fn new(name: String, dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        let servers = dirs.into_iter().map(|dir| (dir, None)).collect();
        Self { name, servers }
    }

    /// Listens where it does not yet, or where the socket was removed. Fails if there is no socket
    /// at all, and with [`BindError::InUse`] while another device plugin listens in one directory.
    pub fn bind(&mut self) -> Result<(), BindError> {
        let mut errors = Vec::new();
        for (dir, server) in &mut self.servers {
            if server.as_ref().is_some_and(Server::is_in_place) {
                continue;
            }
            *server = None;
            match Server::bind(dir, &self.name) {
                Ok(bound) => *server = Some(bound),
                Err(BindError::Failed(error)) => {
                    debug!(error = format!("{error:#}"); "no control socket here");
                    errors.push(error);
                }
                Err(in_use) => return Err(in_use),
            }
        }
        if self.servers.iter().all(|(_, server)| server.is_none()) {
            together(&errors)?;
        }
        Ok(())
    }

    /// Listens nowhere any more.
    pub fn release(&mut self) {
        for (_, server) in &mut self.servers {
            *server = None;
        }
    }

    /// The next connection, if there is one.
    pub fn accept(&self) -> Result<Option<Connection>> {
        for server in self.bound() {
            if let Some(connection) = server.accept()? {
                return Ok(Some(connection));
            }
        }
        Ok(None)
    }

    /// The sockets, to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.bound().map(AsFd::as_fd)
    }

    fn bound(&self) -> impl Iterator<Item = &Server> {
        self.servers
            .iter()
            .filter_map(|(_, server)| server.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn listens_again_unless_another_device_plugin_does() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let paths = || dirs.iter().map(|dir| dir.path().to_owned());
        let mut listener = Listener::new("x.sock".to_owned(), paths());
        assert_eq!(listener.descriptors().count(), 0);
        listener.bind().unwrap();
        assert_eq!(listener.descriptors().count(), 2);
        // The socket was removed.
        let path = dirs[0].path().join("x.sock");
        fs::remove_file(&path).unwrap();
        listener.bind().unwrap();
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        let other = Server::bind(dirs[0].path(), "x.sock").unwrap();
        assert!(matches!(listener.bind(), Err(BindError::InUse(_))));
        assert_eq!(listener.descriptors().count(), 1, "the other one's place");
        drop(other);
        listener.bind().unwrap();
        assert_eq!(listener.descriptors().count(), 2);
        // One directory that cannot be had is not enough to fail.
        let none = Listener::new("x.sock".to_owned(), ["/proc/none".into()]).bind();
        assert!(matches!(none, Err(BindError::Failed(_))));
    }
}
