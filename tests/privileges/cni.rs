//! The CNI plugin, which has what its runtime has: with what it needs, and less.

use kit::netns::{Case, Cni, Host, dev::Dev, tap_exists};

/// What the README says that it needs.
const NEEDED: [&str; 4] = ["net_admin", "sys_admin", "chown", "fowner"];

/// A pod whose netns everybody can open who may enter one.
fn case() -> Case {
    Case {
        pod: Host::named(),
        ..Case::new()
    }
}

fn confined<'a>(call: &Cni<'a>, capabilities: &[&str], before: &[String]) -> Cni<'a> {
    let set = format!("--bounding-set=-all,+{}", capabilities.join(",+"));
    let words = ["setpriv", &set, "--inh-caps=-all", "--no-new-privs"];
    let words: Vec<&str> = before.iter().map(String::as_str).chain(words).collect();
    call.clone().by(&words)
}

#[test]
fn what_the_readme_says_suffices() {
    let case = case();
    let call = confined(&case.call(), &NEEDED, &[]).added();
    call.succeed("CHECK");
    call.succeed("STATUS");
    call.succeed("GC");
    call.succeed("DEL");
    assert!(!tap_exists(case.number));
}

#[test]
fn one_less_is_named_and_nothing_is_left() {
    for (missing, told) in [
        ("net_admin", "CAP_NET_ADMIN"),
        ("sys_admin", "CAP_SYS_ADMIN"),
        ("chown", "CAP_CHOWN"),
        ("fowner", "CAP_FOWNER"),
    ] {
        let case = case();
        let kept: Vec<&str> = NEEDED.into_iter().filter(|name| *name != missing).collect();
        let (_, msg) = confined(&case.call(), &kept, &[]).fail("ADD");
        assert!(msg.contains(told), "without {missing}: {msg}");
        assert!(case.pod.links().is_empty() && !tap_exists(case.number));
    }
}

#[test]
fn a_tmpfs_needs_mknod_as_well() {
    let (case, dev) = (case(), Dev::new());
    let (_, msg) = confined(&case.call(), &NEEDED, &dev.words()).fail("ADD");
    assert!(msg.contains("CAP_MKNOD"), "{msg}");
    assert!(case.pod.links().is_empty() && dev.names().is_empty());
    let with = [&NEEDED[..], &["mknod"]].concat();
    let call = confined(&case.call(), &with, &dev.words()).added();
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(dev.names().is_empty());
}
