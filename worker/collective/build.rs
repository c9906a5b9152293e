//! Compiles the shim around libtorch's Gloo and links libtorch, found where `LIBTORCH` says (.cargo/config.toml).

use std::{env, path::PathBuf};

fn main() {
    let shim = PathBuf::from("src/transport/gloo");
    for name in ["LIBTORCH", "CXX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed={}", shim.display());
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from).filter(|folder| folder.join("include").is_dir())
    else {
        println!("cargo:error=LIBTORCH names no folder with libtorch's headers; `python3 scripts/setup.py libtorch`");
        return;
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Templates of libtorch's headers take most of the time; the shim's own code is thin.
        .opt_level(1)
        .debug(false)
        .include(shim.join("include"))
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file(shim.join("shim.cpp"))
        .compile("graftwork_gloo");
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    for library in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
}
