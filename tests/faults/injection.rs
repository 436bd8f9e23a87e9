//! Faults, one at a time, by strace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Worlds side by side: most of the time goes into waiting for the kernel.
const WORKERS: usize = 12;

/// How many calls are tried that differ in numbers only.
const MAX_REPEATS: u32 = 8;

/// One test after the other: the more taps there are on the machine, the more system calls it
/// takes to find one's own.
pub fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is done to one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    call: String,
    /// The which one of its name, from 1.
    number: u32,
    /// None kills the program there.
    errno: Option<&'static str>,
}

impl fmt::Display for Fault {
    /// As strace takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "--inject={}:error={errno}", self.call)?,
            None => write!(f, "--inject={}:signal=KILL", self.call)?,
        }
        write!(f, ":when={}", self.number)
    }
}

impl Fault {
    /// Whether the program is killed there.
    pub fn kills(&self) -> bool {
        self.errno.is_none()
    }

    /// Whether Rust's own library or allocator ends the program there, which then can say
    /// nothing.
    pub fn ends_it(&self) -> bool {
        self.errno == Some("ENOMEM") && ["brk", "mmap", "mremap"].contains(&self.call.as_str())
    }

    /// The words before a command that suffers from it, in each of its threads and processes.
    pub fn words(&self, log: &Path) -> Vec<String> {
        let only = format!("--trace={}", self.call);
        let options = ["-f", "-y", &only, "--seccomp-bpf"];
        // Calls of other names do not stop at strace then, a fifth of the cost, but no signal is sent.
        let taken = if self.kills() { 3 } else { 4 };
        self.injected(&options[..taken], log)
    }

    /// The same, of a command that runs other programs, which do not suffer.
    pub fn words_alone(&self) -> Vec<String> {
        self.injected(&[], Path::new("/dev/null"))
    }

    fn injected(&self, options: &[&str], log: &Path) -> Vec<String> {
        let (inject, log) = (self.to_string(), log.to_str().unwrap());
        let words = [&["strace", "-o", log, &inject], options].concat();
        words.into_iter().map(str::to_owned).collect()
    }
}

/// The errors that a system call of ours can have, by its manual page and with the arguments
/// that we give. Those that only a wrong argument brings (EFAULT, EBADF...) are not among them,
/// nor is ENOENT: that what is there were not there would be a lie. `close` can fail only on file
/// systems that write then.
fn errnos(call: &str) -> &'static [&'static str] {
    match call {
        "accept4" => &["EMFILE", "ENFILE", "ENOMEM"],
        "bind" => &["EADDRINUSE", "EACCES", "ENOMEM"],
        "brk" | "mmap" | "mremap" | "munmap" => &["ENOMEM"],
        "chmod" | "fchmod" | "fchownat" | "fchown" => &["EPERM", "EROFS", "EIO"],
        "clone3" | "clone" => &["EAGAIN", "ENOMEM"],
        "connect" => &["ECONNREFUSED", "EAGAIN"],
        "copy_file_range" => &["EIO", "ENOSPC", "EXDEV", "EOPNOTSUPP", "EINVAL"],
        "epoll_create1" | "eventfd2" | "inotify_init1" => &["EMFILE", "ENOMEM"],
        "epoll_ctl" | "inotify_add_watch" => &["ENOMEM", "ENOSPC"],
        "fcntl" => &["EMFILE"],
        "fstatfs" | "fsync" | "statfs" => &["EIO"],
        "getsockname" | "getsockopt" => &["ENOBUFS"],
        "link" | "linkat" => &["EIO", "ENOSPC", "EPERM"],
        "listen" => &["EADDRINUSE"],
        "mknod" | "mknodat" => &["EPERM", "ENOSPC", "EROFS"],
        "newfstatat" | "statx" | "fstat" => &["EIO", "EACCES", "ENOMEM"],
        "open" | "openat" => &["EMFILE", "ENFILE", "EACCES", "EIO"],
        "pipe2" | "socketpair" => &["EMFILE", "ENFILE"],
        "poll" | "ppoll" => &["EINTR", "ENOMEM"],
        "read" | "pread64" => &["EIO", "EINTR"],
        "getdents64" | "readlink" | "readlinkat" => &["EIO", "ENOMEM"],
        "recvfrom" | "recvmsg" | "sendto" | "sendmsg" => &["ENOBUFS", "EINTR", "ENOMEM"],
        "rename" | "renameat" | "unlink" => &["EIO", "ENOSPC", "EROFS", "EBUSY"],
        "setns" => &["EPERM", "ENOMEM"],
        "setsockopt" => &["ENOPROTOOPT", "ENOMEM"],
        "socket" => &["EMFILE", "ENFILE", "ENOBUFS", "EACCES"],
        "epoll_wait" | "wait4" | "waitid" => &["EINTR"],
        "write" | "writev" => &["ENOSPC", "EINTR", "EIO", "EPIPE"],
        _ => &[],
    }
}

/// The faults that a program can have whose system calls strace wrote into `log`: at every call
/// the end, at every one that can fail each of its errors.
pub fn faults(log: &Path) -> Vec<Fault> {
    let (calls, unfailing) = calls(log);
    let mut faults = Vec::new();
    for (call, number) in calls {
        let can_fail = !unfailing.contains(&(call.clone(), number));
        let errnos = errnos(&call).iter().filter(|_| can_fail);
        let errnos = errnos.map(|errno| Some(*errno));
        faults.extend([None].into_iter().chain(errnos).map(|errno| Fault {
            call: call.clone(),
            number,
            errno,
        }));
    }
    faults
}

/// A system call by its name, and its place among those of that name in its thread, as strace
/// counts them.
type Call = (String, u32);

/// The calls, and those of them that never fail. Of calls that differ in numbers only the first
/// few: further ones are further turns of a loop over the processes, taps or network namespaces
/// that happen to be on the machine.
fn calls(log: &Path) -> (BTreeSet<Call>, BTreeSet<Call>) {
    let mut of_name: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut of_shape: BTreeMap<String, u32> = BTreeMap::new();
    let (mut calls, mut unfailing) = (BTreeSet::new(), BTreeSet::new());
    let log = fs::read_to_string(log).unwrap();
    for (thread, call) in log.lines().map(thread_and_call) {
        let name = call.split_once('(').map(|(name, _)| name);
        // "+++ exited with 0 +++" is none; the program is not ours before execve returned.
        let is_call = |name: &&str| !name.starts_with(['+', '-', '<']) && *name != "execve";
        if let Some(name) = name.filter(is_call) {
            let number = of_name.entry((thread, name)).or_default();
            *number += 1;
            let repeated = of_shape.entry(shape(call)).or_default();
            *repeated += 1;
            if *repeated <= MAX_REPEATS {
                calls.insert((name.to_owned(), *number));
            }
            if is_unfailing(call) {
                unfailing.insert((name.to_owned(), *number));
            }
        }
    }
    (calls, unfailing)
}

/// With several threads each line of strace's begins with the thread's number.
fn thread_and_call(line: &str) -> (&str, &str) {
    let call = line.trim_start_matches(|char: char| char.is_ascii_digit() || char == ' ');
    line.split_at(line.len() - call.len())
}

/// Whether the fault hit a call that never fails, as strace's log of that run shows. Which call is
/// the third of its name differs from run to run where threads wake each other.
pub fn hit_unfailing(log: &Path) -> bool {
    let log = fs::read_to_string(log).unwrap();
    let mut begun = BTreeMap::new();
    log.lines().map(thread_and_call).any(|(thread, call)| {
        // The end of a call that another thread's interrupted does not show its arguments again.
        if !call.starts_with("<... ") {
            begun.insert(thread, call);
        }
        call.ends_with("(INJECTED)") && is_unfailing(begun.get(thread).unwrap_or(&""))
    })
}

/// Whether it writes to an event counter, as tokio does to wake itself: the kernel only refuses
/// that where the counter is full. strace has to show what descriptors lead to (`-y`).
fn is_unfailing(call: &str) -> bool {
    let target = call
        .strip_prefix("write(")
        .and_then(|rest| rest.split_once(','));
    target.is_some_and(|(target, _)| target.contains("[eventfd]"))
}

/// A call without its numbers, the files behind its descriptors and its result. Where a link leads
/// to is a result too, but that of a network device in /sys may be the one that is looked for.
fn shape(call: &str) -> String {
    let call = call.split(" = ").next().unwrap_or_default();
    let call = match call.split_once("\", \"") {
        Some((link, target)) if link.starts_with("readlink(") && !target.contains("/net/") => link,
        _ => call,
    };
    let call = call.split(" <unfinished").next().unwrap_or_default();
    let mut depth = 0_u32;
    let mut is_kept = |char| {
        depth = match char {
            '<' => depth + 1,
            '>' => depth.saturating_sub(1),
            _ => depth,
        };
        depth == 0 && !matches!(char, '>' | '0'..='9')
    };
    call.chars().filter(|char| is_kept(*char)).collect()
}

/// Tries each of the faults, side by side in worlds of their own, and says how many there were.
/// `suffer` panics if something is wrong, and returns whether the fault stopped the program.
pub fn each<W>(
    what: &str,
    faults: &[Fault],
    world: impl Fn() -> W + Sync,
    suffer: impl Fn(&W, &Fault) -> bool + Sync,
) {
    let (next, stopped, failures) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut own = world();
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = panic::catch_unwind(AssertUnwindSafe(|| suffer(&own, fault)));
                    match outcome {
                        Ok(true) if fault.kills() => _ = stopped.fetch_add(1, Ordering::Relaxed),
                        Ok(_) => {}
                        Err(_) => {
                            failures.fetch_add(1, Ordering::Relaxed);
                            own = world(); // Whatever is left in it is not the next one's.
                        }
                    }
                }
            });
        }
    });
    let (stopped, failures) = (stopped.into_inner(), failures.into_inner());
    let kills = faults.iter().filter(|fault| fault.kills()).count();
    let injected = faults.len() - kills;
    println!("{what}: killed at {stopped} system calls, {injected} errors injected");
    assert_eq!(
        failures, 0,
        "faults after which something was wrong, see above"
    );
    // How often some calls come depends on what else is on the machine.
    assert!(stopped > 40 && stopped * 4 > kills * 3, "of {kills}");
}
