//! What a program tells of a training: its hash, and where each byte of RAM went.

use crate::machine::{self, Debugger, RAM_BYTES};
use crate::workload::common::Failure;
use cllm_core::{Plan, Pool};
use core::fmt::{self, Write as _};

/// Ends the machine with what came of a training.
pub(crate) fn end(training: Result<[u8; 32], Failure>, plan: &Plan) -> ! {
    let told = training.and_then(|hash| Ok(tell(hash, plan)?));
    match told {
        Ok(()) => machine::exit(machine::SUCCESS),
        Err(failure) => {
            let _ = writeln!(Debugger, "failed: {}", failure.0);
            machine::exit(machine::FAILED)
        }
    }
}

fn tell(hash: [u8; 32], plan: &Plan) -> fmt::Result {
    Debugger.write_str("sha256  ")?;
    for byte in hash {
        write!(Debugger, "{byte:02x}")?;
    }
    Debugger.write_str("\nbytes of RAM\n")?;
    let statics = machine::statics();
    let (stack, used) = machine::stack();
    // Panels that are kept lie in flash memory.
    let in_ram = |pool: &Pool| *pool != Pool::Packed;
    let mut pools = 0;
    for pool in Pool::ALL.into_iter().filter(in_ram) {
        row(pool.name(), plan.bytes(pool))?;
        pools += plan.bytes(pool);
    }
    row("other statics", statics - pools)?;
    row("stack, used", used)?;
    row("stack, never used", stack - used)?;
    row("not linked", RAM_BYTES - stack - statics)?;
    row("all", RAM_BYTES)
}

fn row(name: &str, bytes: usize) -> fmt::Result {
    writeln!(Debugger, "{name:<20}{bytes:>8}")
}
