//! Writes which functions calls and an idle device plugin execute: order FILE
//!
//! Called by `scripts/order`, with a binary that has its symbols.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use kit::{
    binary,
    kubelet::{Plugin, RESOURCE, command_with_file, connected},
    netns::{Case, names},
};
use macvtap::selftest::kubelet::Kubelet;

/// Longer than all that the device plugin does without a cause takes to come again.
const IDLE: Duration = Duration::from_secs(15);

const HEAD: &str = "\
# What runs in an ordinary call (c), in a device plugin that has nothing to do but to answer calls
# (d), or in both (b): functions, and object files of the C library. build.rs puts them side by side;
# scripts/order writes this file.
";

fn main() {
    let Some(file) = env::args().nth(1) else {
        println!("run scripts/order");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (calls, plugin) = (dir.path().join("calls"), dir.path().join("plugin"));
    for dir in [&calls, &plugin] {
        fs::create_dir(dir).unwrap();
    }
    run(&calls, &plugin);
    let objects = objects();
    let (calls, plugin) = (executed(&calls, &objects), executed(&plugin, &objects));
    let kind = |name: &String| match (calls.contains(name), plugin.contains(name)) {
        (true, true) => 'b',
        (true, false) => 'c',
        _ => 'd',
    };
    let lines = calls.union(&plugin);
    let lines: Vec<String> = lines
        .map(|name| format!("{} {name}\n", kind(name)))
        .collect();
    fs::write(file, HEAD.to_owned() + &lines.concat()).unwrap();
}

/// The words by which a program writes to `dir` which functions it executes.
fn callgrind(dir: &Path) -> [String; 4] {
    let out = format!("--callgrind-out-file={}/%p", dir.display());
    ["valgrind", "--tool=callgrind", "--demangle=no", &out].map(str::to_owned)
}

fn run(calls: &Path, plugin: &Path) {
    let (case, dir) = (Case::new(), tempfile::tempdir().unwrap());
    let words = callgrind(plugin);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = command_with_file(&words, dir.path());
    let mut plugin = Plugin::spawn(&case.node.host, command);
    plugin.wait_for_log("not registered");
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let resource = connected(&kubelet);
    plugin.wait_for_log("learning");
    let id = resource.healthy().swap_remove(0);
    kubelet.allocate(RESOURCE, &[id]).unwrap();
    let words = callgrind(calls);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let call = case.call().by(&words);
    for call in [call.clone(), call.with("mac", "02:00:00:00:00:01")] {
        assert_eq!(call.call("VERSION").status, 0);
        call.succeed("STATUS");
        let call = call.added();
        call.succeed("CHECK");
        call.succeed("DEL");
    }
    let mut probe = Command::new(binary());
    probe.args(["probe", "--kubelet-dir"]).arg(dir.path());
    assert!(probe.status().unwrap().success());
    thread::sleep(IDLE);
    plugin.signal("TERM");
    plugin.end();
}

/// The object files of the C library, by the functions in them.
fn objects() -> BTreeMap<String, BTreeSet<String>> {
    let libc = output(Command::new("cc").arg("-print-file-name=libc.a"));
    let list = output(Command::new("nm").args(["-A", "--defined-only", libc.trim()]));
    let mut objects: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in list.lines() {
        // libc.a:malloc.o:0000000000000000 T malloc
        let mut parts = line.rsplitn(3, ':');
        let name = parts.next().and_then(|symbol| symbol.split(' ').nth(2));
        if let (Some(name), Some(object)) = (name, parts.next()) {
            let of_name = objects.entry(name.to_owned()).or_default();
            of_name.insert(object.to_owned());
        }
    }
    objects
}

fn output(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// What programs executed, as callgrind wrote it to `dir`: patterns of mangled names, and the object
/// files of the C library.
fn executed(dir: &Path, objects: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let files = names(dir).into_iter().map(|name| dir.join(name));
    let texts: Vec<String> = files
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let patterns = lines.filter_map(function).filter_map(|name| {
        let only = |objects: &BTreeSet<String>| {
            let object = objects.first().filter(|_| objects.len() == 1);
            object.cloned()
        };
        pattern(name).or_else(|| objects.get(name).and_then(only))
    });
    patterns.collect()
}

/// The function that a line names: `fn=(12) name`, or `cfn=` of one that is called.
fn function(line: &str) -> Option<&str> {
    let named = line
        .strip_prefix('c')
        .unwrap_or(line)
        .strip_prefix("fn=(")?;
    let (_, name) = named.split_once(") ")?;
    // A recursion is 'number.
    name.split('\'').next()
}

/// A mangled name of Rust, with `*` for what comes of the versions of compiler and libraries: the hash
/// at the end, or that of each crate.
fn pattern(name: &str) -> Option<String> {
    if name.starts_with("_ZN") {
        let (path, _) = name.rsplit_once("17h")?;
        return Some(format!("{path}17h*"));
    }
    let name = name.strip_prefix("_R")?.split('.').next()?;
    let mut parts = name.split("Cs");
    let first = parts.next()?;
    let rest = parts.map(|part| match part.split_once('_') {
        Some((_, rest)) => format!("Cs*_{rest}"),
        None => format!("Cs{part}"),
    });
    Some(format!("_R{first}{}*", rest.collect::<String>()))
}
