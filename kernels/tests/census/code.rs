//! Compiled functions: read from a library or a program, cut into instructions and loops.

use core::ops::RangeInclusive;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use object::read::archive::ArchiveFile;
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A function's instructions.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// Its path, `crate::module::function`.
    pub(crate) name: String,
    pub(crate) code: Vec<Instruction>,
    /// Loops without a loop inside, as indices of `code`.
    pub(crate) loops: Vec<RangeInclusive<usize>>,
    /// Whether `rbp` points into the function's frame.
    has_frame_pointer: bool,
}

impl Function {
    /// Decodes the bytes of a function that lies at `address`.
    pub(crate) fn decode(name: &str, address: u64, bytes: &[u8]) -> Self {
        let code: Vec<Instruction> =
            Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter().collect();
        let loops = innermost(&code);
        // `mov rbp, rsp` among the first instructions.
        let has_frame_pointer = code.iter().take(16).any(|i| {
            i.op_kind(0) == OpKind::Register
                && i.op_register(0) == Register::RBP
                && i.op_count() == 2
                && i.op_kind(1) == OpKind::Register
                && i.op_register(1) == Register::RSP
        });
        Self { name: name.to_owned(), code, loops, has_frame_pointer }
    }

    /// Whether an instruction moves a vector between registers and the function's own stack.
    pub(crate) fn is_spill(&self, instruction: &Instruction) -> bool {
        let base = instruction.memory_base().full_register();
        let is_own = base == Register::RSP || base == Register::RBP && self.has_frame_pointer;
        is_own && vector_bits(instruction) > 0
    }
}

/// Bits of the widest vector register of an instruction.
pub(crate) fn vector_bits(instruction: &Instruction) -> usize {
    let registers = (0..instruction.op_count())
        .filter(|&i| instruction.op_kind(i) == OpKind::Register)
        .map(|i| instruction.op_register(i));
    registers.filter(|r| r.is_vector_register()).map(|r| 8 * r.size()).max().unwrap_or(0)
}

/// Loops: from the target of a jump backwards to the last jump there.
fn innermost(code: &[Instruction]) -> Vec<RangeInclusive<usize>> {
    let mut ends = BTreeMap::new();
    for (at, instruction) in code.iter().enumerate() {
        let is_jump = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        let target = instruction.near_branch_target();
        if is_jump
            && target <= instruction.ip()
            && let Ok(start) = code.binary_search_by_key(&target, Instruction::ip)
        {
            ends.insert(start, at);
        }
    }
    let loops: Vec<_> = ends.into_iter().map(|(start, end)| start..=end).collect();
    let is_inside = |a: &RangeInclusive<usize>, b: &RangeInclusive<usize>| {
        a != b && b.contains(a.start()) && b.contains(a.end())
    };
    loops.iter().filter(|l| !loops.iter().any(|other| is_inside(other, l))).cloned().collect()
}

/// The functions whose path starts with `prefix`, of an object file, of all of a library's,
/// or of a program.
pub(crate) fn read(path: &Path, prefix: &str) -> Result<Vec<Function>, String> {
    let name = path.display();
    let data = fs::read(path).map_err(|e| format!("{name}: {e}"))?;
    let mut found = Vec::new();
    let mut read = |bytes: &[u8]| -> object::Result<()> {
        functions(&File::parse(bytes)?, prefix, &mut found)
    };
    let read_all = match ArchiveFile::parse(data.as_slice()) {
        Ok(archive) => archive.members().try_for_each(|member| {
            let member = member?;
            // What the compiler keeps for itself stands beside the object files.
            if member.name().ends_with(b".o") {
                read(member.data(data.as_slice())?)
            } else {
                Ok(())
            }
        }),
        Err(_) => read(&data),
    };
    read_all.map_err(|e| format!("{name}: not a library, object file or program: {e}"))?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn functions(file: &File<'_>, prefix: &str, found: &mut Vec<Function>) -> object::Result<()> {
    for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0) {
        let name = format!("{:#}", rustc_demangle::demangle(symbol.name()?));
        let Some(index) = symbol.section_index().filter(|_| name.starts_with(prefix)) else {
            continue;
        };
        let section = file.section_by_index(index)?;
        if let Some(bytes) = section.data_range(symbol.address(), symbol.size())? {
            found.push(Function::decode(&name, symbol.address(), bytes));
        }
    }
    Ok(())
}
