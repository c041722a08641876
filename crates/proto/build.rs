//! Turns the protocol's definition into Rust. The compiler is a library, so that nobody needs `protoc`.

use std::path::PathBuf;

use prost::Message;

const ROOT: &str = "../../proto";
const FILE: &str = "tandem/v1/inference.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={ROOT}/{FILE}");
    let descriptors = protox::compile([FILE], [ROOT])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // For reflection.
    std::fs::write(out.join("inference.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
