//! Compiles `proto/` to Rust, without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "proto/deviceplugin.proto",
        "proto/nri.proto",
        "proto/podresources.proto",
    ];
    let files = protox::compile(files, ["proto"])?;
    // Whoever connects or serves brings a socket of his own.
    let build = tonic_prost_build::configure().build_transport(false);
    Ok(build.compile_fds(files)?)
}
