//! A guest in QEMU: Debian's kernel, busybox, and a shell on its second serial port.
//!
//! It is emulated, so it needs no KVM. `scripts/guest` makes what it boots.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::chown, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    netns::{Host, skipped, tap, wait_until},
    root,
};

/// The user and group that KubeVirt's QEMU runs as.
pub const QEMU: u32 = 107;
/// How long a guest may take to boot, on a machine that does other things as well.
const BOOT: Duration = Duration::from_mins(2);
/// How long a command in a guest may take.
const COMMAND: Duration = Duration::from_mins(1);
/// The guest's kernel command line: its log goes to the first serial port. The clock is the
/// one that an emulated processor and a migration do not confuse.
pub const APPEND: &str = "console=ttyS0 quiet panic=-1 clocksource=acpi_pm random.trust_cpu=on";

/// A file that the guests boot.
pub fn file(name: &str) -> PathBuf {
    root().join("target/guest").join(name)
}

/// Whether this machine has all of these programs, and guests to boot. Says so if not.
pub fn can_run(programs: &[&str]) -> bool {
    let can_boot = file("initramfs").exists();
    if !can_boot {
        skipped("there is no guest to boot; scripts/guest makes it");
    }
    has_programs(programs) && can_boot
}

/// Whether this machine has all of these programs. Says so if not.
pub fn has_programs(programs: &[&str]) -> bool {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let has = |name: &str| {
        path.split(':')
            .any(|dir| Path::new(dir).join(name).exists())
    };
    let missing = programs.iter().find(|name| !has(name));
    if let Some(name) = missing {
        skipped(&format!("{name} is not installed; scripts/test does that"));
    }
    missing.is_none()
}

/// A directory that QEMU's user owns.
pub fn qemu_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(QEMU), Some(QEMU)).unwrap();
    dir
}

/// The shell of a guest.
pub struct Shell {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Shell {
    /// Connects to the guest's second serial port, which is behind the socket at `path`.
    pub fn connect(path: &Path) -> Self {
        let mut stream = None;
        wait_until("the guest's serial port is there", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        Self {
            stream: stream.unwrap(),
            unread: Vec::new(),
        }
    }

    /// Waits until the guest has booted. Its first line is lost if it came before we were
    /// connected, so it is asked as well.
    pub fn wait(&mut self) {
        self.read_until("guest is up\n", BOOT);
    }

    /// Runs a command; what it printed, and its exit status.
    pub fn output(&mut self, command: &str) -> (i32, String) {
        self.send(command);
        self.finish(command)
    }

    /// Starts a command.
    pub fn send(&mut self, command: &str) {
        assert!(!command.contains('\n'));
        writeln!(self.stream, "{command}").unwrap();
    }

    /// Waits until the command that was sent has ended.
    pub fn finish(&mut self, command: &str) -> (i32, String) {
        let printed = self.read_until("status=", COMMAND);
        let status = self.read_until("\n", COMMAND);
        let status = status.trim().parse();
        (
            status.unwrap_or_else(|_| panic!("{command}: {printed}")),
            printed,
        )
    }

    /// Runs a command, which has to succeed; what it printed.
    pub fn run(&mut self, command: &str) -> String {
        let (status, printed) = self.output(command);
        assert_eq!(status, 0, "in the guest: {command}: {printed}");
        printed
    }

    /// Whether an address answers at least one of a few pings.
    pub fn reaches(&mut self, address: &str) -> bool {
        let command = format!("ping -c 3 -i 0.2 -W 1 {address} 2>&1");
        self.output(&command).0 == 0
    }

    fn read_until(&mut self, end: &str, timeout: Duration) -> String {
        let start = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some(at) = text.find(end) {
                self.unread = text.as_bytes()[at + end.len()..].to_vec();
                return text[..at].to_owned();
            }
            let left = timeout.saturating_sub(start.elapsed());
            assert!(!left.is_zero(), "the guest does not say {end:?}: {text}");
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the guest is gone before {end:?}: {text}"),
                Ok(length) => self.unread.extend(&buffer[..length]),
                Err(_) => {}
            }
        }
    }
}

/// A QEMU that the test started itself, with the tap on descriptor 3.
pub struct Guest {
    child: Child,
    dir: TempDir,
    /// Its shell.
    pub shell: Shell,
}

impl Guest {
    /// Boots a guest on tap `number`, in the pod that has it, and waits until it is up.
    pub fn boot(pod: &Host, number: u32, mac: &str) -> Self {
        let mut guest = Self::start(pod, number, mac, &[]);
        guest.shell.wait();
        guest
    }

    /// Starts QEMU with further words, in which `{dir}` is the directory of its files.
    pub fn start(pod: &Host, number: u32, mac: &str, words: &[&str]) -> Self {
        let dir = qemu_dir();
        let mut command = Command::new("setpriv");
        let user = QEMU.to_string();
        // A test run that is killed takes its guests with it.
        command.args(["--pdeathsig", "KILL"]);
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command
            .args(["sh", "-c", "exec 3<>\"$0\" \"$@\""])
            .arg(tap(number));
        command.args(qemu(dir.path(), mac));
        let shown = dir.path().to_str().unwrap();
        command.args(words.iter().map(|word| word.replace("{dir}", shown)));
        Self::spawn(pod, command, dir)
    }

    /// Starts the QEMU that `command` is, whose files are in `dir`, in the netns of `host`.
    pub fn spawn(host: &Host, mut command: Command, dir: TempDir) -> Self {
        let log = fs::File::create(dir.path().join("qemu.log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = host.0.run(|| Ok(command.spawn()?)).unwrap();
        let shell = Shell::connect(&dir.path().join("shell"));
        Self { child, dir, shell }
    }

    /// The directory with its sockets and logs.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Ends QEMU.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            for name in ["qemu.log", "kernel.log"] {
                let text = fs::read(self.dir.path().join(name)).unwrap_or_default();
                eprintln!("{name}: {}", String::from_utf8_lossy(&text));
            }
        }
    }
}

/// What the guests boot, with `program` in their path as `name`.
pub fn initramfs_with(name: &str, program: &Path) -> TempDir {
    initramfs_of("initramfs", &[(name, program)])
}

/// The file `base` of the guests, with programs in their path under these names.
pub fn initramfs_of(base: &str, programs: &[(&str, &Path)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("root/bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, program) in programs {
        fs::copy(program, bin.join(name)).unwrap();
    }
    let script = "cd \"$0/root\" && find . | cpio --quiet -o -H newc | gzip -1";
    let mut command = Command::new("sh");
    let output = command.args(["-c", script]).arg(dir.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let whole = [fs::read(file(base)).unwrap(), output.stdout].concat();
    fs::write(dir.path().join("initramfs"), whole).unwrap();
    dir
}

/// The command line of a QEMU whose tap is descriptor 3, and whose files are in `dir`.
pub fn qemu(dir: &Path, mac: &str) -> Vec<String> {
    let dir = dir.display();
    let (kernel, initramfs) = (file("vmlinuz"), file("initramfs"));
    let words = [
        "qemu-system-x86_64".to_owned(),
        "-no-user-config -nodefaults -display none".to_owned(),
        "-machine q35,accel=tcg -cpu max -m 128".to_owned(),
        format!(
            "-kernel {} -initrd {}",
            kernel.display(),
            initramfs.display()
        ),
        format!("-serial file:{dir}/kernel.log -serial unix:{dir}/shell,server=on,wait=off"),
        "-netdev tap,id=net1,fd=3".to_owned(),
        format!("-device virtio-net-pci,netdev=net1,mac={mac}"),
    ];
    let words = words.iter().flat_map(|words| words.split(' '));
    let words = words.map(str::to_owned);
    words
        .chain(["-append".to_owned(), APPEND.to_owned()])
        .collect()
}
