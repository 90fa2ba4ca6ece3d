//! Compiles the few lines that need a `va_list`.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    // Threads of the fake may outlive a dlclose.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    cc::Build::new().file("src/shim.c").warnings(true).compile("fake_libxl_shim");
}
