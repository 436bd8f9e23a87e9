//! The MAC of an attachment for which none is asked for.

use kit::netns::{Case, Cni, Host, IFNAME, LOWER, Node, device_id_in, tap_number};
use serde_json::{Value, json};

/// A call for the pod of this name.
fn of_pod<'a>(node: &'a Node, pod: &Host, name: &str) -> Cni<'a> {
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=vms;K8S_POD_NAME={name}");
    node.allocated(pod, tap_number()).env("CNI_ARGS", &args)
}

fn mac(result: &Value) -> String {
    result["interfaces"][0]["mac"].as_str().unwrap().to_owned()
}

#[test]
fn a_vm_has_its_mac_again_when_it_starts_again_or_migrates() {
    let nodes = [Node::new(), Node::new()];
    let attach = |node: &Node, name: &str| {
        let pod = Host::new();
        let call = of_pod(node, &pod, name);
        let result = call.add();
        assert_eq!(pod.link(IFNAME).unwrap()["address"], mac(&result));
        call.with("prevResult", result.clone()).succeed("CHECK");
        mac(&result)
    };
    let first = attach(&nodes[0], "virt-launcher-fedora-x7k2p");
    // Where the source still runs.
    assert_eq!(attach(&nodes[1], "virt-launcher-fedora-8zqvl"), first);
    assert_eq!(attach(&nodes[0], "virt-launcher-fedora-bcdfg"), first);
    assert_ne!(attach(&nodes[0], "virt-launcher-debian-x7k2p"), first);
    assert_eq!(attach(&nodes[0], "web-0"), attach(&nodes[1], "web-0"));
}

#[test]
fn it_is_random_where_that_is_said_or_nothing_is_known() {
    let node = Node::new();
    let twice = |call: &dyn Fn(&Host) -> Value| [call(&Host::new()), call(&Host::new())];
    let random = |pod: &Host| {
        of_pod(&node, pod, "web-0")
            .with("macPolicy", "random")
            .add()
    };
    let unknown = |pod: &Host| node.allocated(pod, tap_number()).add();
    for [one, other] in [twice(&random), twice(&unknown)] {
        assert_ne!(mac(&one), mac(&other));
    }
    let pod = Host::new();
    let call = of_pod(
        &node,
        &pod,
        &format!("virt-launcher-{}x7k2p", "v".repeat(44)),
    );
    let answer = call.call("ADD");
    assert!(
        answer.stderr.contains("too long for a stable MAC"),
        "{answer:?}"
    );
}

#[test]
fn a_mac_that_is_asked_for_comes_first() {
    let (node, pod) = (Node::new(), Host::new());
    let asked = "02:00:00:00:00:77";
    let result = of_pod(&node, &pod, "web-0").with("mac", asked).add();
    assert_eq!(mac(&result), asked);
}

#[test]
fn in_passthru_mode_it_is_that_of_the_lower_device() {
    let (node, pod) = (Node::new(), Host::new());
    let own = node.host.link(LOWER).unwrap()["address"].clone();
    let call = of_pod(&node, &pod, "web-0");
    let call = call.with("deviceID", device_id_in("passthru", tap_number()));
    assert_eq!(mac(&call.add()), own);
}

#[test]
fn a_wrong_policy_is_named() {
    let case = Case::new();
    let call = case.call().with("macPolicy", "fixed");
    let answer = call.call("ADD");
    assert!(answer.stderr.contains("invalid macPolicy"), "{answer:?}");
    call.succeed("DEL");
    let own = case.node.cni(
        &case.pod,
        json!({"lowerDevice": LOWER, "macPolicy": "fixed"}),
    );
    case.refuses(&own, 7, &["macPolicy", "\"stable\" or \"random\""]);
}

#[test]
fn one_that_another_macvtap_has_is_named_with_its_holder() {
    let (node, holder, pod) = (Node::new(), Host::named(), Host::new());
    let first = of_pod(&node, &holder, "web-0").add();
    let (code, msg) = of_pod(&node, &pod, "web-0").fail("ADD");
    assert_eq!(code, 11);
    let place = holder.path().replace("/run/netns/", "netns ");
    for part in [mac(&first), format!("by interface {IFNAME:?} in {place}")] {
        assert!(msg.contains(&part), "{msg}");
    }
    assert!(pod.links().is_empty());
}
