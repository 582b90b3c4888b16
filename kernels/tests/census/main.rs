//! A census of the instructions in the built kernels: vectors are really used.
//!
//! Reads the machine code of the release build, not what the source asks for. The code is
//! disassembled by a library: that needs no tool of the system, knows which CPU feature each
//! instruction belongs to, and gives operands as values instead of as text of some syntax.
//!
//! Without `CENSUS_FILE`, which names a program or library to read instead (`.ci/census` sets
//! it), the kernels are built as `.ci/no_std` builds them: as a release, without link-time
//! optimisation, that would leave no machine code in the library.
#![cfg(target_arch = "x86_64")]

mod code;
mod rules;

use code::Function;
use rules::{Counts, TABLES, Table};
use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Where the shells of all tables are.
const SHELLS: &str = "cllm_kernels::shells::";

static KERNELS: LazyLock<Vec<Function>> = LazyLock::new(|| {
    let file = env::var_os("CENSUS_FILE").map_or_else(build, PathBuf::from);
    code::read(&file, "cllm_kernels::").unwrap_or_else(|e| panic!("{e}"))
});

fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("no_std");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--release", "--package", "cllm-kernels"])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the kernels do not build");
    target.join("release/libcllm_kernels.rlib")
}

/// The module of the table that a function is a shell of.
fn table_of(function: &Function) -> Option<&str> {
    let module = function.name.strip_prefix(SHELLS)?.split("::").next()?;
    TABLES.iter().any(|table| table.module == module).then_some(module)
}

fn shells(module: &str) -> Vec<Function> {
    KERNELS.iter().filter(|f| table_of(f) == Some(module)).cloned().collect()
}

fn table(module: &str) -> Table {
    *TABLES.iter().find(|table| table.module == module).expect("a table of that name")
}

fn line(table: &Table, counts: &Counts) -> String {
    let Counts { functions, instructions, multiply_adds, whole, narrow, micro, spills } = counts;
    let (bits, share) = if table.bits == 0 {
        ("-".to_owned(), "-".to_owned())
    } else {
        (table.bits.to_string(), format!("{:.1} %", 100.0 * counts.vector_share()))
    };
    format!(
        "{:<11}{functions:>9}{instructions:>14}{bits:>6}{whole:>14}{narrow:>9}{share:>9}\
         {multiply_adds:>15}{micro:>15}{spills:>8}",
        table.module
    )
}

#[test]
fn built_kernels_use_the_vectors_of_their_instruction_set() {
    println!(
        "{:<11}{:>9}{:>14}{:>6}{:>14}{:>9}{:>9}{:>15}{:>15}{:>8}",
        "kernels",
        "functions",
        "instructions",
        "bits",
        "whole vectors",
        "narrower",
        "share",
        "multiply-adds",
        "micro-kernels",
        "spills"
    );
    let mut wrong = rules::check_outside(KERNELS.iter().filter(|f| table_of(f).is_none()));
    for table in &TABLES {
        let (counts, found) = table.check(&shells(table.module));
        println!("{}", line(table, &counts));
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_table_has_every_kernel() {
    let names = |module: &str| -> BTreeSet<String> {
        let path = format!("{SHELLS}{module}::");
        shells(module).iter().map(|f| f.name.replacen(&path, "", 1)).collect()
    };
    let all = names("scalar");
    assert!(all.len() > 20, "{all:?}");
    for module in ["avx", "avx2", "avx512"] {
        assert_eq!(names(module), all, "{module}");
    }
    let products: BTreeSet<_> =
        all.iter().filter_map(|name| name.strip_prefix("single::")).collect();
    let parts = |names: &BTreeSet<String>| -> BTreeSet<_> {
        names.iter().filter(|name| name.starts_with("parts::")).cloned().collect()
    };
    assert!(parts(&all).len() > 5, "{all:?}");
    assert_eq!(parts(&names("avx512bf16")), parts(&all));
    for (module, format) in [("avx512bf16", "paired::"), ("amx_bf16", "tiled::")] {
        let pairs = names(module);
        let pairs: BTreeSet<_> =
            pairs.iter().filter_map(|name| name.strip_prefix(format)).collect();
        assert_eq!(pairs, products, "{module}");
    }
}

/// What [`Table::check`] says of some code of another table.
fn complaints(judge: &str, shells: &[Function]) -> String {
    table(judge).check(shells).1.join("\n")
}

#[test]
fn the_code_of_one_table_does_not_pass_for_another() {
    let scalar = complaints("avx2", &shells("scalar"));
    for fault in ["gelu: uses no whole vectors", "adamw: has no loop", "% of it in whole vectors"] {
        assert!(scalar.contains(fault), "{fault}: {scalar}");
    }
    assert!(scalar.contains("parts::whole: its largest micro-kernel has 0 multiply-adds"));
    assert!(complaints("avx2", &shells("avx512")).contains("gelu: has instructions of AVX512"));
    assert!(complaints("scalar", &shells("avx")).contains("scale: has instructions of AVX"));
    let unpaired = complaints("avx512bf16", &shells("avx512"));
    assert!(unpaired.contains("parts::whole: its largest micro-kernel has 0"), "{unpaired}");
    let untiled = complaints("amx_bf16", &shells("avx512bf16"));
    assert!(untiled.contains("paired::product_of_both: multiplies outside of tiles"), "{untiled}");
    let fused = complaints("avx", &shells("avx2"));
    assert!(fused.contains("parts::whole: has instructions of AVX2, FMA"), "{fused}");
    assert!(complaints("avx2", &[]).contains("looks at nothing"));
    let outside = rules::check_outside(shells("avx").iter());
    assert!(outside.iter().any(|fault| fault.contains("AVX")), "{outside:?}");
}

/// A table with some instruction of a kernel's largest micro-kernel replaced.
fn planted(module: &str, kernel: &str, bytes: &[u8]) -> Vec<Function> {
    let name = format!("{SHELLS}{module}::{kernel}");
    let mut shells = shells(module);
    let product = shells.iter_mut().find(|f| f.name == name).expect("every table has products");
    let multiply_adds = |f: &Function, range: &core::ops::RangeInclusive<usize>| {
        f.code[range.clone()].iter().filter(|i| code::vector_bits(i) > 128).count()
    };
    let table = table(module);
    let micro = table.micro(product).max_by_key(|l| multiply_adds(product, l));
    let at = *micro.expect("a product has a micro-kernel").start();
    product.code[at] = Function::decode("", 0, bytes).code[0];
    shells
}

#[test]
fn faults_in_a_micro_kernel_are_found() {
    for (module, kernel) in [
        ("avx2", "parts::whole"),
        ("avx2", "parts::wide"),
        ("avx512", "parts::whole"),
        ("avx512bf16", "parts::whole"),
        ("avx512bf16", "paired::product_of_both"),
        ("amx_bf16", "tiled::product"),
    ] {
        for (what, bytes, complaint) in [
            // vmovaps [rsp+32], ymm0
            ("spill", &[0xc5, 0xfc, 0x29, 0x44, 0x24, 0x20][..], "keeps sums in memory: 1 moves"),
            // vfmadd231ps ymm0, ymm1, [rsp+32]
            (
                "operand",
                &[0xc4, 0xe2, 0x75, 0xb8, 0x44, 0x24, 0x20],
                "keeps sums in memory: 1 moves",
            ),
            // call 5
            ("call", &[0xe8, 0, 0, 0, 0], "calls a function"),
            // vaddss xmm0, xmm0, xmm1
            ("single", &[0xc5, 0xfa, 0x58, 0xc1], "computes on single floats"),
        ] {
            let faults = complaints(module, &planted(module, kernel, bytes));
            let at = format!("{kernel}: a micro-kernel {complaint}");
            assert!(faults.contains(&at), "{module} {what}: {faults}");
        }
        // A plain move of a general register: nothing is wrong with it.
        let faults = complaints(module, &planted(module, kernel, &[0x48, 0x89, 0xc3]));
        assert!(!faults.contains("a micro-kernel"), "{module}: {faults}");
    }
}
