//! The image, and containerd running it.

mod registry;
mod script;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use kit::kubelet::configuration;
use kit::netns::{Host, LOWER, Node, wait_until};
use macvtap::selftest::kubelet::Kubelet;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

const IMAGE: &str = concat!("localhost/macvtap:v", env!("CARGO_PKG_VERSION"));

fn root() -> &'static Path {
    kit::root()
}

/// Makes the image; its name and digest.
fn make() -> String {
    let output = Command::new(root().join("scripts/image")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().next().unwrap().to_owned()
}

fn archive() -> PathBuf {
    root().join("target/image.tar")
}

/// A containerd of the test's own, in a node's network namespace.
struct Containerd {
    child: Child,
    dir: TempDir,
}

impl Containerd {
    fn start(host: &Host) -> Self {
        let dir = tempdir().unwrap();
        let path = dir.path().display();
        let config = format!(
            "version = 2\nroot = \"{path}/root\"\nstate = \"{path}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{path}/sock\"\n"
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(dir.path().join("config.toml"));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = host.0.run(|| Ok(command.spawn()?)).unwrap();
        let containerd = Self { child, dir };
        wait_until("containerd answers", || {
            containerd
                .ctr(&["version"])
                .output()
                .unwrap()
                .status
                .success()
        });
        containerd
    }

    fn ctr(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.path().join("sock"));
        command.args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.ctr(words).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mount(from: &Path, to: &str) -> String {
    format!("type=bind,src={},dst={to},options=rbind:rw", from.display())
}

#[test]
fn is_the_same_each_time_and_runs_in_containerd() {
    let first = make();
    let bytes = fs::read(archive()).unwrap();
    assert_eq!(make(), first);
    assert_eq!(fs::read(archive()).unwrap(), bytes);
    check_layout();
    check_bill_of_materials(first.split_whitespace().nth(1).unwrap());
    let node = Node::new();
    let containerd = Containerd::start(&node.host);
    containerd.run(&["images", "import", archive().to_str().unwrap()]);
    let listed = containerd.run(&["images", "list"]);
    let digest = first.split_whitespace().nth(1).unwrap();
    assert!(
        listed.contains(IMAGE) && listed.contains(digest),
        "{listed}"
    );
    install(&containerd);
    serve(&node, &containerd);
}

/// What a registry and a runtime look for.
fn check_layout() {
    let layout = root().join("target/image/oci");
    let read = |name: &str| fs::read(layout.join(name)).unwrap();
    let json = |name: &str| -> Value { serde_json::from_slice(&read(name)).unwrap() };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let blob = |value: &Value| {
        value["digest"]
            .as_str()
            .unwrap()
            .replace("sha256:", "blobs/sha256/")
    };
    let manifest = json(&blob(&json("index.json")["manifests"][0]));
    let config = json(&blob(&manifest["config"]));
    assert_eq!(config["os"], "linux");
    let labels = &config["config"]["Labels"];
    assert_eq!(
        labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    let mut command = Command::new("tar");
    let layer = layout.join(blob(&manifest["layers"][0]));
    let output = command.arg("tf").arg(layer).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = names.lines().collect();
    let expected = "bin/ macvtap macvtap-cni macvtap-deviceplugin bin/[ bin/bash bin/cp \
        bin/install bin/ls bin/macvtap bin/sh bin/stat bin/test usr/ usr/bin";
    let expected: Vec<&str> = expected.split_whitespace().collect();
    assert_eq!(names, expected);
}

/// What is in the binary, and in the form that scanners read.
fn check_bill_of_materials(digest: &str) {
    let path = root().join("target/image.cdx.json");
    let bill: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(bill["metadata"].to_string().contains(digest), "{bill}");
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components
        .iter()
        .filter_map(|component| component["name"].as_str())
        .collect();
    let inside = "clap neli tokio tonic prost serde_json nix glibc rust-std";
    for name in inside.split(' ') {
        assert!(names.contains(name), "{name}");
    }
    // Of the build, of macros, of tests.
    let outside = "protox tonic-prost-build clap_derive pretty_assertions";
    for name in outside.split(' ') {
        assert!(!names.contains(name), "{name}");
    }
    for component in components {
        // The C library and Rust's own come with the machine that builds.
        if component["purl"]
            .as_str()
            .unwrap()
            .starts_with("pkg:cargo/")
        {
            let hash = component["hashes"][0]["content"].as_str();
            assert_eq!(hash.map(str::len), Some(64), "{component}");
        }
        assert!(component["version"].as_str().unwrap().contains('.'));
        assert!(
            component["licenses"][0]["expression"].is_string(),
            "{component}"
        );
    }
    check_schema(&path);
}

fn check_schema(path: &Path) {
    let python = root().join("target/python/bin/python");
    let script = "import sys; from cyclonedx.validation.json import JsonStrictValidator; \
        from cyclonedx.schema import SchemaVersion; \
        print(JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()))";
    let output = Command::new(python).args(["-c", script]).arg(path).output();
    match output {
        Ok(output) if output.status.success() => {
            assert_eq!(String::from_utf8_lossy(&output.stdout), "None\n");
        }
        _ => kit::netns::skipped("scripts/test could not install CycloneDX' schemas"),
    }
}

/// As the init containers of our manifest and of the original's do it.
fn install(containerd: &Containerd) {
    let bin = tempdir().unwrap();
    let mounted = mount(bin.path(), "/host/opt/cni/bin");
    let run = |id: &str, words: &[&str]| {
        let start = ["run", "--rm", "--read-only", "--mount", &mounted, IMAGE, id];
        containerd.run(&[&start, words].concat());
    };
    run("install", &["/macvtap", "install"]);
    run(
        "copy",
        &["cp", "/macvtap-cni", "/host/opt/cni/bin/macvtap2"],
    );
    let script =
        "cp -f /macvtap-cni /host/opt/cni/bin/macvtap3 && chmod 755 /host/opt/cni/bin/macvtap3";
    run("script", &["sh", "-ec", script]);
    for name in ["macvtap", "macvtap2", "macvtap3"] {
        let mut command = Command::new(bin.path().join(name));
        let output = command.env("CNI_COMMAND", "VERSION").output().unwrap();
        assert!(output.stdout.starts_with(b"{\"cniVersion\""), "{name}");
    }
}

/// As the original's manifest calls it, read-only; probed in both ways.
fn serve(node: &Node, containerd: &Containerd) {
    let dir = tempdir().unwrap();
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let inside = "/var/lib/kubelet/device-plugins";
    let mounted = mount(dir.path(), inside);
    let variable = format!("DP_MACVTAP_CONF={}", configuration());
    let start = [
        "run",
        "--detach",
        "--read-only",
        "--net-host",
        "--seccomp",
        "--cap-add",
        "CAP_NET_ADMIN",
        "--env",
        &variable,
        "--mount",
        &mounted,
        IMAGE,
        "dp",
        "/macvtap-deviceplugin",
        "-v",
        "3",
        "-logtostderr",
    ];
    containerd.run(&start);
    let resource = kit::kubelet::connected(&kubelet);
    assert_eq!(resource.healthy().len(), 100);
    let id = resource.healthy()[99].clone();
    kubelet.pre_start(kit::kubelet::RESOURCE, &[id]).unwrap();
    assert_eq!(node.host.links().len(), 2, "{LOWER} and the pod's macvtap");
    ask(containerd, inside);
    containerd.run(&["task", "kill", "--signal", "SIGTERM", "dp"]);
    wait_until("it ends", || {
        containerd.run(&["task", "list"]).contains("STOPPED")
    });
    containerd.run(&["task", "delete", "dp"]);
    containerd.run(&["container", "delete", "dp"]);
}

/// As probes and people ask the one that runs.
fn ask(containerd: &Containerd, inside: &str) {
    let probe = containerd.run(&["task", "exec", "--exec-id", "a", "dp", "macvtap", "probe"]);
    assert!(probe.contains("is registered"), "{probe}");
    let sockets = format!("{inside}/macvtap.network.kubevirt.io*");
    let script = format!("ls {sockets} >/dev/null 2>&1");
    for (id, words) in [
        ("b", &["sh", "-c", &script][..]),
        ("d", &["/usr/bin/bash", "-ec", &script]),
        ("e", &["test", "-S", &sockets]),
        ("f", &["/bin/ls", &sockets]),
    ] {
        let exec = ["task", "exec", "--exec-id", id, "dp"];
        containerd.run(&[&exec, words].concat());
    }
    let doctor = ["task", "exec", "--exec-id", "c", "dp", "macvtap", "doctor"];
    let doctor = containerd.run(&doctor);
    assert!(doctor.contains("No problems found."), "{doctor}");
}
