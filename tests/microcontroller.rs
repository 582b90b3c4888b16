//! A Cortex-M with 256 KiB of RAM (`tests/microcontroller/`) trains the weights of a hosted run, to the bit.
//!
//! Here the same workloads train on the same kernels, those of one lane. The machine itself is started by the tests
//! that `cargo test` ignores: `QEMU_ARM` names an emulator and `CARGO_THUMB` a cargo that builds for it.
//! `tests/microcontroller.sh` gets both and runs them.

#[path = "microcontroller/src/adapt.rs"]
mod adapt;
#[path = "microcontroller/src/split.rs"]
mod split;
#[path = "microcontroller/src/workload.rs"]
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::{env, fs};

use adapt::Base;
use cllm::data::embedded;
use cllm_core::{Batch, BatchShape, Engine, Kernels, Line, Mode, Op, Optimizer, Param, Plan};
use cllm_core::{Pool, Pools, Queue, Slot, Trainer, Word, floats};
use object::{Object as _, ObjectSegment as _};
use workload::common::Failure;
use workload::run::Run;
use workload::{ALL_STEPS, Lists, Memory, STEPS, text};

/// Seconds that the machine may take, which is emulated: half a minute, or some of one without an FPU.
const PATIENCE: &str = "900";
/// How the program ends whose access was refused.
const FAULTED: i32 = 19;
/// What the status of a fault has then: the MPU refused data, and the address is that of the access.
const REFUSED: u32 = 0x82;

/// Bytes of a line. Both of a program's statics, the pools with the batch and the engine's lists, are whole lines, so that
/// the end of each may be a gap: there are no other statics.
const LINE: usize = size_of::<Line>();

/// A machine: what it is, QEMU's name of it, and the target.
type Machine = (&'static str, &'static str, &'static str);
const M3: Machine = ("Cortex-M3", "mps2-an385", "thumbv7m-none-eabi");
const M4: Machine = ("Cortex-M4", "mps2-an386", "thumbv7em-none-eabihf");
const M7: Machine = ("Cortex-M7", "mps2-an500", "thumbv7em-none-eabihf");

/// The text that is learnt from, and the one that is held back.
fn texts() -> (Vec<u8>, Vec<u8>) {
    let mut learnt = embedded::text().expect("it is part of the program");
    let held_back = learnt.split_off(split::learnt(learnt.len()));
    (learnt, held_back)
}

fn hex(hash: Result<[u8; 32], Failure>) -> String {
    let hash = hash.unwrap_or_else(|failure| panic!("{}", failure.0));
    hash.map(|byte| format!("{byte:02x}")).concat()
}

/// What the workload tells and its hash; `then` gets the run after that.
fn hosted(
    learnt: &[u8],
    then: impl FnOnce(&mut Run<'_, '_>) -> Result<(), Failure>,
) -> (String, String) {
    // Too large for a test thread's stack.
    static MEMORY: Mutex<(Memory, Lists)> = Mutex::new((Memory::new(), Lists::new()));
    let mut memory = MEMORY.lock().expect("nobody panicked with it");
    let (memory, lists) = &mut *memory;
    let mut told = String::new();
    let hash = workload::train(Kernels::scalar(), (memory, lists), learnt, &mut told, then);
    (told, hex(hash))
}

/// The losses of what was told.
fn losses(told: &str) -> Vec<f64> {
    let after = |line: &str| line.split_once("loss ").map(|(_, loss)| loss.parse().unwrap());
    told.lines().filter_map(after).collect()
}

#[test]
fn the_characters_are_those_of_the_text() {
    let mut seen = [false; 256];
    embedded::text().unwrap().iter().for_each(|byte| seen[usize::from(*byte)] = true);
    let characters: Vec<u8> = (0..=255).filter(|byte| seen[usize::from(*byte)]).collect();
    assert_eq!(characters, text::CHARACTERS);
    for (number, character) in characters.iter().enumerate() {
        assert_eq!(text::number(*character) as usize, number);
    }
}

/// What the image has linked is what the plan asks for, with nothing to spare.
#[test]
fn the_memory_is_what_the_plan_asks_for() {
    let (mut memory, mut lists) = (Box::new(Memory::new()), Lists::new());
    check(&workload::PLAN, memory.parts(), &lists.queue());
    let (mut memory, mut lists) = (Box::new(adapt::Memory::new()), adapt::Lists::new());
    check(&adapt::PLAN, memory.parts(), &lists.queue());
}

fn check(plan: &Plan, parts: (Pools<'_>, [&mut [u32]; 2]), queue: &Queue<'_>) {
    let (pools, [tokens, targets]) = parts;
    let have = [pools.parameters, pools.gradients, pools.moments, pools.activations, pools.scratch];
    let asked =
        [Pool::Parameters, Pool::Gradients, Pool::Moments, Pool::Activations, Pool::Scratch];
    assert_eq!(have.map(|lines| lines.len()), asked.map(|pool| plan.lines(pool)));
    let have = [queue.ops.len(), queue.slots.len(), queue.words.len()];
    assert_eq!(have, [plan.ops(), plan.slots(), plan.words()]);
    assert_eq!([tokens.len(), targets.len()], [plan.tokens(); 2]);
}

#[test]
fn the_hosted_run_learns() {
    let (told, hash) = hosted(&texts().0, |_| Ok(()));
    println!("{told}sha256  {hash}");
    let losses = losses(&told);
    assert!(losses[losses.len() - 1] < losses[0] - 1.5, "{told}");
}

/// A model for flash memory, trained a little on the text: panels, other tensors, bytes of the token table.
fn base(learnt: &[u8]) -> (Vec<Line>, Vec<f32>, Vec<u8>) {
    let shape = BatchShape { sequences: 8, tokens: adapt::CONFIG.block_size };
    let whole = Plan::new(&adapt::CONFIG, shape, 1, Mode::Train, Kernels::detect()).unwrap();
    let weights = with_trainer(&whole, Kernels::detect(), |trainer| {
        let (mut tokens, mut targets) = (vec![], vec![]);
        for step in 0..400 {
            tokens.clear();
            targets.clear();
            for sequence in 0..shape.sequences as u64 {
                let window = text::window(learnt, 8 * step + sequence, shape.tokens + 1);
                tokens.extend(window[..shape.tokens].iter().map(|c| text::number(*c)));
                targets.extend(window[1..].iter().map(|c| text::number(*c)));
            }
            trainer.accumulate(&Batch::new(&tokens, &targets), tokens.len()).unwrap();
            trainer.update(&Optimizer::default(), 3e-3).unwrap();
        }
        trainer.parameters().to_vec()
    });
    let kept = adapt::PLAN;
    let table = kept.table().spec(Param::TokenTable).unwrap();
    let table = weights[table.range()].iter().flat_map(|x| x.to_le_bytes()).collect();
    with_trainer(&kept, Kernels::scalar(), |trainer| {
        let mut staging = vec![0.0; kept.staging_len()];
        let loaded: Result<(), ()> = trainer.load(&mut staging, |spec, first, values| {
            values.copy_from_slice(&weights[spec.range()][first * spec.cols..][..values.len()]);
            Ok(())
        });
        loaded.unwrap();
        let resident = trainer.parameters()[..kept.resident().arena_len()].to_vec();
        (trainer.panels().to_vec(), resident, table)
    })
}

/// Runs `work` on a trainer with memory from the heap.
fn with_trainer<R>(
    plan: &Plan,
    kernels: &'static Kernels,
    work: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    let lines = |pool| vec![Line::ZERO; plan.lines(pool)];
    let pools = Pools {
        parameters: &mut lines(Pool::Parameters),
        gradients: &mut lines(Pool::Gradients),
        moments: &mut lines(Pool::Moments),
        packed: &mut lines(Pool::Packed),
        activations: &mut lines(Pool::Activations),
        scratch: &mut lines(Pool::Scratch),
    };
    let queue = Queue {
        ops: &mut vec![Op::EMPTY; plan.ops()],
        slots: &mut (0..plan.slots()).map(|_| Slot::new()).collect::<Vec<_>>(),
        words: &mut (0..plan.words()).map(|_| Word::new(0)).collect::<Vec<_>>(),
    };
    let engine = Engine::new(plan, queue).unwrap();
    let mut trainer = Trainer::new(plan, kernels, pools, &engine, 7).unwrap();
    trainer.initialise();
    work(&mut trainer)
}

/// What the training of adapters tells, and its hash.
fn adapted(base: Base<'_>, learnt: &[u8]) -> (String, String) {
    let (mut memory, mut lists) = (Box::new(adapt::Memory::new()), adapt::Lists::new());
    let (mut told, capitals) = (String::new(), split::capitals(learnt));
    let memory = (&mut *memory, &mut lists);
    let hash = adapt::train(Kernels::scalar(), memory, base, &capitals, &mut told);
    (told, hex(hash))
}

#[test]
fn adapters_beside_a_model_that_is_only_read_learn() {
    let (learnt, _) = texts();
    let (panels, resident, table) = base(&learnt);
    let base = Base { panels: &panels, resident: &resident, table: &table };
    let (told, hash) = adapted(base, &learnt);
    println!("{told}sha256  {hash}");
    let losses = losses(&told);
    assert!(losses[losses.len() - 1] < losses[0] - 1.0, "{told}");
    // The model does not fit into the machine's RAM, by far.
    assert!(4 * adapt::PLAN.table().parameters() > 256 << 10);
}

/// The emulator and the cargo that builds for it.
fn tools() -> (PathBuf, PathBuf) {
    let named = |name| match env::var_os(name) {
        Some(tool) if !tool.is_empty() => PathBuf::from(tool),
        _ => panic!("{name} names no program: run tests/microcontroller.sh, which gets one"),
    };
    (named("QEMU_ARM"), named("CARGO_THUMB"))
}

/// Builds an image for a target, with a model in flash memory, and says where it is.
fn build(cargo: &Path, target: &str, program: &str, base: Option<&Path>) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/microcontroller");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("microcontroller");
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--locked", "--release", "--bin", program]);
    build.args(["--target", target, "--target-dir"]).arg(&to).current_dir(&folder);
    // Those of the cargo that runs this test are for its own compiler.
    for variable in ["RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        build.env_remove(variable);
    }
    build.envs(base.map(|base| ("MICROCONTROLLER_BASE", base)));
    assert!(build.status().expect("cargo runs").success(), "{program} does not build for {target}");
    to.join(target).join("release").join(program)
}

/// Starts a machine with an image, which gets an argument.
fn start(qemu: &Path, machine: &str, image: &Path, argument: &str) -> Output {
    Command::new("timeout")
        .arg(PATIENCE)
        .arg(qemu)
        .args(["-machine", machine, "-display", "none", "-monitor", "none", "-serial", "none"])
        .arg("-semihosting-config")
        .arg(format!("enable=on,target=native,arg=microcontroller,arg={argument}"))
        .arg("-kernel")
        .arg(image)
        .stdin(Stdio::null())
        .output()
        .expect("QEMU starts")
}

/// What a part of RAM is, and its bytes.
type Row = (String, usize);

fn readme() -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(readme).expect("it is there")
}

/// The version of Rust that README.md's table of the M4's RAM is of, and its rows.
fn committed() -> (String, Vec<Row>) {
    let readme = readme();
    let table =
        readme.split_once("\n| RAM of the Cortex-M4, by Rust ").expect("it has the table").1;
    let (version, table) = table.split_once(" | bytes |\n").expect("there is a second column");
    let row = |line: &str| {
        let (name, bytes) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((name.into(), bytes.replace(',', "").parse().expect("a number of bytes")))
    };
    (version.into(), table.lines().skip(1).map_while(row).collect())
}

/// What of README.md's table can be known without the machine.
#[test]
fn the_table_in_the_readme_is_of_this_plan() {
    let (_, rows) = committed();
    let of = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| row.1);
    // Panels lie in flash memory, and the engine's lists have this machine's pointers here.
    let others = [Pool::Packed, Pool::Operations, Pool::Slots, Pool::Words];
    for pool in Pool::ALL.into_iter().filter(|pool| !others.contains(pool)) {
        assert_eq!(of(pool.name()), Some(workload::PLAN.bytes(pool)), "README.md: {}", pool.name());
    }
    let link = include_str!("microcontroller/link.ld");
    let kib = |before: &str| {
        let number = link.split_once(before).expect("it says so").1.split('K').next()?;
        number.parse::<usize>().ok().map(|kib| kib << 10)
    };
    let stack = of("stack, used").zip(of("stack, never used")).map(|(used, unused)| used + unused);
    assert_eq!(stack, kib("STACK = "), "README.md and link.ld");
    let all = kib("RAM (rw) : ORIGIN = 0x20000000, LENGTH = ");
    assert_eq!((all, of("all")), (Some(256 << 10), Some(256 << 10)), "README.md and link.ld");
    assert_eq!(rows.iter().map(|row| row.1).sum::<usize>(), 2 * (256 << 10), "README.md");
}

/// Has the program access what it may not: there is no other memory, and flash is not written. A fault ends it,
/// and has to be of that very address.
fn probe(qemu: &Path, (name, board, _): Machine, image: &Path) {
    let probes = [
        // A frame deeper than the stack's end.
        ("below", 0x1fff_f000..0x2000_0000_u32),
        ("beyond", 0x2004_0000..0x2004_0001),
        // Behind the vectors.
        ("flash", 0x40..0x40_0000),
    ];
    for (argument, addresses) in probes {
        let output = start(qemu, board, image, argument);
        let told =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        print!("{name}, {argument}: {told}");
        assert_eq!(output.status.code(), Some(FAULTED), "{name}, {argument}: {told}");
        let hex = |after: &str| {
            let digits = told.split_once(after)?.1.split([',', '\n']).next()?;
            u32::from_str_radix(digits, 16).ok()
        };
        let (status, address) = hex("status 0x").zip(hex("address 0x")).expect("it says both");
        assert_eq!(status & REFUSED, REFUSED, "{name}, {argument}: {told}");
        assert!(addresses.contains(&address), "{name}, {argument}: not in {addresses:#x?}: {told}");
    }
}

/// Has a machine train, and compares with what a hosted run has told and its hash. Prints the table of its RAM, and
/// gives its rows.
fn compare(
    qemu: &Path,
    machine: Machine,
    image: &Path,
    (expected, hash): &(String, String),
) -> Vec<Row> {
    let (name, board, target) = machine;
    let started = std::time::Instant::now();
    let output = start(qemu, board, image, "train");
    // What the debugger shows goes to the emulator's errors.
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{name} ({board}, {target}), {:.0} s\n{told}", started.elapsed().as_secs_f64());
    assert_eq!(output.status.code(), Some(0), "{name}");
    assert!(told.contains(expected), "{name}, hosted:\n{expected}");
    assert!(told.contains(&format!("sha256  {hash}\n")), "{name}, hosted: {hash}");
    // The table's rows add up to all of the RAM.
    let table = told.split_once("bytes of RAM\n").expect("there is a table").1;
    let row = |line: &str| {
        let (name, bytes) = line.rsplit_once(' ')?;
        Some((name.trim().into(), bytes.parse().ok()?))
    };
    let rows: Vec<Row> = table.lines().filter_map(row).collect();
    let (all, parts) = rows.split_last().expect("it has rows");
    let sum: usize = parts.iter().map(|row| row.1).sum();
    assert_eq!((all.1, sum), (256 << 10, 256 << 10), "{name}");
    // The program forms some of them as what is left: they have to be what they are called.
    let of = |name: &str| rows.iter().find(|row| row.0 == name).expect("there is such a row").1;
    let others = of("other statics");
    assert!(others < 2 * LINE, "{name}: statics that are no part of the plan: {others} bytes");
    assert_eq!(linked(image), (256 << 10) - of("not linked"), "{name}: bytes of RAM in the image");
    rows
}

/// Bytes of RAM that an image asks for: those of its segments that lie there, as the linker has written it.
fn linked(image: &Path) -> usize {
    let image = fs::read(image).expect("it has been built");
    let image = object::File::parse(&*image).expect("it is an ELF file");
    let in_ram = image.segments().filter(|segment| segment.address() >= 0x2000_0000);
    in_ram.map(|segment| segment.size() as usize).sum()
}

/// README.md's table has to be the machine's. How deep the stack goes is the compiler's: those rows are compared where
/// the table is of this one.
fn compare_with_readme(cargo: &Path, rows: &[Row]) {
    let (version, committed) = committed();
    let output = Command::new(cargo).arg("--version").output().expect("cargo runs");
    let here = String::from_utf8_lossy(&output.stdout);
    let here = here.split(' ').nth(1).expect("cargo says its version");
    let is_compared = |row: &&Row| here == version || !row.0.starts_with("stack, ");
    let [rows, committed] =
        [rows, &committed].map(|rows| rows.iter().filter(is_compared).collect::<Vec<_>>());
    assert_eq!(rows, committed, "README.md's table is not the machine's, which is on the left");
    if here != version {
        println!(
            "README.md's table is of Rust {version}, this is {here}: all but the stack compared"
        );
    }
}

#[test]
#[ignore = "tests/microcontroller.sh runs it"]
fn the_machine_trains_the_same_weights() {
    let (qemu, cargo) = tools();
    let hosted = hosted(&texts().0, |_| Ok(()));
    for machine in [M4, M7] {
        let image = build(&cargo, machine.2, "microcontroller", None);
        let rows = compare(&qemu, machine, &image, &hosted);
        if machine == M4 {
            compare_with_readme(&cargo, &rows);
        }
        probe(&qemu, machine, &image);
    }
}

#[test]
#[ignore = "tests/microcontroller.sh runs it"]
fn the_machine_trains_adapters_beside_a_model_in_flash_memory() {
    let (qemu, cargo) = tools();
    let (learnt, _) = texts();
    let (panels, resident, table) = base(&learnt);
    let floats = floats(&panels).iter().chain(&resident);
    let mut bytes: Vec<u8> = floats.flat_map(|x| x.to_le_bytes()).collect();
    bytes.extend(&table);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("microcontroller_base.bin");
    fs::write(&file, bytes).expect("it can be written there");
    let image = build(&cargo, M4.2, "adapters", Some(&file));
    let base = Base { panels: &panels, resident: &resident, table: &table };
    compare(&qemu, M4, &image, &adapted(base, &learnt));
}

/// All of its arithmetic is software: some minutes.
#[test]
#[ignore = "tests/microcontroller.sh runs it"]
fn the_machine_without_an_fpu_trains_the_same_weights() {
    let (qemu, cargo) = tools();
    let image = build(&cargo, M3.2, "microcontroller", None);
    probe(&qemu, M3, &image);
    compare(&qemu, M3, &image, &hosted(&texts().0, |_| Ok(())));
}

/// Mean loss of a bigram model of a text on another, in nats a character, with the best of some pseudocounts.
fn bigram(learnt: &[u8], held_back: &[u8]) -> f64 {
    const N: usize = text::CHARACTERS.len();
    let pairs = |text: &[u8]| {
        let mut counts = vec![[0.0; N]; N];
        for pair in text.windows(2) {
            counts[text::number(pair[0]) as usize][text::number(pair[1]) as usize] += 1.0;
        }
        counts
    };
    let (known, asked) = (pairs(learnt), pairs(held_back));
    let loss = |pseudocount: f64| {
        let row = |(known, asked): (&[f64; N], &[f64; N])| {
            let sum = known.iter().sum::<f64>() + N as f64 * pseudocount;
            let cells = known.iter().zip(asked).filter(|(_, asked)| **asked > 0.0);
            cells.map(|(k, a)| -a * ((k + pseudocount) / sum).ln()).sum::<f64>()
        };
        known.iter().zip(&asked).map(row).sum::<f64>() / (held_back.len() - 1) as f64
    };
    [1.0, 0.3, 0.1, 0.03, 0.01].map(loss).into_iter().fold(f64::INFINITY, f64::min)
}

#[test]
fn the_run_goes_on_and_beats_a_bigram_model() {
    let (learnt, held_back) = texts();
    let (bigram, mut model) = (bigram(&learnt, &held_back), f64::NAN);
    let (told, hash) = hosted(&learnt, |run| {
        let mut told = String::new();
        run.steps(STEPS..ALL_STEPS, 1000, &mut told)?;
        print!("{told}");
        model = run.validate(&held_back)?;
        Ok(())
    });
    println!("before, {STEPS} steps as on the machine, sha256 {hash}\n{told}");
    println!("validation loss, nats a character: model {model:.4}, bigram {bigram:.4}");
    assert!(model <= bigram - 0.3, "{model} is not 0.3 below {bigram}");
    // The bits of the scalar kernels are the same everywhere.
    let sentence = format!(
        "its validation loss is {model:.4} nats a character, that of a bigram model of the same text {bigram:.4}."
    );
    let readme: Vec<_> = readme().split_whitespace().map(String::from).collect();
    assert!(readme.join(" ").contains(&sentence), "README.md does not say: {sentence}");
}
