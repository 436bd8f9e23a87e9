//! The fuzz targets on their corpus: what was ever found stays mended. `scripts/fuzz` makes up
//! more.

mod targets;

use std::{fs, panic, path::Path};

fn replay(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut count = 0;
    for entry in fs::read_dir(dir.join(target)).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::read(&path).unwrap();
        let held = panic::catch_unwind(|| run(&data));
        assert!(held.is_ok(), "{}", path.display());
        count += 1;
    }
    assert!(count > 0, "the corpus of {target} is empty");
}

#[test]
fn cni() {
    replay("cni", targets::cni);
}

#[test]
fn cni_args() {
    replay("cni_args", targets::cni_args);
}

#[test]
fn device_id() {
    replay("device_id", targets::device_id);
}

#[test]
fn dp_conf() {
    replay("dp_conf", targets::dp_conf);
}

#[test]
fn frame() {
    replay("frame", targets::frame);
}

#[test]
fn grpc() {
    replay("grpc", targets::grpc);
}

#[test]
fn netlink() {
    replay("netlink", targets::netlink);
}
