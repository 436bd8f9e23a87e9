//! The READMEs against the code and the manifests: what they say has to be so.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Parser, error::ErrorKind};
use kit::{
    binary,
    netns::{Host, Node, tap_number},
};
use macvtap::{
    cli::{Cli, Kubectl},
    deviceplugin::config,
};
use serde_json::{Value, json};

use crate::manifests::{files, manifests, parse, render::DIRECTORIES, root};

/// A README, or another page: where it is, and what it says.
struct Readme {
    path: PathBuf,
    text: String,
}

impl Readme {
    fn of(dir: &str) -> Self {
        let path = root().join(dir).join("README.md");
        let text = fs::read_to_string(&path).unwrap();
        Self { path, text }
    }

    /// All of them.
    fn all() -> Vec<Self> {
        let mut paths = vec![root().join("README.md")];
        for dir in ["benches", "manifests", "src", "tests"] {
            files(&root().join(dir), &mut paths);
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
        assert!(paths.len() >= 8, "{paths:?}");
        let read = |path: PathBuf| Self {
            text: fs::read_to_string(&path).unwrap(),
            path,
        };
        paths.into_iter().map(read).collect()
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap()
    }

    /// The blocks of code, with the kind that each says it is.
    fn blocks(&self) -> Vec<(&str, &str)> {
        let blocks = self.text.split("```").skip(1).step_by(2);
        blocks
            .map(|block| block.split_once('\n').unwrap())
            .collect()
    }

    /// What is in backticks outside of blocks.
    fn spans(&self) -> Vec<&str> {
        let outside = self.text.split("```").step_by(2);
        let spans = outside.flat_map(|text| text.split('`').skip(1).step_by(2));
        spans.collect()
    }

    /// The first cells of the rows of the tables whose first heading is `heading`.
    fn first_cells(&self, heading: &str) -> Vec<String> {
        let start = format!("| {heading} | ");
        let tables = self
            .text
            .split("\n\n")
            .filter(|part| part.starts_with(&start));
        let rows = tables.flat_map(|table| table.lines().skip(2));
        let cells = rows.map(|row| row.split(" | ").next().unwrap().trim_start_matches("| "));
        cells.map(str::to_owned).collect()
    }

    /// The headings, as the anchors of links write them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.text.lines().filter(|line| line.starts_with('#'));
        let anchor = |line: &str| {
            let line = line.trim_start_matches('#').trim().to_lowercase();
            let kept = line
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        };
        headings.map(anchor).collect()
    }
}

#[test]
fn the_first_one_is_a_landing_page() {
    let readme = Readme::of("");
    let lines: Vec<&str> = readme.text.lines().collect();
    assert!(lines.len() <= 200, "{} lines", lines.len());
    let first_screen = lines[..30].join("\n");
    for command in ["cargo run --release -- selftest", "scripts/test"] {
        assert!(first_screen.contains(command), "{command}");
    }
}

/// The words of a line that are the same in every run.
fn constant(line: &str) -> Vec<&str> {
    let words = line.split_whitespace();
    words
        .filter(|word| !word.contains(|c: char| c.is_ascii_digit()))
        .collect()
}

#[test]
fn the_selftest_prints_what_is_shown() {
    let output = Command::new(binary()).arg("selftest").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: Vec<_> = printed.lines().map(constant).collect();
    let readme = Readme::of("");
    let (_, shown) = readme.blocks()[1];
    assert!(shown.lines().count() > 3, "{shown}");
    for line in shown.lines() {
        assert!(
            printed.contains(&constant(line)),
            "{line} is not in {printed:?}"
        );
    }
}

#[test]
fn tests_that_are_named_exist() {
    let all = Readme::all();
    let spans = all.iter().flat_map(Readme::spans);
    let named = spans.filter_map(|span| span.split_once("::"));
    let named: Vec<_> = named
        .filter(|(file, _)| file.starts_with("tests/"))
        .collect();
    assert!(named.len() > 15, "{named:?}");
    for (file, name) in named {
        let source = fs::read_to_string(root().join(file)).unwrap();
        let test = format!("#[test]\nfn {name}()");
        assert!(source.contains(&test), "{file}: {name}");
    }
}

#[test]
fn files_that_are_named_exist() {
    for readme in Readme::all() {
        for span in readme.spans() {
            let within = [
                "scripts/",
                "manifests/",
                "tests/",
                "src/",
                "benches/",
                ".cargo/",
            ];
            let path = span.split([' ', ':']).next().unwrap();
            if within.iter().any(|dir| path.starts_with(dir)) {
                assert!(
                    root().join(path).exists(),
                    "{}: {span}",
                    readme.path.display()
                );
            }
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for readme in Readme::all() {
        let shown = readme.path.display();
        for link in readme.text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => readme.path.clone(),
                path => readme.dir().join(path),
            };
            assert!(target.exists(), "{shown}: {link}");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let target = Readme { path: target, text };
                assert!(target.anchors().contains(anchor), "{shown}: {link}");
            }
        }
    }
}

#[test]
fn blocks_are_those_of_the_manifests_and_commands_exist() {
    let known: Vec<Value> = manifests().into_iter().map(|(_, value)| value).collect();
    for readme in Readme::all() {
        for (kind, text) in readme.blocks() {
            match kind {
                // An example of what to add, in the one README.
                "yaml" if readme.dir().ends_with("injection") => drop(parse(text)),
                "yaml" => assert!(known.contains(&parse(text)), "not in manifests/: {text}"),
                "json" => assert!(
                    config::parse(text, config::Context::default())
                        .unwrap()
                        .1
                        .is_empty(),
                    "{text}"
                ),
                "sh" => check_shell(text),
                "text" => {}
                other => panic!("{}: a block of kind {other:?}", readme.path.display()),
            }
        }
    }
}

/// Commands are ones that a test runs, or need a cluster; what they name exists.
fn check_shell(text: &str) {
    let tested = [
        "cargo run --release -- selftest",
        "cargo build --release",
        "cargo test --test node -- configuration",
        "NRI_STARTS=1000 NRI_CREATIONS=150 cargo test --test guests -- consumers::nri --nocapture",
        "UPDATE_README=1 cargo test --test machine -- captures",
        "scripts/",
        ".ci/run",
    ];
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let in_cluster = ["kubectl", "virtctl"].contains(&words[0]);
        let known = tested.iter().any(|known| line.starts_with(known));
        assert!(in_cluster || known, "untested: {line}");
        let named = words.iter().filter(|word| {
            word.starts_with("manifests")
                || word.starts_with("scripts/")
                || word.starts_with(".ci/")
        });
        for name in named {
            assert!(root().join(name).exists(), "{line}");
        }
        if let Some(at) = words.iter().position(|word| *word == "-k") {
            let kustomization = root().join(words[at + 1]).join("kustomization.yaml");
            assert!(kustomization.exists(), "{line}");
        }
    }
}

/// Whether the program takes a command line, with a value for what stands for one.
fn is_taken(line: &str) -> bool {
    let line = line.replace("ADDRESS", "192.0.2.1");
    let line = line.replacen("kubectl macvtap", "kubectl-macvtap", 1);
    let mut words = line.split_whitespace().peekable();
    let parsed = if words.peek() == Some(&"kubectl-macvtap") {
        Kubectl::try_parse_from(words).map(drop)
    } else {
        Cli::try_parse_from(words).map(drop)
    };
    // The name of a command without what it needs is no command line.
    let incomplete = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    parsed.map_or_else(|error| incomplete.contains(&error.kind()), |()| true)
}

#[test]
fn commands_that_are_named_are_taken() {
    let mut checked = 0;
    for readme in Readme::all() {
        let blocks = readme.blocks().into_iter();
        let shell = blocks.filter(|(kind, _)| *kind == "sh");
        let lines = shell.flat_map(|(_, text)| text.lines());
        for line in readme.spans().into_iter().chain(lines) {
            let line = line.split(" #").next().unwrap();
            let line = line.rsplit_once(" -- ").map_or(line, |(_, inside)| inside);
            if line.starts_with("macvtap ") || line.starts_with("kubectl macvtap ") {
                assert!(is_taken(line), "{}: {line}", readme.path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "{checked}");
}

/// The text of the program: its sources without comments, each message in one line.
fn program() -> String {
    let mut paths = Vec::new();
    files(&root().join("src"), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let texts = paths.iter().map(|path| fs::read_to_string(path).unwrap());
    let texts: Vec<String> = texts.collect();
    let lines = texts.iter().flat_map(|text| text.lines().map(str::trim));
    let mut program = String::new();
    for line in lines.filter(|line| !line.starts_with("//")) {
        match line.strip_suffix('\\') {
            Some(start) => program += start,
            None => program.extend([line, "\n"]),
        }
    }
    program.replace("\\\"", "\"")
}

/// What a message says whatever it is about, between the places for names and numbers.
fn fixed_parts(message: &str) -> Vec<String> {
    let mut message = message.to_owned();
    for example in [
        "\"eth0\"",
        "\"br0\"",
        "/dev/tapN",
        "entry 2",
        "9000",
        "1500",
    ] {
        message = message.replace(example, "...");
    }
    let parts = message.split("...").map(str::trim);
    let parts = parts.filter(|part| part.len() > 3);
    parts.map(str::to_owned).collect()
}

/// Of the scheduler, and of libvirt.
const OF_OTHERS: [&str; 3] = [
    "Insufficient macvtap.network.kubevirt.io/",
    "cannot open macvtap tap device",
    "Unable to create tap device",
];

#[test]
fn messages_that_are_quoted_are_the_programs() {
    let (program, mut checked) = (program(), 0);
    for dir in ["", "manifests"] {
        for cell in Readme::of(dir).first_cells("message") {
            let quoted = cell.split('`').nth(1).unwrap_or_default();
            if OF_OTHERS.iter().any(|other| quoted.starts_with(other)) {
                continue;
            }
            for part in fixed_parts(quoted) {
                assert!(program.contains(&part), "{quoted}: {part:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 12, "{checked}");
    let injection = Readme::of("manifests/injection");
    let mut quoted = injection.spans().into_iter();
    let quoted = quoted.find(|span| span.ends_with(" ...")).unwrap();
    assert!(
        fixed_parts(quoted)
            .iter()
            .all(|part| program.contains(part))
    );
}

/// The keys that the sources in these files read from JSON.
fn keys_in(sources: &[&str]) -> BTreeSet<String> {
    let calls = [
        ".value(",
        ".text(",
        ".flag(",
        ".number(",
        ".object(",
        ".integer(",
        ".amount(",
        ".texts(",
        "(id(",
        "number(fields, ",
        ".value(",
        " id(",
    ];
    let mut keys = BTreeSet::new();
    for source in sources {
        let text = fs::read_to_string(root().join(source)).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for call in calls {
            let arguments = text.split(call).skip(1);
            let literals = arguments.filter_map(|rest| rest.trim_start().strip_prefix('"'));
            keys.extend(literals.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    keys
}

/// Every key that the code reads is described, and every key in the tables is read.
#[test]
fn the_tables_of_keys_are_those_of_the_code() {
    let readme = Readme::of("manifests/examples");
    let read = keys_in(&[
        "src/cni/config.rs",
        "src/cni/options.rs",
        "src/cni/ipam_config.rs",
        "src/cni/mac_policy.rs",
        "src/cni/policy.rs",
        "src/deviceplugin/config.rs",
        "src/deviceplugin/config_selector.rs",
        "src/types/port_options.rs",
        "src/types/resource_options.rs",
        "src/types/vlan.rs",
    ]);
    assert!(read.len() > 12, "{read:?}");
    let spans = readme.spans();
    let words = spans
        .iter()
        .flat_map(|span| span.split(['.', ' ', '"', ':']));
    let described: BTreeSet<&str> = words.collect();
    for key in &read {
        assert!(described.contains(key.as_str()), "not described: {key}");
    }
    let headings = ["key", "key of `lowerDevice`", "key of `discover`"];
    let listed: Vec<String> = headings
        .iter()
        .flat_map(|heading| readme.first_cells(heading))
        .collect();
    assert!(listed.len() > 12, "{listed:?}");
    for cell in listed {
        assert!(read.contains(cell.trim_matches('`')), "not read: {cell}");
    }
}

/// The device ID is enough to attach, so a slip in a key that networks may have for other plugins,
/// or for a later version, does not matter, but for the keys that the page names.
#[test]
fn wrong_values_fail_add_for_the_keys_that_the_page_names() {
    let Readme { path, text } = Readme::of("manifests/examples");
    let (_, text) = text.split_once("## The CNI plugin").unwrap();
    let (_, named) = text.split_once("does not read, except for").unwrap();
    let (named, _) = named.split_once(": a wrong one fails ADD").unwrap();
    let named = named.split('`').skip(1).step_by(2);
    // As kubevirt/macvtap-cni reads them.
    let of_the_original = ["deviceID", "group", "mtu", "owner", "promiscMode"];
    let strict: BTreeSet<&str> = named.chain(of_the_original).collect();
    let text = text.to_owned();
    let cells = Readme { path, text }.first_cells("key");
    let keys: Vec<&str> = cells.iter().map(|cell| cell.trim_matches('`')).collect();
    assert!(keys.len() > 25, "{keys:?}");
    let node = Node::new();
    let fails = |key: &&str| {
        let (pod, number) = (Host::new(), tap_number());
        let call = node.allocated(&pod, number);
        let wrong = json!({"no such key": true});
        !call.with(key, wrong).output("ADD").status.success()
    };
    let failing: BTreeSet<&str> = keys.into_iter().filter(fails).collect();
    assert_eq!(failing, strict);
}

#[test]
fn the_tables_of_components_and_directories_are_those_of_the_manifests() {
    let readme = Readme::of("manifests");
    let listed = readme.first_cells("component");
    let listed = listed.iter().flat_map(|cell| cell.split(", "));
    let listed: BTreeSet<&str> = listed.map(|name| name.trim_matches('`')).collect();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("manifests/components")).unwrap() {
        found.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    assert_eq!(listed, found.iter().map(String::as_str).collect());
    for (component, path) in DIRECTORIES {
        let row = format!("| `{path}` | component `{component}` |");
        assert!(readme.text.contains(&row), "{row}");
    }
}

/// The packages that `scripts/fetch` installs are listed.
#[test]
fn the_packages_of_the_tests_are_listed() {
    let readme = Readme::of("tests");
    let mut text = String::new();
    for script in ["scripts/fetch", "scripts/guest"] {
        text += &fs::read_to_string(root().join(script)).unwrap();
    }
    let text = text.replace("\\\n", " ");
    let lists = text.lines().filter_map(|line| {
        let line = line.trim();
        let required = line.strip_prefix("scripts/packages ");
        required.or_else(|| line.strip_prefix("for package in "))
    });
    let words = lists.flat_map(|list| list.split([' ', ';', '|']));
    let name = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase()) && *word != "do";
    let packages: Vec<&str> = words
        .take_while(|word| *word != "echo")
        .filter(name)
        .collect();
    assert!(packages.len() > 8, "{packages:?}");
    for package in packages {
        assert!(readme.spans().contains(&package), "{package}");
    }
}
