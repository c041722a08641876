//! Turns the protocol's definition into Rust. The compiler is a library, so that nobody needs `protoc`.

const ROOT: &str = "../../proto";
const FILE: &str = "tandem/v1/cluster.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={ROOT}/{FILE}");
    let descriptors = protox::compile([FILE], [ROOT])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
