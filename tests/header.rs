//! `capi/include/crystalline.h` is what cbindgen makes of the sources of `capi`.
//!
//! `UPDATE_HEADER=1 cargo test --test header` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_made_of_the_sources() {
    let capi = Path::new(env!("CARGO_MANIFEST_DIR")).join("capi");
    let config = cbindgen::Config::from_file(capi.join("cbindgen.toml")).unwrap();
    // Its modules are found from here: a file that is named as well would be in it twice.
    let builder = cbindgen::Builder::new().with_config(config).with_src(capi.join("src/lib.rs"));
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let path = capi.join("include/crystalline.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let made = String::from_utf8(made).unwrap();
    // Every function of the sources is in it, once.
    let mut sources = String::new();
    for entry in fs::read_dir(capi.join("src")).unwrap() {
        sources += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let names: Vec<_> = sources
        .split("extern \"C\" fn ")
        .skip(1)
        .filter_map(|text| text.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("cllm_"))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let call = format!("{name}(");
        let declared = made.match_indices(&call);
        // Behind a type, or the star of a pointer: words of comments have neither.
        let declared = declared.filter(|(at, _)| made[..*at].ends_with([' ', '*']));
        assert_eq!(declared.count(), 1, "{name}");
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == made, "it is another one: UPDATE_HEADER=1 cargo test --test header");
}
