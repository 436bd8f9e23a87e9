//! What `link list`, `show` and `set` say and change of a guest's limits.

use std::io::Write;

use kit::netns::{Case, IFNAME, taps::open};
use macvtap::host::tap::VNET_HEADER;
use serde_json::{Value, json};

use super::{Resident, alone, run, succeed};

fn shown(case: &Case) -> Value {
    let words = ["link", "show", &case.number.to_string(), "--json"];
    let list: Value = serde_json::from_str(&succeed(&case.node.host, &words)).unwrap();
    list["macvtaps"][0].clone()
}

#[test]
fn security_and_what_it_dropped_are_shown_by_reason() {
    let _alone = alone();
    let case = Case::new();
    let _resident = Resident::new(&case.pod);
    let call = case.call().with("mac", "02:00:00:00:00:aa");
    call.with("security", "mac").add();
    let mut frame = vec![0; VNET_HEADER];
    frame.extend([0xff; 6].iter().chain(&[2, 0, 0, 0, 0, 0xbb]));
    frame.extend([0x88, 0xb5]);
    frame.resize(VNET_HEADER + 60, 0);
    let guest = open(case.number);
    for _ in 0..3 {
        (&guest).write_all(&frame).unwrap();
    }
    let found = shown(&case);
    assert_eq!(found["security"], "mac", "{found}");
    assert_eq!(found["securityDropped"]["mac"], 3, "{found}");
    assert_eq!(found["securityDropped"]["arp"], 0, "{found}");
    let text = succeed(&case.node.host, &["link", "show", &case.number.to_string()]);
    let [columns, row] = [0, 1].map(|line| text.lines().nth(line).unwrap());
    let below = |name: &str| &row[columns.find(name).unwrap()..];
    assert!(below("SECURITY").starts_with("mac "), "{text}");
    assert!(below("DROPPED").starts_with("mac 3"), "{text}");
    assert_eq!(found["securityMacs"], json!(["02:00:00:00:00:aa"]));
    case.pod
        .ip(&format!("link set {IFNAME} address 02:00:00:00:00:bb"));
    let text = succeed(&case.node.host, &["link", "show", &case.number.to_string()]);
    assert!(text.contains("mac (for 02:00:00:00:00:aa)"), "{text}");
}

#[test]
fn rates_change_on_a_living_attachment_and_del_leaves_nothing_of_them() {
    let _alone = alone();
    let case = Case::new();
    let _resident = Resident::new(&case.pod);
    let call = case.call().added();
    let rates = |found: &Value| ["ingress", "egress"].map(|way| found[way]["rate"].clone());
    let netns = case.pod.path();
    let set = |option: &str, rate: &str| {
        let words = ["link", "set", IFNAME, "--netns", &netns, option, rate];
        succeed(&case.node.host, &words);
        rates(&shown(&case))
    };
    assert_eq!(rates(&shown(&case)), [Value::Null, Value::Null]);
    assert_eq!(
        set("--rate", "100M"),
        [json!(100_000_000), json!(100_000_000)]
    );
    assert_eq!(
        set("--egress-rate", "1G"),
        [json!(100_000_000), json!(1_000_000_000)]
    );
    assert_eq!(
        set("--ingress-rate", "0"),
        [Value::Null, json!(1_000_000_000)]
    );
    assert_eq!(set("--rate", "0"), [Value::Null, Value::Null]);
    assert_eq!(case.pod.links(), [IFNAME]);
    assert_eq!(set("--ingress-rate", "8000"), [json!(8000), Value::Null]);
    assert_eq!(case.pod.links().len(), 2);
    let words = ["link", "set", IFNAME, "--netns", &netns, "--rate", "1"];
    let refused = run(&case.node.host, &words);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("from 1000 to"), "{stderr}");
    call.succeed("DEL");
    assert_eq!(case.pod.links(), [""; 0]);
}
