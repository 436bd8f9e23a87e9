//! The CNI plugin: environment and standard input in, one JSON document and an exit status out.
//!
//! Codes, texts and the order of checks are those of the reference implementation
//! (`containernetworking/cni`, package `skel`), so that runtimes read them.

mod add;
mod check;
mod config;
mod del;
mod environment;
mod error;
mod gc;
mod result;
mod status;
mod version;

use std::{
    env,
    io::{self, Read, Write},
    panic,
    path::Path,
    process::{self, ExitCode},
};

use anyhow::{Context, Result};
use log::{debug, error};
use serde_json::{Value, json};

pub use self::config::Args;
use self::{
    config::Config,
    environment::Environment,
    error::{CniError, code},
    version::Version,
};
use crate::host::{logging, netns::Netns};

/// The longest configuration that is read, in bytes. GC lists every attachment of a node.
const LONGEST_INPUT: u64 = 4 << 20;

/// One call of the plugin.
struct Call<'a> {
    environment: &'a Environment,
}

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
/// or nothing; true if it tells of no error.
pub fn answer(get: impl Fn(&str) -> String, stdin: &mut dyn Read, stdout: &mut dyn Write) -> bool {
    let Err(failure) = serve(get, stdin, stdout) else {
        return true;
    };
    let failure = CniError::from_chain(&failure);
    error!("failed code={}: {}", failure.code, failure.msg);
    // If standard output is closed, the exit status is all that is left to say.
    let _ = stdout.write_all(failure.to_json().as_bytes());
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

/// Says what the plugin is, as the reference implementation does when nobody says what to do.
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

/// A runtime that gets no JSON cannot tell its user anything.
fn print_panics() {
    panic::set_hook(Box::new(|panic| {
        let text = format!("macvtap has a fault, please report it: {panic}");
        let text = CniError::new(code::INTERNAL, text).to_json();
        let _ = Stdout.write_all(text.as_bytes());
        #[expect(clippy::exit, reason = "an abort would hide the exit status")]
        process::exit(1);
    }));
}

fn serve(get: impl Fn(&str) -> String, stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<()> {
    let environment = Environment::read(get)?;
    if environment.command == "VERSION" {
        return print(stdout, &versions());
    }
    let json = read_config(stdin)?;
    let configured = version::configured(&json)?;
    let since = |verb, since| version::supported_since(configured, verb, since);
    let call = Call {
        environment: &environment,
    };
    match environment.command.as_str() {
        "ADD" => {
            let version = version::supported(configured)?;
            start_logging(&environment, &json)?;
            call.add(&json, version, stdout)
        }
        "DEL" => {
            version::supported(configured)?;
            start_logging(&environment, &json)?;
            call.del(&json)
        }
        "CHECK" => {
            let version = since("CHECK", "0.4.0")?;
            start_logging(&environment, &json)?;
            call.check(&json, version)
        }
        "STATUS" => {
            since("STATUS", "1.1.0")?;
            status::status(&json)
        }
        "GC" => {
            since("GC", "1.1.0")?;
            start_logging(&environment, &json)?;
            gc::gc(&json)
        }
        unknown => {
            let text = format!("unknown CNI_COMMAND: {unknown}");
            Err(CniError::new(code::ENVIRONMENT, text).into())
        }
    }
}

fn versions() -> String {
    let versions = json!({
        "cniVersion": version::NEWEST,
        "supportedVersions": version::SUPPORTED,
    });
    format!("{versions}\n")
}

fn print(stdout: &mut dyn Write, text: &str) -> Result<()> {
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("writing the result to stdout")
        .map_err(|error| CniError::coded(code::IO, &error).into())
}

/// Reads the configuration, and checks what every verb needs of it.
fn read_config(stdin: &mut dyn Read) -> Result<Value> {
    let mut text = Vec::new();
    let length = stdin.take(LONGEST_INPUT + 1).read_to_end(&mut text);
    match length {
        Err(error) => {
            let text = format!("error reading from stdin: {error}");
            return Err(CniError::new(code::IO, text).into());
        }
        Ok(length) if u64::try_from(length)? > LONGEST_INPUT => {
            let text = format!("error reading from stdin: more than {LONGEST_INPUT} bytes");
            return Err(CniError::new(code::IO, text).into());
        }
        Ok(_) => {}
    }
    let wrong = |why: String| {
        let text = format!("error unmarshall network config: {why}");
        CniError::new(code::DECODING, text)
    };
    let json: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if !json.is_object() {
        return Err(wrong("it is not a JSON object".into()).into());
    }
    let refuse =
        |text: &str, details: &str| Err(CniError::detailed(code::CONFIG, text, details).into());
    match json.get("name") {
        None | Some(Value::Null) => refuse("missing network name", ""),
        Some(Value::String(name)) if name.is_empty() => refuse("missing network name", ""),
        Some(Value::String(name)) if !environment::is_name(name) => {
            refuse("invalid characters found in network name", name)
        }
        Some(Value::String(_)) => Ok(json),
        Some(other) => Err(wrong(format!("name is {other}, not a string")).into()),
    }
}

fn start_logging(environment: &Environment, json: &Value) -> Result<()> {
    let Some(logging) = config::logging(json)? else {
        return Ok(());
    };
    let Environment {
        command,
        container_id,
        ifname,
        args,
        ..
    } = environment;
    let mut context = vec![
        ("command", command.clone()),
        ("containerID", container_id.clone()),
        ("ifName", ifname.clone()),
    ];
    let args = Args::parse(args).ok();
    for (key, name) in [("pod", "K8S_POD_NAME"), ("namespace", "K8S_POD_NAMESPACE")] {
        if let Some(value) = args.as_ref().and_then(|args| args.get(name)) {
            context.push((key, value.to_owned()));
        }
    }
    if let Some(id) = config::device_id(json) {
        context.push(("deviceID", id.to_owned()));
    }
    logging::start_for_call(logging.level, logging.file.as_deref(), context);
    debug!("called");
    Ok(())
}

impl Call<'_> {
    fn add(&self, json: &Value, version: Version, stdout: &mut dyn Write) -> Result<()> {
        let netns = self.netns()?;
        let netns = netns.ok_or_else(|| self.no_netns("does not exist"))?;
        let config = Config::read(json, &self.environment.args, version)?;
        let attachment = add::add(self, &config, &netns)?;
        print(stdout, &attachment.result).map_err(|error| attachment.undo(error))
    }

    fn del(&self, json: &Value) -> Result<()> {
        del::del(self, json, self.netns()?.as_ref())
    }

    fn check(&self, json: &Value, version: Version) -> Result<()> {
        let netns = self.netns()?;
        let netns = netns.ok_or_else(|| self.no_netns("does not exist"))?;
        // MAC= of CNI_ARGS is not given on CHECK; the previous result has it.
        check::check(self, &Config::read(json, "", version)?, &netns)
    }

    /// The pod's network namespace, if there still is one. It must not be
    /// our own: the attachment would be made on, or removed from, the host.
    fn netns(&self) -> Result<Option<Netns>> {
        let path = &self.environment.netns;
        if path.is_empty() {
            return Ok(None);
        }
        let netns =
            Netns::open(Path::new(path)).map_err(|error| CniError::coded(code::NETNS, &error))?;
        if let Some(netns) = &netns
            && !self.environment.netns_override
            && netns.is(&Netns::current()?)?
        {
            let text = "plugin's netns and netns from CNI_NETNS should not be the same";
            return Err(CniError::new(code::NETNS, text).into());
        }
        Ok(netns)
    }

    fn no_netns(&self, why: &str) -> CniError {
        let text = format!("netns {} of CNI_NETNS {why}", self.environment.netns);
        CniError::new(code::NETNS, text)
    }
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
