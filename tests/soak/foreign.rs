//! What is not ours: macvtaps and macvlans beside those of the pods, a socket and a directory of
//! others beside those of the device plugin. Nothing changes them.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use kit::netns::{Host, LOWER, Node, foreign_tap_number, tap};
use serde_json::{Value, json};

use crate::node::BYSTANDER;

/// The link group that ports of ours have: a foreign link may have it as well.
const GROUP: u32 = 0x6d76_7470;

/// A foreign link.
struct Link {
    /// Whether it is in a foreign pod, or in the node's own netns.
    elsewhere: bool,
    name: &'static str,
    words: String,
}

pub struct Foreign {
    pod: Host,
    links: Vec<Link>,
    socket: PathBuf,
    _listener: UnixListener,
}

/// What must not change.
#[derive(Debug, PartialEq)]
pub struct Seen(Value);

impl Foreign {
    /// Those beside a node, whose device plugin has its sockets in `dir`.
    pub fn new(dir: &Path) -> Self {
        // A kubelet that starts removes files there, but no directories.
        let dir = dir.join("example.com");
        fs::create_dir(&dir).unwrap();
        let socket = dir.join("socket");
        let link = |elsewhere, name, lower, words: &str| {
            // Taps have machine-wide names.
            let index = foreign_tap_number();
            let words = format!("index {index} link {lower} name {name} {words}");
            Link {
                elsewhere,
                name,
                words,
            }
        };
        let group = format!("group {GROUP} type macvtap mode bridge");
        let links = vec![
            link(false, "macvtap0", LOWER, "type macvtap mode bridge"),
            link(false, "macvtap1", BYSTANDER, "type macvtap mode vepa"),
            link(false, "peer0", LOWER, "type macvlan mode bridge"),
            link(false, "mvt0123456789ab", LOWER, "type macvtap mode private"),
            link(true, "net1", LOWER, &group),
            link(true, "net2", BYSTANDER, &group),
        ];
        Self {
            pod: Host::new(),
            links,
            _listener: UnixListener::bind(&socket).unwrap(),
            socket,
        }
    }

    /// Creates the links, those that there are not: with a lower device they vanish.
    pub fn create(&self, node: &Node) {
        for link in &self.links {
            if self.host(node, link).link(link.name).is_none() {
                let pod = if link.elsewhere {
                    format!("netns {}", self.pod.path())
                } else {
                    String::new()
                };
                node.host.ip(&format!("link add {pod} {}", link.words));
                self.host(node, link)
                    .ip(&format!("link set {} up", link.name));
            }
        }
    }

    fn host<'a>(&'a self, node: &'a Node, link: &Link) -> &'a Host {
        if link.elsewhere {
            &self.pod
        } else {
            &node.host
        }
    }

    /// The names of those in the node's netns.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let here = self.links.iter().filter(|link| !link.elsewhere);
        here.map(|link| link.name)
    }

    /// How they are; none if one of them is gone.
    pub fn look(&self, node: &Node) -> Option<Seen> {
        let socket = fs::metadata(&self.socket).unwrap();
        assert!(socket.file_type().is_socket());
        let (here, there) = (links(&node.host), links(&self.pod));
        let links = self.links.iter().map(|link| {
            let all = if link.elsewhere { &there } else { &here };
            let seen = all.iter().find(|seen| seen["ifname"] == link.name)?;
            Some(describe(seen))
        });
        let links: Option<Vec<Value>> = links.collect();
        Some(Seen(json!([links?, socket.ino()])))
    }
}

/// What `ip` says of all links of a netns.
fn links(host: &Host) -> Vec<Value> {
    serde_json::from_str(&host.ip("-j -d link show")).unwrap()
}

/// What must not change of a link and of the node of its tap.
fn describe(link: &Value) -> Value {
    let index = u32::try_from(link["ifindex"].as_u64().unwrap()).unwrap();
    let node = fs::metadata(tap(index)).ok();
    let keys = [
        "ifname",
        "ifindex",
        "address",
        "mtu",
        "group",
        "txqlen",
        "promiscuity",
        "allmulti",
        "ifalias",
    ];
    let values: Value = keys.iter().map(|key| (*key, link[*key].clone())).collect();
    let up = link["flags"].as_array().unwrap().contains(&json!("UP"));
    let node = node.map(|file| (file.rdev(), file.mode(), file.uid(), file.gid()));
    json!([values, up, link["linkinfo"], node])
}
