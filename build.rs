//! Compiles `proto/` to Rust, without a protoc on the machine, and leaves out of a release what
//! it never uses.

use std::{env, error::Error, fs, path::Path};

/// A release ends at a panic and has no symbols, so the tables by which Rust's frames are unwound
/// say nothing to anyone: an eighth of the file. The C library keeps its own, with which a
/// backtrace ends instead of aborting; to tell them apart takes GNU ld.
const WITHOUT_UNWIND_TABLES: &str =
    "SECTIONS { /DISCARD/ : { *rcgu.o(.eh_frame) } } INSERT AFTER .text;\n";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "proto/deviceplugin.proto",
        "proto/nri.proto",
        "proto/podresources.proto",
    ];
    let files = protox::compile(files, ["proto"])?;
    // Clients and servers bring a Unix socket of their own.
    let build = tonic_prost_build::configure().build_transport(false);
    build.compile_fds(files)?;
    if env::var("PROFILE")? == "release" {
        let script = Path::new(&env::var("OUT_DIR")?).join("without-unwind-tables.ld");
        fs::write(&script, WITHOUT_UNWIND_TABLES)?;
        println!("cargo::rustc-link-arg-bins=-fuse-ld=bfd");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    }
    Ok(())
}
