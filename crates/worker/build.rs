//! Compiles the shim, checks that libtorch has the version that tch was made for, and lets the program find libtorch
//! beside itself: installed (`../lib/atelier/torch/lib`) or where it was built.

use std::{env, fs, path::PathBuf};

/// What tch 0.26.0 binds. torch-sys checks only a file that a wheel does not have.
const LIBTORCH_VERSION: &str = "2.13.0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cpp/shim.cpp");
    println!("cargo::rerun-if-changed=cpp/scarcity.cpp");
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys is a direct dependency and sets this"));
    let include = lib.join("../include");
    let header = include.join("torch/headeronly/version.h");
    let version = fs::read_to_string(&header).unwrap_or_else(|error| {
        panic!("{}: {error}. Run tools/libtorch/setup.py, or set LIBTORCH to libtorch's folder.", header.display())
    });
    assert!(
        version.contains(&format!("\"{LIBTORCH_VERSION}\"")),
        "libtorch in {} is not {LIBTORCH_VERSION}. Run tools/libtorch/setup.py, or correct LIBTORCH.",
        lib.display()
    );
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        .debug(false)
        .opt_level(1)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file("cpp/shim.cpp")
        .file("cpp/scarcity.cpp")
        .compile("atelier_shim");
    println!("cargo::rustc-link-search=native={}", lib.display());
    println!("cargo::rustc-link-lib=torch_cpu");
    println!("cargo::rustc-link-lib=c10");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/atelier/torch/lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
