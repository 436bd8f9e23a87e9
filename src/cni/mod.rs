//! The CNI plugin: environment and standard input in, one JSON document and an exit status out.
//!
//! Codes, texts and the order of checks are those of the reference implementation
//! (`containernetworking/cni`, package `skel`), so that runtimes read them.

mod add;
mod allocation;
mod attachment;
mod check;
mod config;
mod del;
mod delegate;
mod environment;
mod error;
mod gc;
mod hand_over;
mod identity;
mod input;
mod ipam_config;
mod ipam_result;
mod mac_policy;
mod options;
mod output;
mod pod_keys;
mod policy;
mod result;
mod status;
mod version;

use std::{
    env, fmt,
    io::{self, Read, Write},
    panic,
    path::Path,
    process::{self, ExitCode},
};

use log::{debug, error, warn};
use serde_json::Value;

pub use self::config::Args;
use self::{
    config::Config,
    environment::{Environment, Verb},
    error::{CniError, Result, code},
    input::Input,
    output::print,
    version::Version,
};
use crate::host::{
    logging,
    netns::{Netns, NetnsError},
};

/// Runs the plugin as a runtime calls it.
#[must_use]
pub fn main() -> ExitCode {
    print_panics();
    let get = |name: &str| {
        let value = env::var_os(name).unwrap_or_default();
        value.to_string_lossy().into_owned()
    };
    if answer(get, &mut io::stdin().lock(), &mut Stdout) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Does what the environment, by `get`, and `stdin` ask for. One JSON document goes to `stdout`,
/// or nothing; true if it is not an error.
pub fn answer(get: impl Fn(&str) -> String, stdin: &mut dyn Read, stdout: &mut dyn Write) -> bool {
    let Err(failure) = serve(get, stdin, stdout) else {
        return true;
    };
    error!(code = failure.code; "{}", failure.msg);
    if stdout
        .write_all(output::error(&failure).as_bytes())
        .is_err()
    {
        // Where there is no document, runtimes report standard error.
        let _ = writeln!(io::stderr(), "macvtap: {failure}");
    }
    false
}

/// Standard output without the buffer of [`io::Stdout`], which would write a document line by
/// line: what cannot be written whole must not be written at all.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        nix::unistd::write(io::stdout(), bytes).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says what the plugin is, as the reference implementation does without `CNI_COMMAND`.
pub fn about(stderr: &mut dyn Write) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    let versions = version::SUPPORTED.join(", ");
    let text = format!(
        "CNI macvtap plugin v{version}\n\
         CNI protocol versions supported: {versions}\n\
         For everything else that this program does: macvtap --help\n"
    );
    let _ = stderr.write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// A runtime reports what JSON says, and nothing else.
fn print_panics() {
    panic::set_hook(Box::new(|panic| {
        let text = format!("internal error, please report it: {panic}");
        let text = output::error(&CniError::new(code::INTERNAL, text));
        let _ = Stdout.write_all(text.as_bytes());
        #[expect(clippy::exit, reason = "an abort would hide the exit status")]
        process::exit(1);
    }));
}

fn serve(get: impl Fn(&str) -> String, stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<()> {
    let environment = Environment::read(get)?;
    if environment.verb == Verb::Version {
        return print(stdout, &output::versions());
    }
    let input = Input::read(stdin)?;
    let version = check_version(&environment.verb, version::configured(&input.json)?)?;
    if environment.verb != Verb::Status {
        start_logging(&environment, &input.json);
    }
    match environment.verb {
        Verb::Add => add(&environment, &input, version, stdout),
        Verb::Del => del(&environment, &input),
        Verb::Check => check(&environment, &input, version),
        Verb::Status => status::status(&environment, &input),
        Verb::Gc => gc::gc(&environment, &input),
        Verb::Version | Verb::Unknown(_) => Ok(()),
    }
}

/// The configured version, if it is ours and has the verb.
fn check_version(verb: &Verb, configured: &str) -> Result<Version> {
    let since = |version| version::supported_since(configured, verb.name(), version);
    match verb {
        Verb::Add | Verb::Del | Verb::Version => version::supported(configured),
        Verb::Check => since("0.4.0"),
        Verb::Status | Verb::Gc => since("1.1.0"),
        Verb::Unknown(name) => {
            let text = format!("unknown CNI_COMMAND: {name}");
            Err(CniError::new(code::ENVIRONMENT, text))
        }
    }
}

fn check(environment: &Environment, input: &Input, version: Version) -> Result<()> {
    // Multus does not repeat MAC= of CNI_ARGS on CHECK; the previous result has the MAC.
    let config = Config::read(&input.json, "", version)?;
    let netns = open_netns(environment)?;
    let checked = check::check(environment, &config, &netns);
    checked.map_err(|error| explain(error, environment, &netns))?;
    input.forward(environment)
}

fn add(
    environment: &Environment,
    input: &Input,
    version: Version,
    stdout: &mut dyn Write,
) -> Result<()> {
    let netns = open_netns(environment)?;
    let config = Config::read(&input.json, &environment.args, version)?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let attachment = add::add(environment, &config, &netns, &input.text);
    // Of a call that fails the runtime reports the error alone.
    let attachment = attachment
        .map_err(|error| explain(error, environment, &netns).with_details(&config.warnings))?;
    match print(stdout, &attachment.result) {
        Ok(()) => {
            attachment.keep();
            Ok(())
        }
        Err(error) => Err(attachment.undo(error)),
    }
}

/// What is at the path may be no pod's netns. Then nothing of ours is there, and the node of the
/// tap is all that can be left.
fn del(environment: &Environment, input: &Input) -> Result<()> {
    let netns = match find_netns(environment) {
        Ok(Some(netns)) if !netns.is_network()? => {
            warn!(netns = environment.netns.as_str(); "this is a namespace of another kind");
            None
        }
        Ok(netns) => netns,
        Err(NoPod::Failed(error)) => return Err(CniError::coded(code::NETNS, &error)),
        Err(none) => {
            warn!(netns = environment.netns.as_str(); "nothing can be attached there: {none}");
            None
        }
    };
    del::del(environment, input, netns.as_ref())
}

/// The pod's network namespace, which has to exist.
fn open_netns(environment: &Environment) -> Result<Netns> {
    let refuse = |text: String| CniError::new(code::NETNS, text);
    let found = find_netns(environment).map_err(|error| refuse(error.to_string()))?;
    found.ok_or_else(|| {
        refuse(format!(
            "netns {} of CNI_NETNS does not exist",
            environment.netns
        ))
    })
}

/// Why something failed in what should be the pod's network namespace. Only entering it shows that
/// a mounted namespace is of another kind.
fn explain(error: CniError, environment: &Environment, netns: &Netns) -> CniError {
    match netns.is_network() {
        Ok(false) => {
            let text = NetnsError::Other(environment.netns.clone()).to_string();
            CniError::new(code::NETNS, text)
        }
        _ => error,
    }
}

/// The pod's network namespace, if there still is one. It must not be our own: the attachment
/// would be made on, or removed from, the host.
fn find_netns(environment: &Environment) -> std::result::Result<Option<Netns>, NoPod> {
    if environment.netns.is_empty() {
        return Ok(None);
    }
    let netns = Netns::open(Path::new(&environment.netns))?;
    match &netns {
        Some(pod) if !environment.netns_override && pod.is(&Netns::current()?)? => Err(NoPod::Own),
        _ => Ok(netns),
    }
}

/// Why `CNI_NETNS` is not a pod's network namespace.
enum NoPod {
    /// It is the plugin's own.
    Own,
    /// It is something else.
    Other(String),
    /// It could not be looked at.
    Failed(anyhow::Error),
}

impl fmt::Display for NoPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The reference implementation's text.
            Self::Own => {
                f.write_str("plugin's netns and netns from CNI_NETNS should not be the same")
            }
            Self::Other(text) => f.write_str(text),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<NetnsError> for NoPod {
    fn from(error: NetnsError) -> Self {
        match error {
            NetnsError::Other(_) => Self::Other(error.to_string()),
            NetnsError::Failed(error) => Self::Failed(error),
        }
    }
}

impl From<anyhow::Error> for NoPod {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Logs as the configuration says; warnings go to standard error where it says nothing. What is
/// wrong about that is a warning: it costs no pod its network.
fn start_logging(environment: &Environment, json: &Value) {
    let (logging, warnings) = config::logging(json);
    match logging {
        Some(logging) => {
            let context = context(environment, json);
            logging::start_for_call(logging.level, logging.file.as_deref(), context);
        }
        None => logging::start_for_warnings(),
    }
    for warning in warnings {
        warn!("{warning}");
    }
    debug!("called");
}

fn context(environment: &Environment, json: &Value) -> logging::Context {
    let mut context = vec![
        ("command", environment.verb.name().to_owned()),
        ("containerID", environment.container_id.clone()),
        ("ifName", environment.ifname.clone()),
    ];
    let args = Args::parse(&environment.args).ok();
    for (key, name) in [("pod", "K8S_POD_NAME"), ("namespace", "K8S_POD_NAMESPACE")] {
        let value = args.as_ref().and_then(|args| args.get(name));
        context.extend(value.map(|value| (key, value.to_owned())));
    }
    context.extend(config::device_id(json).map(|id| ("deviceID", id.to_owned())));
    context
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Not a test: what [`a_panic_still_prints_an_error_object`] runs in a process of its own.
    #[test]
    #[ignore = "it panics, and ends the process"]
    fn panic_in_a_process_of_its_own() {
        print_panics();
        panic!("of a test");
    }

    #[test]
    fn a_panic_still_prints_an_error_object() {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--ignored", "--nocapture", "panic_in_a_process_of_its_own"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        let object = &text[text.find('{').unwrap()..];
        let error: Value = serde_json::from_str(object).unwrap();
        assert_eq!(error["code"], code::INTERNAL);
        assert!(
            error["msg"].as_str().unwrap().contains("of a test"),
            "{error}"
        );
    }
}
