//! Compiles `proto/` to Rust, without a protoc on the machine, and lays a release out: without what
//! it never uses, and what runs side by side.

use std::{env, error::Error, fs, path::Path};

/// A release ends at a panic and has no symbols, so the tables by which frames are unwound say
/// nothing to anyone: an eighth of the file. The unwinder keeps its own, with which a backtrace ends
/// instead of aborting; to tell them apart takes GNU ld.
const WITHOUT_UNWIND_TABLES: &str = "SECTIONS { /DISCARD/ : { *rcgu.o(.eh_frame .gcc_except_table \
    .gcc_except_table.*) *libc.a:*(.eh_frame) } } INSERT AFTER .text;\n";

/// What runs, two fifths of all. The kernel maps the 64 KiB around each function that runs, so that
/// scattered among the others they would bring nearly the whole file into memory.
const ORDER: &str = "scripts/functions.order";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed={ORDER}");
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
        let script = Path::new(&env::var("OUT_DIR")?).join("layout.ld");
        let first = first(&fs::read_to_string(ORDER)?);
        fs::write(&script, WITHOUT_UNWIND_TABLES.to_owned() + &first)?;
        println!("cargo::rustc-link-arg-bins=-fuse-ld=bfd");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    }
    Ok(())
}

/// Puts what runs before all else: together what runs together.
fn first(order: &str) -> String {
    let lines = order.lines().filter_map(|line| line.split_once(' '));
    let lines: Vec<_> = lines.collect();
    let kinds = ["c", "b", "d"].map(|wanted| {
        let of_kind = lines.iter().filter(|(kind, _)| *kind == wanted);
        of_kind.map(|(_, name)| sections(name)).collect::<String>()
    });
    let kinds = kinds.concat();
    format!("SECTIONS {{ .text.first : {{\n{kinds}}} }} INSERT BEFORE .text;\n")
}

/// The sections of a function, or of an object file of the C library.
fn sections(name: &str) -> String {
    match name.strip_suffix(".o") {
        Some(object) => format!("*libc.a:{object}.o(.text .text.*)\n"),
        None => format!("*(.text.{name} .text.unlikely.{name})\n"),
    }
}
