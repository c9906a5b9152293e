//! Compiles `graftwork.proto` with a compiler written in Rust, so that no `protoc` is needed.

fn main() {
    let file = "proto/graftwork.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"]).expect("graftwork.proto is valid");
    tonic_prost_build::configure().compile_fds(descriptors).expect("code can be written for graftwork.proto");
}
