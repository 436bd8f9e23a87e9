//! What a call costs, in counts that are the same on any machine: instructions, by callgrind, and
//! system calls, by strace.

use std::{env, fs, io::Write, process::Command};

use kit::netns::{Case, Cni, Host, skipped};
use serde_json::json;
use tempfile::NamedTempFile;

/// The most instructions of user mode that a call may take, of the binary that is shipped. It
/// takes a twelfth less, or nearly.
const MAX_OF_VERSION: u64 = 185_000;
const MAX_OF_ADD: u64 = 371_000;
const MAX_OF_DEL: u64 = 268_000;

/// The system calls of ADD with a device ID, from the first that has to do with the pod. One of a
/// name in a row stands for all, and those of the allocator are left out.
const ADD: &str = include_str!("add.calls");

/// Whether callgrind is there.
fn has_valgrind() -> bool {
    let there = Command::new("valgrind").arg("--version").output().is_ok();
    if !there {
        skipped("what calls cost: there is no valgrind");
    }
    there
}

/// The instructions that a call takes.
fn instructions(call: &Cni<'_>, verb: &str) -> u64 {
    let file = NamedTempFile::new().unwrap();
    let out = format!("--callgrind-out-file={}", file.path().display());
    let answer = call.clone().by(&["valgrind", "--tool=callgrind", &out]);
    let answer = answer.call(verb);
    assert_eq!(answer.status, 0, "{answer:?}");
    let text = fs::read_to_string(file.path()).unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.unwrap().trim().parse().unwrap()
}

/// What ADD, CHECK and DEL take.
fn costs(case: &Case) -> [u64; 3] {
    let add = instructions(&case.call(), "ADD");
    case.call().succeed("DEL");
    let call = case.call().added();
    [
        add,
        instructions(&call, "CHECK"),
        instructions(&call, "DEL"),
    ]
}

/// What `crowd` makes, and `disperse` deletes, may add a twentieth to the cost of a call.
fn costs_the_same_beside(crowd: impl FnOnce(&Case, &Host), disperse: impl FnOnce(&Host)) {
    if !has_valgrind() {
        return;
    }
    let (case, host) = (Case::new(), Host::new());
    let alone = costs(&case);
    crowd(&case, &host);
    let beside = costs(&case);
    disperse(&host);
    for (alone, beside) in alone.into_iter().zip(beside) {
        assert!(beside * 100 <= alone * 105, "{alone} became {beside}");
    }
}

#[test]
fn two_hundred_macvtaps_make_no_call_dearer() {
    costs_the_same_beside(|case, host| case.node.attach(host, 0..200), |_| ());
}

/// The kernel changes no link of the machine while it deletes a network namespace with all of its
/// links, which takes it seconds. So they are deleted before, a hundred at a time.
#[test]
fn ten_thousand_links_make_no_call_dearer() {
    let groups = 1..=100;
    let crowd = |_: &Case, host: &Host| {
        host.ip("link add below type veth peer name other");
        let add = |group, number| {
            format!(
                "link add link below name v{group}-{number} group {group} type macvlan mode bridge\n"
            )
        };
        let mut batch = NamedTempFile::new().unwrap();
        let of_group = |group| (0..100).map(move |number| add(group, number));
        let lines: String = groups.clone().flat_map(of_group).collect();
        batch.write_all(lines.as_bytes()).unwrap();
        host.ip(&format!("-batch {}", batch.path().display()));
    };
    let disperse = |host: &Host| {
        for group in groups.clone() {
            host.ip(&format!("link delete group {group}"));
        }
    };
    costs_the_same_beside(crowd, disperse);
}

#[test]
fn calls_take_few_instructions() {
    // What cargo builds for tests is not what is shipped.
    if env::var_os("MACVTAP_BINARY").is_none() || !has_valgrind() {
        return;
    }
    let case = Case::new();
    for (verb, most) in [
        ("VERSION", MAX_OF_VERSION),
        ("ADD", MAX_OF_ADD),
        ("DEL", MAX_OF_DEL),
    ] {
        let taken = instructions(&case.call(), verb);
        assert!(taken <= most, "{verb}: {taken}");
    }
}

/// The names of the system calls in what strace wrote, from the one that opens `pod` to the end
/// of the program's own.
fn system_calls(log: &str, pod: &str) -> String {
    let lines = log.lines().skip_while(|line| !line.contains(pod));
    let lines = lines.take_while(|line| !line.starts_with("sigaltstack("));
    let names = lines.filter_map(|line| Some(line.split_once('(')?.0));
    // Assertions of the debug build look at each descriptor.
    let left_out = ["brk", "fcntl", "madvise", "mmap", "mremap", "munmap"];
    let names = names.filter(|name| !left_out.contains(name));
    // arm64 has only the calls that are relative to a directory.
    let mut names: Vec<&str> = names
        .map(|name| match name {
            "fchmodat" => "chmod",
            "readlinkat" => "readlink",
            name => name,
        })
        .collect();
    names.dedup();
    names.join("\n") + "\n"
}

/// The words by which strace writes to `log`. No device plugin of this machine is to be found.
fn strace(log: &NamedTempFile) -> Vec<&str> {
    let script = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && exec \"$@\"";
    let alone = ["unshare", "--mount", "--propagation", "private"];
    let strace = ["strace", "-o", log.path().to_str().unwrap()];
    [&alone[..], &["sh", "-c", script, "sh"], &strace].concat()
}

#[test]
fn add_makes_these_system_calls() {
    let (case, log) = (Case::new(), NamedTempFile::new().unwrap());
    case.call().by(&strace(&log)).add();
    let log = fs::read_to_string(log.path()).unwrap();
    assert_eq!(system_calls(&log, &case.pod.path()), ADD, "{log}");
}

/// After a transaction of nf_tables the kernel waits for all processors, 20 ms, even after one that
/// finds nothing to delete.
#[test]
fn del_makes_a_transaction_only_where_there_are_rules() {
    let (case, log) = (Case::new(), NamedTempFile::new().unwrap());
    let mut words = strace(&log);
    words.push("-f");
    let with = |security| case.call().with("security", security);
    // A thread removes the rules while the interface goes, by a socket of its own.
    let calls = [
        (case.call(), 0, 1),
        (with("off"), 0, 2),
        (with("mac"), 1, 2),
    ];
    for (call, transactions, sockets) in calls {
        call.add();
        call.by(&words).succeed("DEL");
        let log = fs::read_to_string(log.path()).unwrap();
        let count = |call: &str, parts: &[&str]| {
            let lines = log.lines().filter(|line| line.contains(call));
            lines
                .filter(|line| parts.iter().any(|part| line.contains(part)))
                .count()
        };
        assert_eq!(count(" socket(", &["NETLINK_NETFILTER"]), 1, "{log}");
        // NFT_MSG_DELTABLE of the subsystem 10.
        let deletes = count(" sendto(", &["0xa02", "DELTABLE"]);
        assert_eq!(deletes, transactions, "{log}");
        // strace may write of one thread in the middle of another's call.
        let route = ["NETLINK_ROUTE)", "NETLINK_ROUTE <unfinished"];
        assert_eq!(count(" socket(", &route), sockets, "{log}");
    }
}

/// To delete a link waits for all processors as well.
#[test]
fn del_deletes_the_device_of_a_rate_in_the_same_request_and_nothing_else() {
    let (case, log) = (Case::new(), NamedTempFile::new().unwrap());
    let call = case.call();
    let call = call.with("bandwidth", json!({"ingressRate": 1_000_000}));
    call.add();
    case.pod.ip("link add other type ifb");
    assert_eq!(case.pod.links().len(), 3);
    call.by(&strace(&log)).succeed("DEL");
    assert_eq!(case.pod.links(), ["other"]);
    let log = fs::read_to_string(log.path()).unwrap();
    let deletes = |line: &&str| {
        ["nlmsg_type=0x11", "DELLINK"]
            .iter()
            .any(|it| line.contains(it))
    };
    let deletes = |line: &&str| line.starts_with("sendto(") && deletes(line);
    assert_eq!(log.lines().filter(deletes).count(), 1, "{log}");
}
