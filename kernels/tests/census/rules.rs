//! What the compiled kernels of each instruction set must look like.
//!
//! | rule | what it guards |
//! |---|---|
//! | nothing beyond the set's own instructions | the program starts on weaker CPUs |
//! | a vector loop in every kernel that computes | nothing fell back to single floats |
//! | the full register block, unrolled, in what multiplies those | the micro-kernel was compiled as written |
//! | in micro-kernels no call, no single floats, no sums in memory | its sums stay in registers |
//! | nearly all arithmetic in whole vectors | scalar edges stay edges |

use crate::code::{Function, vector_bits};
use core::ops::RangeInclusive;
use iced_x86::{CpuidFeature, FlowControl, Instruction, Mnemonic};
use std::collections::{BTreeMap, BTreeSet};

/// Kernels that have loops over the full register block.
const WITH_BLOCKS: [&str; 4] = ["product", "product_of_both", "whole", "wide"];

/// A table of kernels, and what is asked of its code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// The module in `shells` that holds its shells.
    pub(crate) module: &'static str,
    /// Features beyond plain x86-64, in the names of the disassembler.
    pub(crate) features: &'static [CpuidFeature],
    /// Bits of its vectors; 0 where no vectors are asked for.
    pub(crate) bits: usize,
    pub(crate) multiply_add: MultiplyAdd,
    /// Multiply-adds of vectors in the loop over a full register block: 4 steps, `MR` rows, and
    /// `NR / LANES` vectors a row.
    pub(crate) block: usize,
    /// Vectors that a micro-kernel's loop may move to or from the stack.
    pub(crate) spills: usize,
}

/// How a table multiplies and adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MultiplyAdd {
    Fused,
    /// A product and a sum.
    Apart,
    /// Products of pairs of bf16.
    Pairs,
    /// The same in tile registers.
    Tiles,
}

use CpuidFeature as F;

/// The tables, in the order of the report.
pub(crate) const TABLES: [Table; 6] = [
    Table {
        module: "scalar",
        features: &[],
        bits: 0,
        multiply_add: MultiplyAdd::Apart,
        block: 0,
        spills: 0,
    },
    Table {
        module: "avx",
        features: &[F::AVX],
        bits: 256,
        multiply_add: MultiplyAdd::Apart,
        block: 4 * 6 * 2,
        // 12 sums, 2 columns, an element of A and a product fill all 16 registers; the
        // compiler does not get by with them when it has six rows (22 at most, Rust 1.95).
        spills: 24,
    },
    Table {
        module: "avx2",
        features: &[F::AVX, F::AVX2, F::FMA],
        bits: 256,
        multiply_add: MultiplyAdd::Fused,
        block: 4 * 6 * 2,
        spills: 0,
    },
    Table {
        module: "avx512",
        features: &AVX512,
        bits: 512,
        multiply_add: MultiplyAdd::Fused,
        block: 4 * 12 * 2,
        spills: 0,
    },
    Table {
        module: "avx512bf16",
        features: &AVX512_BF16,
        bits: 512,
        multiply_add: MultiplyAdd::Pairs,
        block: 4 * 12 * 2,
        spills: 0,
    },
    Table {
        module: "amx_bf16",
        features: &AMX_BF16,
        bits: 512,
        multiply_add: MultiplyAdd::Tiles,
        // Of tiles, one step of two by two.
        block: 2 * 2,
        spills: 0,
    },
];

const AVX512: [CpuidFeature; 7] =
    [F::AVX, F::AVX2, F::FMA, F::AVX512F, F::AVX512BW, F::AVX512DQ, F::AVX512VL];
const AVX512_BF16: [CpuidFeature; 8] =
    [F::AVX, F::AVX2, F::FMA, F::AVX512F, F::AVX512BW, F::AVX512DQ, F::AVX512VL, F::AVX512_BF16];

const AMX_BF16: [CpuidFeature; 10] = [
    F::AVX,
    F::AVX2,
    F::FMA,
    F::AVX512F,
    F::AVX512BW,
    F::AVX512DQ,
    F::AVX512VL,
    F::AVX512_BF16,
    F::AMX_TILE,
    F::AMX_BF16,
];

/// The module that configures tiles and asks for them, once the CPU is known to have them.
const TILES: &str = "cllm_kernels::amx::";

/// What every x86-64 has. (A no-op of several bytes is one to older CPUs too, and so is PREFETCHW.)
const PLAIN: [CpuidFeature; 14] = [
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CMOV,
    F::CPUID,
    F::SYSCALL,
    F::MULTIBYTENOP,
    F::PREFETCHW,
    F::SSE,
    F::SSE2,
];

/// Of a table's arithmetic, the least that is done in whole vectors. The rest are elements beyond
/// the last whole vector, the last steps of sums over lanes, and numbers of a whole row.
const VECTOR_SHARE: f64 = 0.85;

/// What was counted in a table's code.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) functions: usize,
    pub(crate) instructions: usize,
    /// Multiply-adds of whole vectors, as the table does them.
    pub(crate) multiply_adds: usize,
    /// Arithmetic on floats in whole vectors, multiply-adds among it.
    pub(crate) whole: usize,
    /// Arithmetic on parts of vectors and on single floats.
    pub(crate) narrow: usize,
    /// Loops of micro-kernels.
    pub(crate) micro: usize,
    /// The most vectors that one of them moves to or from the stack.
    pub(crate) spills: usize,
}

impl Counts {
    /// Share of the arithmetic that is done in whole vectors.
    pub(crate) fn vector_share(&self) -> f64 {
        self.whole as f64 / (self.whole + self.narrow).max(1) as f64
    }
}

/// An instruction's arithmetic on floats.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Fused,
    Multiply,
    Add,
    Pairs,
    Tiles,
    Other,
}

fn arithmetic(instruction: &Instruction) -> Option<Arithmetic> {
    let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    match name {
        "dpbf16ps" => return Some(Arithmetic::Pairs),
        "tdpbf16ps" => return Some(Arithmetic::Tiles),
        _ => {}
    }
    let stem = name.strip_suffix("ps").or_else(|| name.strip_suffix("ss"))?;
    match stem {
        "mul" => Some(Arithmetic::Multiply),
        "add" | "sub" => Some(Arithmetic::Add),
        "div" | "sqrt" | "min" | "max" | "round" | "rndscale" => Some(Arithmetic::Other),
        _ if ["fmadd", "fmsub", "fnmadd", "fnmsub"].iter().any(|f| stem.starts_with(f)) => {
            Some(Arithmetic::Fused)
        }
        _ => None,
    }
}

/// The bytes of TZCNT are those of `rep bsf`, which every CPU runs and compilers write where the
/// operand is not zero: there both count the same.
fn features(instruction: &Instruction) -> impl Iterator<Item = CpuidFeature> {
    let is_plain = instruction.mnemonic() == Mnemonic::Tzcnt;
    instruction.cpuid_features().iter().copied().filter(move |_| !is_plain)
}

/// The functions outside of any table run before anybody asked what the CPU has.
pub(crate) fn check_outside<'a>(functions: impl Iterator<Item = &'a Function>) -> Vec<String> {
    let allowed = |f: &Function| -> &[CpuidFeature] {
        if f.name.starts_with(TILES) { &[F::XSAVE, F::AMX_TILE] } else { &[] }
    };
    functions.filter_map(|f| foreign(f, allowed(f))).collect()
}

/// An instruction that asks for more than plain x86-64 and `allowed`.
fn foreign(function: &Function, allowed: &[CpuidFeature]) -> Option<String> {
    let is_known = |f: &CpuidFeature| PLAIN.contains(f) || allowed.contains(f);
    let unknown: BTreeSet<_> = function
        .code
        .iter()
        .flat_map(features)
        .filter(|f| !is_known(f))
        .map(|f| format!("{f:?}"))
        .collect();
    let unknown = unknown.into_iter().collect::<Vec<_>>().join(", ");
    (!unknown.is_empty()).then(|| format!("{}: has instructions of {unknown}", function.name))
}

impl Table {
    /// Counts the code of the table's `functions`, and says what is wrong with it.
    pub(crate) fn check(&self, functions: &[Function]) -> (Counts, Vec<String>) {
        let mut counts = Counts { functions: functions.len(), ..Counts::default() };
        let mut wrong: Vec<String> =
            functions.iter().filter_map(|f| foreign(f, self.features)).collect();
        let mut largest = BTreeMap::new();
        for function in functions {
            self.count(function, &mut counts);
            if self.bits > 0
                && let Some(block) = self.check_function(function, &mut counts, &mut wrong)
            {
                let largest = largest.entry(&function.name).or_insert(0);
                *largest = block.max(*largest);
            }
        }
        // Of several functions of one name, one for each constant parameter, some do more between two multiply-adds.
        for (name, largest) in largest {
            if largest < self.block {
                wrong.push(format!(
                    "{name}: its largest micro-kernel has {largest} multiply-adds of vectors, not {}",
                    self.block
                ));
            }
        }
        if functions.is_empty() {
            wrong.push(format!("{}: no functions: the check looks at nothing", self.module));
        } else if self.bits > 0 && counts.vector_share() < VECTOR_SHARE {
            let share = 100.0 * counts.vector_share();
            wrong.push(format!("{}: only {share:.0} % of it in whole vectors", self.module));
        }
        (counts, wrong)
    }

    fn is_whole(&self, instruction: &Instruction) -> bool {
        let in_tiles = arithmetic(instruction) == Some(Arithmetic::Tiles);
        self.bits > 0 && (in_tiles || vector_bits(instruction) == self.bits)
    }

    fn count(&self, function: &Function, counts: &mut Counts) {
        counts.instructions += function.code.len();
        let whole = function.code.iter().filter(|i| arithmetic(i).is_some() && self.is_whole(i));
        counts.whole += whole.count();
        counts.narrow +=
            function.code.iter().filter(|i| arithmetic(i).is_some() && !self.is_whole(i)).count();
        counts.multiply_adds += self.multiply_adds(&function.code);
    }

    /// Multiply-adds of whole vectors.
    fn multiply_adds(&self, code: &[Instruction]) -> usize {
        let count = |wanted| {
            code.iter().filter(|i| arithmetic(i) == Some(wanted) && self.is_whole(i)).count()
        };
        match self.multiply_add {
            MultiplyAdd::Fused => count(Arithmetic::Fused),
            MultiplyAdd::Apart => count(Arithmetic::Multiply).min(count(Arithmetic::Add)),
            MultiplyAdd::Pairs => count(Arithmetic::Pairs),
            MultiplyAdd::Tiles => count(Arithmetic::Tiles),
        }
    }

    /// Whether a function only calls others, the parts that products in vectors are made of.
    fn drives(name: &str) -> bool {
        ["single::product", "rounded::product", "paired::product"].iter().any(|f| name.ends_with(f))
    }

    /// Whether a kernel is made of micro-kernels.
    fn has_micro_kernels(&self, kernel: &str) -> bool {
        match self.multiply_add {
            MultiplyAdd::Tiles => ["product", "product_of_both"].contains(&kernel),
            _ => WITH_BLOCKS.contains(&kernel) || ["half", "beside", "block"].contains(&kernel),
        }
    }

    /// What is wrong with a kernel, and of one that has whole register blocks the multiply-adds of its largest micro-kernel.
    fn check_function(
        &self,
        function: &Function,
        counts: &mut Counts,
        wrong: &mut Vec<String>,
    ) -> Option<usize> {
        let mut say = |what: &str| wrong.push(format!("{}: {what}", function.name));
        let kernel = function.name.rsplit("::").next().unwrap_or_default();
        let loops = || function.loops.iter().map(|l| &function.code[l.clone()]);
        if Self::drives(&function.name) {
            return None;
        }
        if !function.code.iter().any(|i| self.is_whole(i)) {
            say("uses no whole vectors");
        }
        let computes = |code: &[Instruction]| {
            let mut arithmetics = code.iter().filter(|i| arithmetic(i).is_some()).peekable();
            arithmetics.peek().is_some() && arithmetics.all(|i| self.is_whole(i))
        };
        // Packing moves and computes nothing; tiles of few columns transpose what they load.
        if !["pack_b", "narrow"].contains(&kernel) && !loops().any(computes) {
            say("has no loop that computes in whole vectors");
        }
        if !self.has_micro_kernels(kernel) {
            return None;
        }
        // They round differently: see `gemm::tiled`.
        let in_vectors = |i: &Instruction| arithmetic(i) == Some(Arithmetic::Pairs);
        if self.multiply_add == MultiplyAdd::Tiles && function.code.iter().any(in_vectors) {
            say("multiplies outside of tiles");
        }
        let mut largest = 0;
        for range in self.micro(function) {
            largest = largest.max(self.multiply_adds(&function.code[range.clone()]));
            counts.micro += 1;
            self.check_micro(function, range, counts, &mut say);
        }
        WITH_BLOCKS.contains(&kernel).then_some(largest)
    }

    /// The loops whose instructions are multiply-adds by half or more, or by a quarter where each
    /// wants a load or two parts: those of micro-kernels with more than a few rows, and nothing
    /// else.
    pub(crate) fn micro<'a>(
        &'a self,
        function: &'a Function,
    ) -> impl Iterator<Item = &'a RangeInclusive<usize>> {
        let in_parts = matches!(self.multiply_add, MultiplyAdd::Apart | MultiplyAdd::Tiles);
        let parts = if in_parts { 2 } else { 1 };
        function.loops.iter().filter(move |range| {
            let code = &function.code[(*range).clone()];
            // A step of tiles takes so long that its loop asks for many lines ahead.
            let in_tiles = self.multiply_add == MultiplyAdd::Tiles;
            let counts = |i: &&Instruction| !in_tiles || i.op0_register().is_tmm();
            let multiply_adds = self.multiply_adds(code);
            multiply_adds > 0 && 2 * parts * multiply_adds >= code.iter().filter(counts).count()
        })
    }

    fn check_micro(
        &self,
        function: &Function,
        range: &RangeInclusive<usize>,
        counts: &mut Counts,
        say: &mut impl FnMut(&str),
    ) {
        let code = &function.code[range.clone()];
        let is_call = |i: &&Instruction| {
            matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
        };
        let spills = code.iter().filter(|i| function.is_spill(i)).count();
        counts.spills = counts.spills.max(spills);
        if spills > self.spills {
            say(&format!(
                "a micro-kernel keeps sums in memory: {spills} moves, not {}",
                self.spills
            ));
        }
        if code.iter().any(|i| is_call(&i)) {
            say("a micro-kernel calls a function");
        }
        if code.iter().any(|i| arithmetic(i).is_some() && !self.is_whole(i)) {
            say("a micro-kernel computes on single floats or parts of vectors");
        }
    }
}
