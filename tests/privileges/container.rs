//! A container as a runtime makes it of the DaemonSet: by runc, which they all call.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use kit::{binary, netns::Host};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What `RuntimeDefault` is where podman or CRI-O run pods, of the package
/// golang-github-containers-common.
const RUNTIME_DEFAULT: &str = "/usr/share/containers/seccomp.json";

fn root() -> &'static Path {
    kit::root()
}

/// The pod of the DaemonSet.
pub fn pod() -> Value {
    let text = fs::read_to_string(root().join("manifests/base/daemonset.yaml")).unwrap();
    let daemonset: Value = serde_yaml_ng::from_str(&text).unwrap();
    daemonset["spec"]["template"]["spec"].clone()
}

/// The seccomp profile of our own.
pub fn own_profile() -> Value {
    let path = root().join("manifests/components/seccomp/macvtap-deviceplugin.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `RuntimeDefault` for a container with these capabilities.
fn runtime_default(capabilities: &[String]) -> Value {
    let text = fs::read(RUNTIME_DEFAULT).expect("scripts/test installs the profile");
    let profile: Value = serde_json::from_slice(&text).unwrap();
    let has = |list: &Value| {
        let mut names = list["caps"].as_array().into_iter().flatten();
        names.all(|name| capabilities.iter().any(|capability| name == capability))
    };
    let rules = profile["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| {
            let here = rule["includes"]["arches"].as_array();
            let here = here.is_none_or(|arches| arches.iter().any(|arch| arch == "amd64"));
            let excluded = rule["excludes"]["caps"].is_array() && has(&rule["excludes"]);
            here && has(&rule["includes"]) && !excluded
        });
    let rules = rules.map(|rule| {
        let mut kept = json!({"names": rule["names"], "action": rule["action"]});
        if let Some(args) = rule["args"].as_array().filter(|args| !args.is_empty()) {
            kept["args"] = json!(args);
        }
        if rule["errnoRet"].is_u64() {
            kept["errnoRet"] = rule["errnoRet"].clone();
        }
        kept
    });
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "syscalls": rules.collect::<Vec<Value>>(),
    })
}

/// One to be made of a container of the DaemonSet.
pub struct Container {
    bundle: TempDir,
    name: String,
    config: Value,
}

impl Container {
    /// Of the pod's container `which`, on `host`, with the directories of the node in `mounts`
    /// in place of the volumes of those names.
    pub fn new(which: &Value, host: &Host, mounts: &[(&str, &Path)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let bundle = tempfile::tempdir().unwrap();
        let files = bundle.path().join("rootfs");
        fs::create_dir_all(&files).unwrap();
        fs::copy(binary(), files.join("macvtap")).unwrap();
        let context = &which["securityContext"];
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        let capabilities = capabilities(context);
        let env = environment(which);
        let words = which["args"].as_array().unwrap().iter();
        let words = words.map(|word| json!(expanded(word.as_str().unwrap(), &env)));
        let args: Vec<Value> = [json!("/macvtap")].into_iter().chain(words).collect();
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "env": env, "cwd": "/",
                "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
            },
            "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
            "mounts": system_mounts(),
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "network", "path": host.path()},
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/sched_debug"],
                "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/irq"],
            },
        });
        let all = config["mounts"].as_array_mut().unwrap();
        all.extend(volume_mounts(which, mounts));
        let container = Self {
            bundle,
            name: format!("macvtap-test-{}-{number}", std::process::id()),
            config,
        };
        container.with_capabilities(&capabilities)
    }

    /// Gives it these capabilities, and no other.
    pub fn with_capabilities(mut self, capabilities: &[String]) -> Self {
        self.config["process"]["capabilities"] = json!({
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        });
        self.config["linux"]["seccomp"] = runtime_default(capabilities);
        self
    }

    /// Its capabilities.
    pub fn capabilities(&self) -> Vec<String> {
        let names = &self.config["process"]["capabilities"]["bounding"];
        serde_json::from_value(names.clone()).unwrap()
    }

    /// Gives it this seccomp profile.
    pub fn with_profile(mut self, profile: &Value) -> Self {
        self.config["linux"]["seccomp"] = profile.clone();
        self
    }

    /// Gives it a directory for feature files, as the component nri does.
    pub fn with_feature_dir(mut self, dir: &Path) -> Self {
        let args = self.config["process"]["args"].as_array_mut().unwrap();
        args.push(json!("--feature-dir=/features"));
        let mounts = self.config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/features", "source": dir, "type": "bind", "options": ["rbind"],
        }));
        self
    }

    fn runc(&self, words: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(self.bundle.path().join("state"))
            .args(words);
        command
    }

    /// The command that runs it to its end.
    pub fn command(&self) -> Command {
        let path = self.bundle.path().join("config.json");
        fs::write(path, self.config.to_string()).unwrap();
        let mut command = self.runc(&["run", "--bundle"]);
        command.arg(self.bundle.path()).arg(&self.name);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command in it, with its rights.
    pub fn exec(&self, words: &[&str]) -> Output {
        let mut command = self.runc(&["exec", &self.name]);
        command.args(words).output().unwrap()
    }

    /// Sends a signal to its first process.
    pub fn signal(&self, name: &str) {
        assert!(
            self.runc(&["kill", &self.name, name])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.name]).output();
    }
}

/// The capabilities that a container has by its security context.
fn capabilities(context: &Value) -> Vec<String> {
    let added = context["capabilities"]["add"].as_array();
    let added = added.into_iter().flatten();
    added
        .map(|name| format!("CAP_{}", name.as_str().unwrap()))
        .collect()
}

/// The variables that the kubelet sets; those of the downward API on a node called `node`.
fn environment(which: &Value) -> Vec<String> {
    let variables = which["env"].as_array().into_iter().flatten();
    let assigned = variables.map(|variable| {
        let value = variable["value"].as_str().unwrap_or("node");
        format!("{}={value}", variable["name"].as_str().unwrap())
    });
    assigned.chain(["RUST_BACKTRACE=0".to_owned()]).collect()
}

/// A word of a command line with `$(VARIABLE)` as the kubelet expands it.
fn expanded(word: &str, env: &[String]) -> String {
    env.iter().fold(word.to_owned(), |word, assigned| {
        let (name, value) = assigned.split_once('=').unwrap();
        word.replace(&format!("$({name})"), value)
    })
}

fn volume_mounts(which: &Value, sources: &[(&str, &Path)]) -> Vec<Value> {
    let mounts = which["volumeMounts"].as_array().unwrap().iter();
    let mounts = mounts.map(|mount| {
        let source = sources.iter().find(|(name, _)| mount["name"] == **name);
        let mut options = vec!["rbind", "rslave"];
        options.extend((mount["readOnly"] == true).then_some("ro"));
        json!({
            "destination": mount["mountPath"], "source": source.unwrap().1, "type": "bind",
            "options": options,
        })
    });
    mounts.collect()
}

fn system_mounts() -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    json!([
        mount("/proc", "proc", &[]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ])
}
