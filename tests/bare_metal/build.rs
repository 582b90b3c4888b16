//! Links an image that a virtual machine starts: nothing but this program is inside, where `link.ld` puts it.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where it is");
    let script = format!("-Wl,-T,{folder}/link.ld");
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", &script]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=link.ld");
}
