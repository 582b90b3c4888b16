//! `capi/include/crystalline.h` is what cbindgen makes of the sources of `capi`.
//!
//! `UPDATE_HEADER=1 cargo test --test header` writes it anew.

use std::fs;
use std::path::{Path, PathBuf};

fn capi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("capi")
}

/// What the library says of itself, for those who have the header alone.
fn introduction(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    // Fences are of Markdown; bold words are headings without it too.
    let lines = lines.filter(|line| !line.starts_with(" ```"));
    let lines = lines.map(|line| format!("//{}", line.replace("**", "")));
    lines.fold(String::new(), |text, line| text + "\n" + &line)
}

#[test]
fn the_header_is_made_of_the_sources() {
    let capi = capi();
    let mut config = cbindgen::Config::from_file(capi.join("cbindgen.toml")).unwrap();
    config.after_includes =
        Some(introduction(&fs::read_to_string(capi.join("src/lib.rs")).unwrap()));
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

/// The functions that a header declares, with their parameters.
fn declared(header: &str) -> Vec<(String, Vec<String>)> {
    let lines = header.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for declaration in code.split(';') {
        let Some((before, parameters)) = declaration.split_once('(') else { continue };
        let name = before.rsplit([' ', '*']).next().unwrap_or_default();
        if let (true, Some(parameters)) = (name.starts_with("cllm_"), parameters.strip_suffix(')'))
        {
            let parameters = parameters.split(',').map(|of| of.trim().to_owned()).collect();
            found.push((name.to_owned(), parameters));
        }
    }
    found
}

#[test]
fn every_pointer_of_the_header_is_tried() {
    let header = fs::read_to_string(capi().join("include/crystalline.h")).unwrap();
    let table = fs::read_to_string(capi().join("tests/pointers.c")).unwrap();
    let functions = declared(&header);
    assert!(functions.len() > 15, "{functions:?}");
    let mut pointers = 0;
    for (function, parameters) in functions {
        for parameter in parameters {
            let Some((_, name)) = parameter.rsplit_once('*') else { continue };
            let line = match name {
                // Every call of the table is tried without it, too.
                "error" => continue,
                "trainer" if !parameter.contains("**") => format!("  TRAINER({function}, "),
                "generator" if !parameter.contains("**") => format!("  GENERATOR({function}, "),
                name => format!("({function}, {name}, "),
            };
            assert!(
                table.contains(&line),
                "capi/tests/pointers.c does not try {name} of {function}"
            );
            pointers += 1;
        }
    }
    assert!(pointers > 30, "{pointers}");
}

#[test]
fn every_status_of_the_header_is_expected_somewhere() {
    let header = fs::read_to_string(capi().join("include/crystalline.h")).unwrap();
    let mut tests = String::new();
    for entry in fs::read_dir(capi().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|of| of == "c") {
            tests += &fs::read_to_string(path).unwrap();
        }
    }
    let lines = header.lines().map(str::trim).filter(|line| line.ends_with(','));
    let statuses = lines.filter_map(|line| line.strip_prefix("CLLM_STATUS_")?.split_once(" = "));
    let statuses: Vec<_> = statuses.map(|(name, _)| name).collect();
    assert!(statuses.len() > 10, "{statuses:?}");
    for status in statuses {
        // A tile that panics ends the program before anybody is told.
        let is_told = status != "OK" && status != "BROKEN";
        let (short, long) = (format!(", {status}, "), format!("CLLM_STATUS_{status}"));
        let is_tried = tests.contains(&short) || tests.contains(&long);
        assert!(is_tried || !is_told, "no test of capi/tests expects {status}");
    }
}
