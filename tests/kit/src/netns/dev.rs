//! A mount namespace whose /dev is a tmpfs, as in a node of `KinD`.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::{Cni, names};

/// A mount namespace of its own, held by a process in it.
pub struct Dev(Child);

impl Dev {
    pub fn new() -> Self {
        let script = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 \
            && mknod -m 666 /dev/random c 1 8 && mknod -m 666 /dev/urandom c 1 9 && echo && read x";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "no tmpfs could be mounted");
        Self(child)
    }

    /// The words before a command that is to run in it.
    pub fn words(&self) -> [String; 2] {
        let mount = format!("--mount=/proc/{}/ns/mnt", self.0.id());
        ["nsenter".into(), mount]
    }

    /// Calls the plugin in it.
    pub fn enter<'a>(&self, call: &Cni<'a>) -> Cni<'a> {
        let [nsenter, mount] = self.words();
        call.clone().by(&[&nsenter, &mount])
    }

    /// A file of its /dev, seen from outside.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/dev/{name}", self.0.id()))
    }

    /// What is in it, beside the devices that every /dev has.
    pub fn names(&self) -> Vec<String> {
        let mut names = names(&self.path(""));
        names.retain(|name| !["null", "random", "urandom"].contains(&name.as_str()));
        names
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
