//! Where settings come from: flags over environment over file over preset, in any spelling.

mod cli_support;

use cli_support::{command, plan, run, run_in};
use cllm::cli::presets::Preset;
use cllm::settings::TrainSettings;
use serde_json::{Value, json};
use std::fs;

#[test]
fn flags_win_over_the_file_over_the_preset_over_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    fs::write(&file, "preset = \"reference\"\nbatch_size = 5\nn_head = 4\nmax-steps = 77\n")
        .unwrap();
    let config = file.to_str().unwrap();

    // Presets are tuned now and then, so their numbers come from them.
    let shows = |plan: &Value, settings: &TrainSettings| {
        assert_eq!(plan["config"]["n_embd"], settings.n_embd);
        assert_eq!(plan["config"]["n_layer"], settings.n_layer);
        assert_eq!(plan["batch_size"], settings.batch_size);
        assert_eq!(plan["max_steps"], settings.max_steps);
    };
    let nothing = plan(&[]);
    assert_eq!(nothing["preset"], "fast");
    shows(&nothing, &Preset::Fast.settings());
    let default = plan(&["--window", "64"]);
    assert_eq!(default["preset"], "tiny");
    shows(&default, &Preset::Tiny.settings());
    let preset = plan(&["--preset", "reference"]);
    assert_eq!(preset["config"]["vocab_size"], 5000);
    shows(&preset, &Preset::Reference.settings());

    let file = plan(&["--config", config]);
    assert_eq!(file["preset"], "reference");
    assert_eq!((&file["config"]["n_embd"], &file["config"]["n_head"]), (&json!(256), &json!(4)));
    assert_eq!((&file["batch_size"], &file["max_steps"]), (&json!(5), &json!(77)));

    let flags = plan(&["--config", config, "--batch-size", "7", "--preset", "gpt2"]);
    assert_eq!(flags["preset"], "gpt2");
    assert_eq!((&flags["config"]["n_embd"], &flags["config"]["n_head"]), (&json!(768), &json!(4)));
    assert_eq!((&flags["batch_size"], &flags["max_steps"]), (&json!(7), &json!(77)));
}

#[test]
fn underscores_and_other_programs_names_are_understood() {
    let wanted = plan(&["--batch-size", "3", "--n-embd", "64", "--block-size", "32", "--no-bias"]);
    assert_eq!((&wanted["batch_size"], &wanted["config"]["bias"]), (&json!(3), &json!(false)));
    for args in [
        &["--batch_size", "3", "--n_embd=64", "--block_size=32", "--bias=False"][..],
        &["--batch_size=3", "--hidden-size", "64", "--n_positions", "32", "--bias", "false"],
        &["--per_device_train_batch_size=3", "--d_model=64", "--n-ctx=32", "--no_bias"],
    ] {
        let plan = plan(args);
        for key in ["batch_size", "config", "pools"] {
            assert_eq!(plan[key], wanted[key], "{args:?}");
        }
    }
    assert_eq!(plan(&["--bias", "--batch-size", "2"])["config"]["bias"], true);
    assert_eq!(plan(&["--no-tied"])["config"]["tied"], false);
}

#[test]
fn the_environment_chooses_the_instruction_set_unless_a_flag_does() {
    let isa = |variable: &str, args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let base = ["plan", "--json", "--no-estimate"];
        let output = command(dir.path()).args(base).args(args).env("CLLM_ISA", variable).output();
        cli_support::Ran::from(output.unwrap())
    };
    assert_eq!(isa("scalar", &[]).json()["isa"], "scalar");
    let best = plan(&[])["isa"].clone();
    assert_eq!(isa("", &[]).json()["isa"], best);
    assert_eq!(isa("scalar", &["--isa", best.as_str().unwrap()]).json()["isa"], best);
    assert_eq!(isa("sse9", &["--isa", "scalar"]).json()["isa"], "scalar");
    isa("sse9", &[])
        .refused(2, &["CLLM_ISA=sse9: expected scalar, neon, avx, avx2, avx512 or amx"]);
}

#[test]
fn products_of_bf16_take_half_the_room_where_the_cpu_has_them_and_else_say_so() {
    let plan = |args: &[&str]| {
        let base = ["plan", "--json", "--no-estimate", "--threads", "1", "--preset", "reference"];
        let ran = run(&[&base[..], args].concat());
        (ran.json(), ran.stderr.clone())
    };
    let (f32, quiet) = plan(&[]);
    assert_eq!((&f32["dtype"], quiet.as_str()), (&"f32".into(), ""));
    for isa in ["scalar", f32["isa"].as_str().unwrap()] {
        let (bf16, said) = plan(&["--dtype", "bf16", "--isa", isa]);
        assert_eq!(bf16["dtype"], "bf16");
        let packed = |plan: &serde_json::Value| plan["pools"]["packed"].as_u64().unwrap();
        if isa.parse::<cllm_core::Isa>().unwrap().has_bf16() {
            assert_eq!((2 * packed(&bf16), said.as_str()), (packed(&f32), ""));
        } else {
            assert!(said.contains("--dtype bf16") && said.contains("rounded"), "{said}");
        }
    }
}

#[test]
fn mistakes_in_the_file_are_named_with_line_and_nearest_key() {
    let dir = tempfile::tempdir().unwrap();
    for (text, parts) in [
        ("\n\nbacth_size = 3", &["run.toml:3: unknown key bacth_size", "batch_size?"][..]),
        ("[model]\nn_layer = 3", &["run.toml:1: unknown section [model]"]),
        ("n_layer = 'three'", &["run.toml:1: n_layer = 'three': expected a whole number"]),
        ("n_embd = 128\nn_head = 3", &["run.toml:2: n_head = 3: it must divide", "128"]),
        ("dropout = 1.0", &["run.toml:1: dropout = 1: it must be at least 0 and below 1"]),
        ("learning_rate = nan", &["run.toml:1: learning_rate = nan: expected a number"]),
        (
            "isa = 'sse9'",
            &["run.toml:1: isa = 'sse9': expected scalar, neon, avx, avx2, avx512 or amx"],
        ),
        ("dtype = 'f16'", &["run.toml:1: dtype = 'f16': expected f32 or bf16"]),
        ("n_layer = ", &["run.toml:1: "]),
    ] {
        fs::write(dir.path().join("run.toml"), text).unwrap();
        for command in ["plan", "train"] {
            run_in(dir.path(), &[command, "--config", "run.toml"]).refused(2, parts);
        }
    }
    fs::write(dir.path().join("run.toml"), [0xff, 0xfe]).unwrap();
    run_in(dir.path(), &["plan", "--config", "run.toml"]).refused(2, &["run.toml: not UTF-8"]);
    run_in(dir.path(), &["plan", "--config", "none.toml"]).refused(1, &["none.toml"]);
    // Refused settings have started nothing.
    assert!(!dir.path().join("out").exists());
}

#[test]
fn examples_of_help_are_of_what_this_program_can_do() {
    for args in [&["--help"][..], &["train", "--help"]] {
        let help = run(args).done().stdout;
        let of_train: Vec<&str> =
            help.lines().map(str::trim).filter(|line| line.starts_with("cllm train")).collect();
        assert!(!of_train.is_empty(), "{help}");
        let is_on_own_text = |line: &&str| *line == "cllm train" || line.contains("built-in text");
        assert_eq!(of_train.iter().any(is_on_own_text), cfg!(feature = "text"), "{help}");
        let has_pairs = of_train.iter().any(|line| line.contains("--tokenizer bpe"));
        assert_eq!(has_pairs, cfg!(feature = "bpe") && args.len() > 1, "{help}");
    }
}

#[test]
fn help_tells_one_default_of_each_flag() {
    let commands: &[&str] =
        if cfg!(feature = "lora") { &["train", "finetune"] } else { &["train"] };
    for command in commands {
        let help = run(&[command, "-h"]).done().stdout;
        let most = help.lines().map(|line| line.matches("[default: ").count()).max();
        assert_eq!(most, Some(1), "{help}");
    }
}

#[test]
fn help_tells_the_commands_the_flags_and_their_defaults() {
    let help = run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for command in ["train", "generate", "eval", "tokenize", "plan", "bench", "data"] {
        assert!(help.stdout.contains(&format!("  {command} ")), "{}", help.stdout);
        let help = run(&[command, "--help"]);
        assert!(help.code == 0 && help.stdout.contains("Usage: cllm"), "{command}");
    }
    let train = run(&["train", "-h"]).stdout;
    let batch_size = train.split("--batch-size").nth(1).and_then(|rest| rest.split("--").next());
    let default = Preset::Tiny.settings().batch_size;
    assert!(batch_size.unwrap().contains(&format!("[default: {default}]")), "{train}");
    let rate = train.split("--learning-rate <").nth(1).and_then(|rest| rest.split("--").next());
    let default = Preset::Tiny.settings().learning_rate;
    assert!(rate.unwrap().contains(&format!("[default: {default}]")), "{train}");
    let version = run(&["--version"]);
    assert_eq!(version.stdout, format!("cllm {}\n", env!("CARGO_PKG_VERSION")));
    let none = run(&[]);
    assert!(none.code == 2 && none.stdout.is_empty() && none.stderr.contains("Usage: cllm"));
}
