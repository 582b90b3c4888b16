//! `docs/unsafe.md` has every `unsafe` of the repository: why it is sound, and what exercises it.
//!
//! `UPDATE_UNSAFE=1 cargo test --test unsafe_table` writes it anew. Each place with its line and its whole comment is
//! in `target/tmp/unsafe.tsv` after any run.

mod rows;
mod scan;

use core::cmp::Reverse;
use core::fmt::Write as _;
use rows::{ROWS, Row};
use scan::{Kind, Site, Who};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All sources below `dir`, but for build output and what is hidden, by their paths from the root.
fn sources(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let below = path.strip_prefix(root()).unwrap();
            found.push(below.to_str().unwrap().replace('\\', "/"));
        }
    }
}

/// The places of each source that has some.
fn all_sites() -> BTreeMap<String, Vec<Site>> {
    let mut paths = Vec::new();
    sources(root(), &mut paths);
    assert!(paths.len() > 300, "the repository looks empty: {} sources", paths.len());
    let (mut all, mut bare) = (BTreeMap::new(), Vec::new());
    for path in paths {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        // Most have none, and need not be read as tokens.
        if text.contains("unsafe") {
            let (sites, more) = scan::sites(&path, &text);
            bare.extend(more);
            if !sites.is_empty() {
                all.insert(path, sites);
            }
        }
    }
    assert!(bare.is_empty(), "why is it sound?\n{}", bare.join("\n"));
    all
}

/// The page.
fn page(all: &BTreeMap<String, Vec<Site>>) -> String {
    let mut page = String::from(rows::HEAD);
    let everything: Vec<_> = all.values().flatten().collect();
    for row in ROWS {
        let sites: Vec<_> = row.paths().iter().flat_map(|path| &all[path]).collect();
        let tests: Vec<_> = row.tests.iter().map(|test| format!("`{}`", short(test))).collect();
        let because = because(&sites, true);
        page += &line(&format!("`{}`", row.files), &sites, row.what, &because, &tests.join(", "));
    }
    page + &line("all", &everything, "", &because(&everything, false), "")
}

fn line(files: &str, sites: &[&Site], what: &str, because: &str, tests: &str) -> String {
    let of = |kind| sites.iter().filter(|site| site.kind == kind).count();
    let (blocks, functions) = (of(Kind::Block), of(Kind::Function));
    let others = of(Kind::Promise) + of(Kind::Outside);
    format!("| {files} | {blocks} | {functions} | {others} | {what} | {because} | {tests} |\n")
}

/// A test as Cargo and its output name it: its program or module, and itself.
fn short(test: &str) -> String {
    let Some((path, function)) = test.split_once("::") else { return test.to_owned() };
    let module = path.trim_end_matches(".rs");
    let module = module.rsplit_once("/tests/").map_or(module, |(_, name)| name);
    let module = module.rsplit_once("/src/").map_or(module, |(_, name)| name);
    format!("{}::{function}", module.trim_start_matches("tests/").replace('/', "::"))
}

/// How many places are of each guarantor; with `said` also what is said most often by those of the first guarantor
/// that is not just the caller.
fn because(sites: &[&Site], said: bool) -> String {
    let mut by = Who::ALL.map(|who| (sites.iter().filter(|s| s.who == Some(who)).count(), who));
    by.sort_by_key(|&(count, _)| Reverse(count));
    let by: Vec<_> = by.into_iter().filter(|(count, _)| *count > 0).collect();
    let telling = by.iter().map(|&(_, who)| who).find(|who| *who != Who::Caller);
    let text = |(count, who): (usize, Who)| match telling.filter(|telling| said && *telling == who)
    {
        Some(_) => format!("{} {count} ({})", who.name(), most_said(sites, who)),
        None => format!("{} {count}", who.name()),
    };
    by.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What most comments say first that name this guarantor; of those that are as frequent, the first.
fn most_said(sites: &[&Site], who: Who) -> String {
    let of_it = sites.iter().filter(|site| site.who == Some(who));
    let clauses: Vec<_> = of_it.map(|site| clause(&site.because)).collect();
    let often = |clause: &&String| clauses.iter().filter(|other| other == clause).count();
    let own = clauses.iter().filter(|clause| !clause.starts_with("as "));
    own.rev().max_by_key(often).unwrap_or(&clauses[0]).clone()
}

/// What a comment says first, cut where the page would grow too wide.
fn clause(comment: &str) -> String {
    const WIDE: usize = 56;
    // Not at the two dots of a range.
    let end = ["; ", ": ", ". ", "|"].iter().flat_map(|mark| comment.match_indices(mark));
    let end = end.map(|(at, _)| at).filter(|at| !comment[..*at].ends_with('.')).min();
    let clause = comment[..end.unwrap_or(comment.len())].trim_end_matches('.');
    if clause.chars().count() <= WIDE {
        return clause.to_owned();
    }
    let cut: String = clause.chars().take(WIDE).collect();
    format!("{} …", cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words))
}

/// Each place with its lines, for people who look for one.
fn list(all: &BTreeMap<String, Vec<Site>>) -> String {
    let mut list = String::from("file\tfirst\tlast\tkind\titem\tbecause\tcomment\ttests\n");
    for row in ROWS {
        for path in row.paths() {
            for Site { kind, lines: (first, last), item, because, who } in &all[&path] {
                let who = who.map_or("", Who::name);
                let tests = row.tests.join(" ");
                writeln!(
                    list,
                    "{path}\t{first}\t{last}\t{kind:?}\t{item}\t{who}\t{because}\t{tests}"
                )
                .unwrap();
            }
        }
    }
    list
}

#[test]
fn every_place_is_in_the_table_with_its_reason() {
    let all = all_sites();
    // Each source in one row, and none that has no such place any more.
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for path in ROWS.iter().flat_map(Row::paths) {
        assert!(
            all.contains_key(&path),
            "{path} has nothing unsafe: take it out of tests/unsafe_table/rows.rs"
        );
        *rows.entry(path).or_default() += 1;
    }
    for path in all.keys() {
        let count = rows.get(path).copied().unwrap_or(0);
        assert_eq!(count, 1, "{path} has to be in one row of tests/unsafe_table/rows.rs");
    }
    // Nothing is lost between the words of the sources and the table.
    let list = list(&all);
    assert_eq!(list.lines().count() - 1, all.values().flatten().count());
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("unsafe.tsv"), list).unwrap();

    let (path, made) = (root().join("docs/unsafe.md"), page(&all));
    if std::env::var_os("UPDATE_UNSAFE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "docs/unsafe.md is another one: UPDATE_UNSAFE=1 cargo test --test unsafe_table"
    );
    // One page, in small print: that is what makes it read.
    let (lines, characters) = (made.lines().count(), made.chars().count());
    assert!(
        lines <= 66 && characters <= 12_000,
        "{lines} lines of {characters} characters are no page: put sources together"
    );
}

#[test]
fn tests_in_the_table_are_there() {
    for test in ROWS.iter().flat_map(|row| row.tests) {
        let (path, function) = test.split_once("::").unwrap_or((test, ""));
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        if function.is_empty() {
            let starts = text.starts_with("#!/usr/bin/env bash") || path.ends_with(".c");
            assert!(starts, "{path} is no script and no program of C: name a test in it");
            continue;
        }
        let at = text.find(&format!("fn {function}()"));
        let before = &text[..at.unwrap_or_else(|| panic!("{path} has no test `{function}`"))];
        // Attributes stand above, and behind what comes before.
        let attributes = &before[before.rfind('}').unwrap_or(0)..];
        assert!(attributes.contains("#[test]"), "`{function}` of {path} is no test");
    }
}
