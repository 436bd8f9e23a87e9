//! One device ID for two pods, and a pod that is not quite gone.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::netns::{Host, IFNAME, Node, owner, tap, tap_exists, tap_number};

#[test]
fn a_tap_that_is_held_is_answered_with_its_holder() {
    let (node, one, two, number) = (Node::new(), Host::new(), Host::new(), tap_number());
    let first = node.promised(&one, number).added();
    let second = node.promised(&two, number);
    let (code, msg) = second.fail("ADD");
    assert_eq!(code, 11, "{msg}");
    assert!(
        msg.contains(&format!("/dev/tap{number} is still held by")),
        "{msg}"
    );
    assert!(two.links().is_empty());
    first.succeed("CHECK");
    first.succeed("DEL");
    second.added().succeed("CHECK");
}

#[test]
fn the_holder_is_named_where_its_netns_has_a_process() {
    let (node, one, two, number) = (Node::new(), Host::new(), Host::new(), tap_number());
    node.promised(&one, number).add();
    let mut command = std::process::Command::new("sleep");
    let mut child = one.0.run(|| Ok(command.arg("60").spawn()?)).unwrap();
    let (_, msg) = node.promised(&two, number).fail("ADD");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(msg.contains(IFNAME), "{msg}");
    assert!(
        msg.contains(&format!("/proc/{}/ns/net", child.id())),
        "{msg}"
    );
}

#[test]
fn of_two_at_once_exactly_one_wins() {
    // The loser waits for 2 s before it gives up, so the rounds go side by side.
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(race);
        }
    });
}

fn race() {
    let (node, number) = (Node::new(), tap_number());
    let pods = [Host::new(), Host::new()];
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                let answer = node.promised(pod, number).call("ADD");
                if answer.status == 0 {
                    won.fetch_add(1, Ordering::Relaxed);
                } else {
                    let error = answer.error();
                    let held = format!("/dev/tap{number} is still held by");
                    let told = error["msg"].as_str().unwrap().contains(&held);
                    assert!(error["code"] == 11 && told, "{error}");
                    assert!(pod.links().is_empty());
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
    assert_eq!(owner(&tap(number)), (107, 107, 0o660));
    let [winner, loser] = match pods.each_ref() {
        [one, other] if one.links().is_empty() => [other, one],
        pods => pods,
    };
    node.promised(winner, number).succeed("DEL");
    node.promised(loser, number).added().succeed("CHECK");
}

#[test]
fn the_number_of_a_dying_pod_can_be_had_at_once() {
    let (node, number) = (Node::new(), tap_number());
    for round in 0..100 {
        let pod = Host::new();
        // Another MAC each time: nothing but the tap tells that the number is in use.
        let mac = format!("02:00:00:00:01:{round:02x}");
        let call = node.promised(&pod, number).with("mac", mac).added();
        call.succeed("CHECK");
        assert!(tap(number).exists());
    }
    assert!(tap_exists(number) || !tap(number).exists());
}

#[test]
fn many_pods_at_once() {
    let node = Node::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let (pod, number) = (Host::new(), tap_number());
                    let call = node.promised(&pod, number).added();
                    call.succeed("CHECK");
                    call.succeed("DEL");
                    assert!(!tap_exists(number));
                }
            });
        }
    });
}
