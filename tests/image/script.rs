//! The options of `scripts/image`, without a runtime.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kit::{binary, netns::skipped, root};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::registry::Registry;

/// A directory for what the script makes, with binaries to make it of.
struct Work(TempDir);

impl Work {
    fn new() -> Self {
        Self(tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The binary under test, made to say that it is for another machine.
    fn binary_for(&self, machine: u8) -> PathBuf {
        let mut bytes = fs::read(binary()).unwrap();
        bytes[18] = machine;
        let path = self.path(&format!("macvtap-{machine}"));
        fs::write(&path, bytes).unwrap();
        path
    }

    fn run(&self, words: &[&str], binaries: &[&Path]) -> Output {
        let mut command = Command::new(root().join("scripts/image"));
        command.arg("--output").arg(self.0.path()).args(words);
        // Images that podman loads stay the test's own.
        let storage = self.path("storage.conf");
        let dir = self.0.path().display();
        let text = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = \"{dir}/run\"\ngraphroot = \"{dir}/graph\"\n"
        );
        fs::write(&storage, text).unwrap();
        command.env("CONTAINERS_STORAGE_CONF", storage);
        for binary in binaries {
            command.arg("--binary").arg(binary);
        }
        command.output().unwrap()
    }

    fn made(&self, words: &[&str], binaries: &[&Path]) -> String {
        let output = self.run(words, binaries);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, words: &[&str], binaries: &[&Path]) -> String {
        let output = self.run(words, binaries);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty() && !self.path("image.tar").exists());
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        let bytes = fs::read(self.path("image/oci").join(name)).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// What a descriptor describes.
    fn described(&self, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().unwrap();
        self.json(&digest.replace("sha256:", "blobs/sha256/"))
    }
}

const X86_64: u8 = 62;
const AARCH64: u8 = 183;
const S390X: u8 = 22;

#[test]
fn a_tag_comes_after_the_last_slash() {
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    for (name, tag) in [
        ("macvtap", version.as_str()),
        ("registry.example:5000/a/macvtap", &version),
        ("registry.example:5000/macvtap:1", "1"),
        ("localhost/macvtap:latest", "latest"),
    ] {
        let work = Work::new();
        let text = work.made(&[name], &[&binary()]);
        let full = format!(
            "{} sha256:",
            if name.ends_with(tag) {
                name.into()
            } else {
                format!("{name}:{tag}")
            }
        );
        assert!(text.starts_with(&full), "{text}");
        let annotations = &work.json("index.json")["manifests"][0]["annotations"];
        assert_eq!(annotations["org.opencontainers.image.ref.name"], tag);
        assert_eq!(
            annotations["io.containerd.image.name"],
            full.split(' ').next().unwrap()
        );
        assert_eq!(
            work.json("manifest.json")[0]["RepoTags"][0],
            full.split(' ').next().unwrap()
        );
    }
}

#[test]
fn its_time_is_that_of_the_commit_or_of_source_date_epoch() {
    let work = Work::new();
    work.made(&[], &[&binary()]);
    let created = |work: &Work| {
        let manifest = work.described(&work.json("index.json")["manifests"][0]);
        let config = work.described(&manifest["config"]);
        let label = &config["config"]["Labels"]["org.opencontainers.image.created"];
        assert_eq!(*label, config["created"]);
        config["created"].as_str().unwrap().to_owned()
    };
    let mut git = Command::new("git");
    git.env("TZ", "UTC").arg("-C").arg(root());
    git.args([
        "log",
        "-1",
        "--date=format-local:%Y-%m-%dT%H:%M:%SZ",
        "--format=%cd",
    ]);
    let output = git.output().unwrap();
    if output.status.success() {
        assert_eq!(
            created(&work),
            String::from_utf8(output.stdout).unwrap().trim()
        );
    } else {
        assert_eq!(created(&work), "1970-01-01T00:00:00Z");
    }
    let mut command = Command::new(root().join("scripts/image"));
    command
        .env("SOURCE_DATE_EPOCH", "86400")
        .arg("--output")
        .arg(work.0.path());
    assert!(
        command
            .arg("--binary")
            .arg(binary())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(created(&work), "1970-01-02T00:00:00Z");
}

/// The binary says which it was linked with, wherever it was built.
#[test]
fn the_bill_of_materials_has_the_c_library_and_rusts_own() {
    let work = Work::new();
    work.made(&[], &[&binary()]);
    let bytes = fs::read(work.path("image.cdx.json")).unwrap();
    let bill: Value = serde_json::from_slice(&bytes).unwrap();
    let components = bill["components"].as_array().unwrap();
    let of = |name: &str| components.iter().find(|one| one["name"] == name).unwrap();
    let program = String::from_utf8_lossy(&fs::read(binary()).unwrap()).into_owned();
    let glibc = &["Debian GLIBC ", "release version "][..];
    for (name, before) in [("glibc", glibc), ("rust-std", &["rustc version "])] {
        let version = of(name)["version"].as_str().unwrap();
        let mut said = before.iter().map(|before| format!("{before}{version}"));
        assert!(said.any(|said| program.contains(&said)), "{version}");
        let needed = &bill["dependencies"].to_string();
        assert!(needed.contains(of(name)["bom-ref"].as_str().unwrap()));
    }
}

#[test]
fn several_binaries_make_an_index() {
    let work = Work::new();
    let binaries = [X86_64, AARCH64].map(|machine| work.binary_for(machine));
    let text = work.made(&[], &[&binaries[1], &binaries[0]]);
    let index = work.described(&work.json("index.json")["manifests"][0]);
    assert_eq!(
        index["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    let mut digests = Vec::new();
    for (place, name) in ["amd64", "arm64"].into_iter().enumerate() {
        let image = &index["manifests"][place];
        assert_eq!(image["platform"]["architecture"], name);
        let config = work.described(&work.described(image)["config"]);
        assert_eq!(config["architecture"], name);
        digests.push(config["rootfs"]["diff_ids"][0].clone());
    }
    assert_ne!(digests[0], digests[1]);
    // In whatever order they are given.
    assert_eq!(work.made(&[], &[&binaries[0], &binaries[1]]), text);
    let archive = format!("oci-archive:{}", work.path("image.tar").display());
    let mut skopeo = Command::new("skopeo");
    match skopeo.args(["inspect", "--raw", &archive]).output() {
        Ok(output) => assert_eq!(
            serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            index
        ),
        Err(_) => skipped("no skopeo on this machine"),
    }
}

/// Pushes the image of these binaries; what the registry has then.
fn pushed(work: &Work, program: &str, binaries: &[&Path]) -> Option<Value> {
    if Command::new(program).arg("--version").output().is_err() {
        skipped(&format!("no {program} on this machine"));
        return None;
    }
    let registry = Registry::start();
    let name = format!("{}/a/macvtap:1", registry.address);
    let words = [&name, "--push", "--push-with", program, "--plain-http"];
    let text = work.made(&words, binaries);
    assert!(text.ends_with(&format!("pushed {name}\n")), "{text}");
    let pushed = registry.manifest("a/macvtap", "1");
    assert!(registry.is_complete("a/macvtap", &pushed), "{pushed}");
    Some(pushed)
}

#[test]
fn skopeo_pushes_all_architectures() {
    let work = Work::new();
    let other = work.binary_for(AARCH64);
    if let Some(pushed) = pushed(&work, "skopeo", &[&binary(), &other]) {
        assert_eq!(pushed["manifests"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn podman_pushes_one_architecture() {
    let work = Work::new();
    if let Some(pushed) = pushed(&work, "podman", &[&binary()]) {
        assert_eq!(pushed["layers"].as_array().unwrap().len(), 1);
        let other = work.binary_for(AARCH64);
        let words = ["a/b", "--push", "--push-with", "podman"];
        let output = work.run(&words, &[&binary(), &other]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("one architecture only; install skopeo"),
            "{text}"
        );
    }
}

#[test]
fn a_wrong_name_is_answered_by_what_to_type() {
    let (work, good) = (Work::new(), binary());
    for (name, expected) in [
        ("Macvtap", "use one such as registry.example/macvtap"),
        ("a b", "use one such as registry.example/macvtap"),
        (
            "registry:port/macvtap",
            "use one such as registry.example/macvtap",
        ),
        ("", "use one such as registry.example/macvtap"),
        ("macvtap:", "use one such as v"),
        ("macvtap:a:b", "use one such as v"),
        ("macvtap@sha256:00", "use NAME:TAG"),
    ] {
        let text = work.refused(&[name], &[&good]);
        assert!(text.contains(expected), "{name}: {text}");
    }
}

#[test]
fn a_wrong_option_is_answered_by_what_to_type() {
    let (work, good) = (Work::new(), binary());
    for (words, expected) in [
        (&["--plain-http"][..], "are for --push; add it"),
        (&["--push-with", "docker"], "choose from 'skopeo', 'podman'"),
        (&["--push"], "name it registry.example/macvtap"),
        (&["--pull"], "unrecognized arguments: --pull"),
        (&["macvtap", "macvtap"], "unrecognized arguments"),
        (&["--output", "/nowhere"], "make it first"),
    ] {
        let text = work.refused(words, &[&good]);
        assert!(text.contains(expected), "{words:?}: {text}");
    }
}

#[test]
fn a_wrong_binary_is_answered_by_which_to_give() {
    let (work, good) = (Work::new(), binary());
    let (s390x, unknown) = (work.binary_for(S390X), work.binary_for(8));
    let text = root().join("README.md");
    for (binaries, expected) in [
        (&[&*good, &*good][..], "give one for each architecture"),
        (&[&s390x, &s390x], "a binary for s390x already"),
        (&[&unknown], "there are images for s390x, amd64, arm64"),
        (&[Path::new("/bin/ls")], "is another program, not macvtap"),
        (&[&text], "build one with cargo build --release"),
        (&[Path::new("/nowhere")], "/nowhere: No such file"),
    ] {
        let text = work.refused(&[], binaries);
        assert!(text.contains(expected), "{binaries:?}: {text}");
    }
}
