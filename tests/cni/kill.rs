//! ADD killed at many moments: DEL then leaves nothing, and ADD works again.

use std::{io::Write, time::Duration};

use serde_json::json;

use crate::netns::{Cni, Host, LOWER, Node, tap, tap_exists, tap_number};

/// Starts ADD, kills it after `delay`, and tells whether that came in time.
fn kill(node: &Node, call: &Cni<'_>, delay: Duration) -> bool {
    let mut command = call.command("ADD");
    let mut child = node.host.0.run(|| Ok(command.spawn()?)).unwrap();
    child.stdin.take().unwrap().write_all(call.input()).unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < delay {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    status.code().is_none()
}

#[test]
fn a_killed_add_leaves_nothing_after_del() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.promised(&pod, number);
    let mut killed = 0;
    let mut with_link = 0;
    for step in 0..160 {
        let delay = Duration::from_micros(step * 20);
        killed += u32::from(kill(&node, &call, delay));
        with_link += u32::from(!pod.links().is_empty());
        call.succeed("DEL");
        assert!(pod.links().is_empty(), "a link is left after {delay:?}");
        assert!(!tap_exists(number), "a tap is left after {delay:?}");
        assert!(!tap(number).exists(), "a node is left after {delay:?}");
        assert_eq!(node.host.links(), [LOWER]);
    }
    println!("of 160 ADDs {killed} were killed before their end; {with_link} had made a link");
    assert!(killed > 20, "only {killed} were killed in time");
    call.add();
    call.succeed("DEL");
}

#[test]
fn a_killed_hand_over_leaves_nothing_after_del() {
    let (node, pod) = (Node::new(), Host::new());
    for step in 0..40 {
        let number = tap_number();
        node.host.ip(&format!(
            "link add dev500 index {number} link {LOWER} type macvtap"
        ));
        let call = node.cni(&pod, json!({"deviceID": "dev500"}));
        kill(&node, &call, Duration::from_micros(step * 700));
        call.succeed("DEL");
        assert!(pod.links().is_empty(), "a link is left in the pod");
        // Killed before the move, it waits on the host as before.
        let waiting = node.host.link("dev500").is_some();
        assert_eq!(tap_exists(number), waiting);
        if waiting {
            node.host.ip("link delete dev500");
        }
    }
}
