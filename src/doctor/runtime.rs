//! The container runtime and the kubelet of a node: which of the ways to a tap it has.

use std::{fs, path::Path, process::Command};

use super::{
    finding::Finding,
    requests::{self, Kind, Runtime},
};
use crate::{
    cli,
    deviceplugin::status,
    host::{
        container,
        program::{self, Bounds},
    },
    types::release::Release,
};

/// Whether the runtime has NRI, and what pods need for their taps. Once NRI is in use, the device
/// plugin's status says so.
pub fn findings(options: &cli::Doctor) -> Vec<Finding> {
    let check = "requests";
    let status = status::query(&options.kubelet_dir).ok();
    let nri = status.and_then(|status| status.nri);
    if nri.is_some_and(|nri| nri.ready) {
        let text = "pods need none: the device plugin gives taps by NRI";
        return vec![Finding::ok(check, text)];
    }
    let serves_nri = options.nri_socket.exists();
    let runtime = [Kind::Containerd, Kind::Crio]
        .into_iter()
        .find_map(|kind| find(kind, &options.runtime_conf_dir, serves_nri));
    let kubernetes = printed("kubelet").as_deref().and_then(Release::find);
    let needs = Finding::note(check, requests::needs(kubernetes, runtime));
    vec![of_runtime(runtime, &options.nri_socket), needs]
}

fn of_runtime(runtime: Option<Runtime>, nri_socket: &Path) -> Finding {
    let check = "runtime";
    match runtime {
        Some(runtime) => Finding::ok(check, runtime.nri()),
        None if nri_socket.exists() => {
            let text = format!("NRI is enabled: {} exists", nri_socket.display());
            Finding::ok(check, text)
        }
        None if container::is_ours() => {
            let text = "not visible in this container; run doctor on the node";
            Finding::note(check, text)
        }
        None => Finding::note(check, "neither containerd nor crio is in PATH"),
    }
}

/// The runtime, if its program is there.
fn find(kind: Kind, conf_dir: &Path, serves_nri: bool) -> Option<Runtime> {
    let (program, section, key) = match kind {
        Kind::Containerd => ("containerd", "io.containerd.nri.v1.nri", "disable"),
        Kind::Crio => ("crio", "crio.nri", "enable_nri"),
    };
    let text = printed(program)?;
    let value = requests::switch(&configuration(kind, conf_dir), section, key);
    Some(Runtime {
        kind,
        release: Release::find(&text),
        configured: value.map(|value| value == (kind == Kind::Crio)),
        serves_nri,
    })
}

/// The runtime's configuration files, one after the other. Later ones override.
fn configuration(kind: Kind, dir: &Path) -> String {
    let (file, drop_ins) = match kind {
        Kind::Containerd => ("containerd/config.toml", "containerd/conf.d"),
        Kind::Crio => ("crio/crio.conf", "crio/crio.conf.d"),
    };
    let entries = fs::read_dir(dir.join(drop_ins)).into_iter().flatten();
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.insert(0, dir.join(file));
    let texts = paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    texts.collect::<Vec<_>>().join("\n")
}

/// What a program prints as its version; none if it cannot be executed.
fn printed(program: &str) -> Option<String> {
    let mut command = Command::new(program);
    let output = program::run(command.arg("--version"), b"", Bounds::SHORT);
    Some(String::from_utf8_lossy(&output.ok()?.stdout).into_owned())
}
