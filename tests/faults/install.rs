//! The installer. A runtime that executes the plugin finds the former one or the new one, whole.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kit::{binary, netns::names};
use tempfile::TempDir;

use super::injection::{Fault, alone, each, faults};

const OTHER: &str = "#!/bin/sh\necho another program\n";

/// A CNI directory, with the former plugin in it.
struct World {
    dir: TempDir,
    former: Option<Vec<u8>>,
}

impl World {
    fn new(former: Option<&[u8]>) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            former: former.map(<[u8]>::to_vec),
        }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("macvtap")
    }

    fn prepare(&self) {
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        if let Some(former) = &self.former {
            fs::write(self.target(), former).unwrap();
            fs::set_permissions(self.target(), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn install(&self, by: &[String]) -> Output {
        let binary = binary().to_str().unwrap().to_owned();
        let mut words = by.iter().chain([&binary]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(["install", "--dir"])
            .arg(self.dir.path());
        command.output().unwrap()
    }

    fn found(&self) -> Option<Vec<u8>> {
        fs::read(self.target()).ok()
    }
}

fn install(what: &str, former: Option<&[u8]>, left: &[&str]) {
    let _turn = alone();
    let world = World::new(former);
    world.prepare();
    let log = tempfile::NamedTempFile::new().unwrap();
    let words = ["strace", "-o", log.path().to_str().unwrap()].map(str::to_owned);
    assert!(world.install(&words).status.success());
    let faults = faults(Path::new(log.path()));
    let new = fs::read(binary()).unwrap();
    let suffer = |world: &World, fault: &Fault| {
        world.prepare();
        let output = world.install(&fault.words_alone());
        let found = world.found();
        let is_new = found.as_ref() == Some(&new);
        assert!(
            is_new || found == world.former,
            "{fault}: half a file, or none"
        );
        if output.status.success() {
            assert!(is_new, "{fault}: it said that it was installed");
        } else if !fault.kills() && !fault.ends_it() {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.starts_with("macvtap: "), "{fault}: {output:?}");
        }
        let again = world.install(&[]);
        assert!(again.status.success(), "{fault}: {again:?}");
        assert_eq!(world.found().as_ref(), Some(&new), "{fault}");
        assert_eq!(names(world.dir.path()), left, "{fault}");
        !output.status.success()
    };
    each(what, &faults, || World::new(former), suffer);
}

#[test]
fn into_an_empty_directory() {
    install("install, empty", None, &["macvtap"]);
}

#[test]
fn over_a_former_version() {
    let mut former = fs::read(binary()).unwrap();
    former.push(0);
    install("install, former version", Some(&former), &["macvtap"]);
}

#[test]
fn over_another_program() {
    let left = [".macvtap.prev", "macvtap"];
    install("install, another program", Some(OTHER.as_bytes()), &left);
}
