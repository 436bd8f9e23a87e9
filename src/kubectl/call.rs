//! Calls of `kubectl`, many at the same time, each with a time limit.

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail};
use serde::de::DeserializeOwned;

use super::node::Node;
use crate::cli::{Cluster, KUBELET_DIR};

/// Nodes that are asked at the same time.
const MAX_CALLS: usize = 32;
/// The binary in our image.
const PROGRAM: &str = "/macvtap";
/// How often an unfinished call is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The option that names the kubelet's directory, unless that is the usual one.
pub fn on_node(kubelet_dir: &Path) -> Option<String> {
    let usual = kubelet_dir == Path::new(KUBELET_DIR);
    (!usual).then(|| format!("--kubelet-dir={}", kubelet_dir.display()))
}

/// How `kubectl` is called.
pub struct Kubectl {
    flags: Vec<String>,
    timeout: Duration,
}

/// What a call printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    status: ExitStatus,
    pub stdout: String,
    stderr: String,
}

/// A call that runs.
struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    start: Instant,
}

impl Kubectl {
    /// With the user's own context, unless another one is given.
    pub fn new(cluster: &Cluster) -> Self {
        let mut flags = Vec::new();
        if let Some(context) = &cluster.context {
            flags.push(format!("--context={context}"));
        }
        if let Some(file) = &cluster.kubeconfig {
            flags.push(format!("--kubeconfig={}", file.display()));
        }
        Self {
            flags,
            timeout: Duration::from_secs_f64(cluster.timeout),
        }
    }

    /// Calls it once.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.start(words)?.finish(self.timeout)
    }

    /// Runs a command of this program on each node. The answers are in the order of the nodes.
    pub fn exec(&self, nodes: &[Node], words: &[String]) -> Vec<Result<Output>> {
        self.exec_long(nodes, words, Duration::ZERO)
    }

    /// The same with a command that takes so long by itself.
    pub fn exec_long(
        &self,
        nodes: &[Node],
        words: &[String],
        duration: Duration,
    ) -> Vec<Result<Output>> {
        let timeout = self.timeout + duration;
        let answers = nodes.chunks(MAX_CALLS).flat_map(|nodes| {
            let running: Vec<Result<Running>> = nodes
                .iter()
                .map(|node| self.start_on(node, words))
                .collect();
            let finished = running.into_iter().map(|call| call?.finish(timeout));
            finished.collect::<Vec<_>>()
        });
        answers.collect()
    }

    fn start_on(&self, node: &Node, words: &[String]) -> Result<Running> {
        if let Some(reason) = &node.unavailable {
            bail!("{reason}");
        }
        let exec = [
            "exec",
            "--quiet",
            "--namespace",
            &node.namespace,
            &node.pod,
            "--",
            PROGRAM,
        ];
        let words: Vec<&str> = exec
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        self.start(&words)
    }

    fn start(&self, words: &[&str]) -> Result<Running> {
        let file = || tempfile::tempfile().context("creating a temporary file");
        // Files, which never fill up as pipes do.
        let (stdout, stderr) = (file()?, file()?);
        let mut command = Command::new("kubectl");
        command.args(&self.flags).args(words).stdin(Stdio::null());
        command
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?);
        let child = command.spawn().map_err(explain)?;
        Ok(Running {
            child,
            stdout,
            stderr,
            start: Instant::now(),
        })
    }
}

fn explain(error: std::io::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::NotFound => "executing kubectl, which must be in PATH",
        _ => "executing kubectl",
    };
    Error::from(error).context(hint)
}

impl Running {
    fn finish(mut self, timeout: Duration) -> Result<Output> {
        let status = loop {
            match self.child.try_wait().context("waiting for kubectl")? {
                Some(status) => break status,
                None if self.start.elapsed() > timeout => {
                    self.child.kill().context("ending kubectl")?;
                    self.child.wait().context("ending kubectl")?;
                    bail!("no answer within {timeout:?}");
                }
                None => sleep(POLL_INTERVAL),
            }
        };
        Ok(Output {
            status,
            stdout: text(&mut self.stdout)?,
            stderr: text(&mut self.stderr)?,
        })
    }
}

/// Whether a line is one of kubectl's log, which says five times that no API server answers before
/// kubectl says it: `E1126 16:02:24.123456   12345 memcache.go:265] ...`.
fn is_log(line: &str) -> bool {
    let (level, day) = line.split_at_checked(1).unwrap_or_default();
    let day = day.split_once(' ').map_or(day, |(day, _)| day);
    matches!(level, "E" | "I" | "W")
        && day.len() == 4
        && day.bytes().all(|digit| digit.is_ascii_digit())
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .context("reading what kubectl printed")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Output {
    /// Whether the command succeeded.
    pub fn is_ok(&self) -> bool {
        self.status.success()
    }

    /// Whether the API server refused it because the user lacks a right.
    pub fn is_forbidden(&self) -> bool {
        !self.is_ok() && self.stderr.contains("(Forbidden)")
    }

    /// What the command printed; if it failed, an error with its message.
    pub fn into_stdout(self) -> Result<String> {
        if self.is_ok() {
            return Ok(self.stdout);
        }
        bail!("{}", self.message())
    }

    /// The JSON that the command printed, even if it failed because of what it found.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T> {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => Ok(value),
            Err(_) if !self.is_ok() => bail!("{}", self.message()),
            Err(error) => Err(error).context("reading the answer; is it another version?"),
        }
    }

    /// The message of a command that failed, without what `kubectl exec` adds.
    pub fn message(&self) -> String {
        let lines = self.stderr.lines().map(str::trim);
        let is_noise =
            |line: &&str| line.is_empty() || line.starts_with("command terminated") || is_log(line);
        let lines = lines.filter(|line| !is_noise(line));
        let lines: Vec<&str> = lines
            .map(|line| line.trim_start_matches("macvtap: "))
            .collect();
        if lines.is_empty() {
            return format!("kubectl ended with {}", self.status);
        }
        lines.join("; ")
    }
}
