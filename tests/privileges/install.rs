//! The installer in its container.

use std::{fs, os::unix::fs::chown, path::Path, process::Output};

use kit::{binary, netns::Host};

use super::container::{Container, pod};

fn install(dir: &Path) -> Output {
    let which = &pod()["initContainers"][0];
    let host = Host::new();
    let container = Container::new(which, &host, &[("cni-bin", dir)]);
    assert!(container.capabilities().is_empty());
    container.command().output().unwrap()
}

#[test]
fn the_manifests_rights_suffice() {
    let dir = tempfile::tempdir().unwrap();
    let output = install(dir.path());
    assert!(output.status.success(), "{output:?}");
    let installed = fs::read(dir.path().join("macvtap")).unwrap();
    assert!(installed == fs::read(binary()).unwrap());
}

#[test]
fn a_directory_of_another_user_needs_a_capability_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(1234), Some(1234)).unwrap();
    let output = install(dir.path());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("CAP_DAC_OVERRIDE"),
        "{output:?}"
    );
}
