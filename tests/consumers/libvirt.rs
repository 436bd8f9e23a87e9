//! libvirt as KubeVirt runs it: in the pod, as user 107, with no capability but
//! `NET_BIND_SERVICE`, and with the interface that KubeVirt's virt-launcher describes.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use kit::{
    guest::{APPEND, QEMU, Shell, can_run, file, qemu_dir},
    lock_dev,
    netns::{Case, Cni, Host, owner, tap, tap_number, wait_until},
    wire::{ADDRESS, ADDRESS_V6, Router, serve_noise},
};
use nix::sys::stat::SFlag;
use serde_json::Value;
use tempfile::TempDir;

/// What KubeVirt calls the interface of a network that is named "macvtap".
const IFNAME: &str = "pod37a8eec1ce1";
const DOMAIN: &str = "default_vm";
/// KubeVirt's own `qemu.conf`, but for the logs, which need no further daemon here.
const QEMU_CONF: &str = r#"
stdio_handler = "file"
security_driver = "none"
remember_owner = 0
namespaces = []
cgroup_controllers = []
"#;

/// A libvirt in a pod; its domains end with it.
struct Libvirt {
    daemon: Child,
    dir: TempDir,
}

impl Libvirt {
    fn start(pod: &Host) -> Self {
        let dir = qemu_dir();
        let path = dir.path();
        fs::create_dir_all(path.join("libvirt")).unwrap();
        fs::write(path.join("libvirt/qemu.conf"), QEMU_CONF).unwrap();
        fs::write(path.join("libvirtd.conf"), "").unwrap();
        for name in ["passwd", "group"] {
            fs::write(path.join(name), with_qemu(name)).unwrap();
        }
        let mut command = daemon(path);
        let log = fs::File::create(path.join("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let daemon = pod.0.run(|| Ok(command.spawn()?)).unwrap();
        let libvirt = Self { daemon, dir };
        wait_until("libvirt answers", || {
            libvirt.virsh(&["version"]).status.success()
        });
        libvirt
    }

    fn virsh(&self, words: &[&str]) -> Output {
        let socket = self.dir.path().join("libvirt/libvirt-sock");
        let mut command = Command::new("virsh");
        command
            .arg("--connect")
            .arg(format!("qemu+unix:///session?socket={}", socket.display()));
        command
            .args(words)
            .envs(environment(self.dir.path()))
            .output()
            .unwrap()
    }

    /// Runs virsh, which has to succeed.
    fn run(&self, words: &[&str]) -> String {
        let output = self.virsh(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "virsh {words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Defines the domain of a KubeVirt VM, with the interface as the pod has it.
    fn define(&self, pod: &Host, queues: u32) {
        let path = self.dir.path().join("domain.xml");
        fs::write(&path, domain(self.dir.path(), &link(pod), queues)).unwrap();
        self.run(&["define", path.to_str().unwrap()]);
    }

    fn boot(&self) -> Shell {
        self.run(&["start", DOMAIN]);
        let mut shell = Shell::connect(&self.dir.path().join("shell"));
        shell.wait();
        shell
    }

    /// Starts the domain and ends it before it does anything. What libvirt said.
    fn try_start(&self) -> Result<(), String> {
        let output = self.virsh(&["start", "--paused", DOMAIN]);
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        self.run(&["destroy", DOMAIN]);
        Ok(())
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log"));
            eprintln!("libvirt: {}", log.unwrap_or_default());
        }
    }
}

/// The command that starts a libvirt for user 107, whose files are in `path`.
fn daemon(path: &Path) -> Command {
    // The shell stays: libvirt's children are orphans at times, and have to be waited for.
    let script = r#"
            mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/group" /etc/group &&
            chown -R 107:107 "$0" && "$@"
            exit $?"#;
    let user = QEMU.to_string();
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    command.args([
        "--mount",
        "--mount-proc",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
    ]);
    command.arg(path).args([
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
    ]);
    command.args(["--bounding-set", "-all,+net_bind_service", "libvirtd", "-f"]);
    command
        .arg(path.join("libvirtd.conf"))
        .envs(environment(path));
    command
}

fn environment(dir: &Path) -> [(&'static str, PathBuf); 5] {
    let path = || dir.to_owned();
    [
        ("HOME", path()),
        ("XDG_RUNTIME_DIR", path()),
        ("XDG_CONFIG_HOME", path()),
        ("XDG_CACHE_HOME", path()),
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
    ]
}

/// The machine's passwd or group file, with the one that virt-launcher's image has for QEMU.
fn with_qemu(name: &str) -> String {
    let all = fs::read_to_string(Path::new("/etc").join(name)).unwrap();
    let id = format!(":{QEMU}:");
    let others: Vec<&str> = all.lines().filter(|line| !line.contains(&id)).collect();
    let entry = match name {
        "passwd" => format!("qemu:x:{QEMU}:{QEMU}::/:/bin/false"),
        _ => format!("qemu:x:{QEMU}:"),
    };
    format!("{}\n{entry}\n", others.join("\n"))
}

fn link(pod: &Host) -> Value {
    pod.link(IFNAME).expect("the pod has its interface")
}

/// What virt-launcher makes of a VM with one macvtap.
fn domain(dir: &Path, link: &Value, queues: u32) -> String {
    let (mac, mtu) = (link["address"].as_str().unwrap(), &link["mtu"]);
    let (kernel, initramfs) = (file("vmlinuz"), file("initramfs"));
    let (kernel, initramfs, dir) = (kernel.display(), initramfs.display(), dir.display());
    let driver = match queues {
        1 => String::new(),
        queues => format!("<driver name='vhost' queues='{queues}'/>"),
    };
    format!(
        "<domain type='qemu'>
  <name>{DOMAIN}</name>
  <uuid>5d4b4ab5-9d63-48dd-ade7-98172302282c</uuid>
  <memory unit='MiB'>128</memory>
  <vcpu>{queues}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initramfs}</initrd><cmdline>{APPEND}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='ethernet'>
      <mac address='{mac}'/>
      <target dev='{IFNAME}' managed='no'/>
      <model type='virtio-non-transitional'/>
      {driver}
      <mtu size='{mtu}'/>
      <alias name='ua-macvtap'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='{dir}/kernel.log'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{dir}/shell'/><target port='1'/></serial>
  </devices>
</domain>
"
    )
}

fn programs() -> bool {
    can_run(&[
        "libvirtd",
        "virsh",
        "qemu-system-x86_64",
        "dnsmasq",
        "setpriv",
    ])
}

/// The call for a pod whose interface KubeVirt named.
fn call(case: &Case) -> Cni<'_> {
    case.call().env("CNI_IFNAME", IFNAME)
}

/// DHCP, router advertisement, both families, and a file. All-multicast is what lets the
/// guest hear neighbour solicitations; without it IPv6 fails here.
fn use_network(shell: &mut Shell, case: &Case) {
    shell.run("ip link set eth0 up");
    let lease = shell.run("udhcpc -i eth0 -s /bin/lease -n -q -t 20 -T 1 2>&1");
    assert!(lease.contains("lease=10.11.0."), "{lease}");
    assert!(shell.reaches(ADDRESS));
    let autoconfigured = "for i in $(seq 100); do ip addr show dev eth0 | grep -v tentative | grep -q fd00:11 && break; sleep 0.1; done; ip -6 addr show dev eth0";
    let addresses = shell.run(autoconfigured);
    assert!(addresses.contains("inet6 fd00:11:"), "{addresses}");
    assert!(shell.reaches(ADDRESS_V6));
    let address = addresses
        .split("inet6 ")
        .find(|text| text.starts_with("fd00:11:"));
    let address = address.unwrap().split('/').next().unwrap();
    let ping = ["-6", "-c", "3", "-i", "0.2", "-W", "2", address];
    let output = case
        .node
        .wire
        .output(Command::new("busybox").arg("ping").args(ping));
    assert!(output.status.success(), "{output:?}");
    let (fetch, sum, server) = serve_noise(&case.node.wire, 50 << 20);
    let fetched = shell.run(&fetch);
    assert!(fetched.contains(&sum), "{fetched}, not {sum}");
    server.join().unwrap();
}

/// Boots a VM twice in one pod.
fn run_vm(queues: u32) {
    if !programs() {
        return;
    }
    let case = Case::new();
    call(&case).with("mtu", 1400).add();
    let _router = Router::start(&case.node.wire);
    let libvirt = Libvirt::start(&case.pod);
    libvirt.define(&case.pod, queues);
    let mut shell = libvirt.boot();
    assert_eq!(shell.run("cat /sys/class/net/eth0/mtu").trim(), "1400");
    let transmit = shell.run("ls /sys/class/net/eth0/queues | grep -c tx");
    assert_eq!(transmit.trim(), queues.to_string());
    use_network(&mut shell, &case);
    libvirt.run(&["destroy", DOMAIN]);
    let mut shell = libvirt.boot();
    use_network(&mut shell, &case);
    call(&case).succeed("DEL");
}

#[test]
fn a_vm_uses_the_network_and_is_restarted() {
    run_vm(1);
}

#[test]
fn a_vm_with_four_queues_uses_the_network_and_is_restarted() {
    run_vm(4);
}

/// What goes wrong with a tap, as another program did it before ADD or while it ran.
#[test]
fn no_cause_of_a_failed_start_is_left_by_add() {
    if !programs() {
        return;
    }
    let case = Case::new();
    let libvirt = Libvirt::start(&case.pod);
    for umask in ["0777", "0000"] {
        // "Permission denied"
        let script = format!("umask {umask}; exec \"$0\"");
        let call = call(&case).by(&["sh", "-c", &script]);
        call.add();
        assert_eq!(owner(&tap(case.number)), (QEMU, QEMU, 0o600));
        libvirt.define(&case.pod, 1);
        libvirt.try_start().unwrap();
        call.succeed("DEL");
    }
    // "target managed='no' but specified dev doesn't exist", and a link that stays down
    let link = {
        call(&case).add();
        link(&case.pod)
    };
    assert!(link["flags"].to_string().contains("\"UP\""), "{link}");
    call(&case).succeed("DEL");
    // "Unable to create tap device": the number's former tap dies while ADD makes the new one.
    for _ in 0..20 {
        let other = Host::new();
        case.node.allocated(&other, case.number).add();
        drop(other);
        let call = call(&case);
        call.add();
        assert_own_device(&case);
        call.succeed("DEL");
    }
    call(&case).add();
    libvirt.define(&case.pod, 1);
    libvirt.try_start().unwrap();
}

/// The node at the path is this macvtap's, not another one's: else the guest would be on a
/// foreign link, without an error.
fn assert_own_device(case: &Case) {
    let device = fs::metadata(tap(case.number)).unwrap().rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let target = fs::read_link(format!("/sys/dev/char/{major}:{minor}")).unwrap();
    let expected = format!("{IFNAME}/macvtap/tap{}", case.number);
    assert!(target.ends_with(&expected), "{}", target.display());
}

/// "Inappropriate ioctl for device", "No such device", and, without a word, a guest on
/// another program's link: files that stand where the tap's node is to be. Where the kernel
/// keeps /dev they are not ours to remove, so ADD fails and says what is there.
#[test]
fn a_file_in_the_way_is_named_by_add() {
    let _dev = lock_dev();
    let case = Case::new();
    let other = (Host::new(), tap_number());
    case.node.allocated(&other.0, other.1).add();
    let foreign = fs::metadata(tap(other.1)).unwrap().rdev();
    let path = tap(case.number);
    let plant: [&dyn Fn(); 3] = [
        &|| fs::write(&path, "").unwrap(),
        &|| {
            let mode = nix::sys::stat::Mode::S_IRUSR;
            nix::sys::stat::mknod(&path, SFlag::S_IFCHR, mode, foreign).unwrap();
        },
        &|| std::os::unix::fs::symlink(tap(other.1), &path).unwrap(),
    ];
    for plant in plant {
        plant();
        let (code, msg) = call(&case).fail("ADD");
        fs::remove_file(&path).unwrap();
        assert_eq!(code, 11, "{msg}");
        let expected = format!(
            "{} exists, but is not the node of a macvtap",
            path.display()
        );
        assert!(msg.contains(&expected), "{msg}");
        assert!(case.pod.link(IFNAME).is_none());
    }
    call(&case).add();
    assert_own_device(&case);
}
