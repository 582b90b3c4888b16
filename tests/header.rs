//! `capi/include/crystalline.h` is what cbindgen makes of the sources of `capi`.
//!
//! `UPDATE_HEADER=1 cargo test --test header` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_made_of_the_sources() {
    let capi = Path::new(env!("CARGO_MANIFEST_DIR")).join("capi");
    let config = cbindgen::Config::from_file(capi.join("cbindgen.toml")).unwrap();
    let mut sources: Vec<_> =
        fs::read_dir(capi.join("src")).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.sort();
    assert!(sources.len() > 5, "{sources:?}");
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = sources.into_iter().fold(builder, |builder, path| builder.with_src(path));
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let path = capi.join("include/crystalline.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let made = String::from_utf8(made).unwrap();
    // Every function of the sources is in it.
    assert!(made.matches("CllmStatus cllm_").count() > 15, "{made}");
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == made, "it is another one: UPDATE_HEADER=1 cargo test --test header");
}
