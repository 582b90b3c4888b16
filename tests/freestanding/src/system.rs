//! What a C library would bring beside functions on bytes (`memory.rs`): the entry point and exit. x86-64
//! Linux.

use core::arch::{asm, naked_asm};
use core::panic::PanicInfo;

/// The process starts here with `argc` at the top of the stack.
///
/// # Safety
/// The system alone calls it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {start}", "ud2", start = sym start)
}

/// # Safety
/// `stack` points at `argc`, followed by `argc` pointers to strings.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the layout that the system gives to a new process.
    let status = unsafe {
        let argument = |i: usize| string(*stack.add(1 + i) as *const u8);
        if *stack == 3 { crate::run(argument(1), argument(2)) } else { 2 }
    };
    exit(status)
}

/// # Safety
/// `text` ends with a zero byte and lives as long as the process.
unsafe fn string(text: *const u8) -> &'static [u8] {
    let mut len = 0;
    // SAFETY: bytes up to the zero byte are valid. Volatile, or the loop becomes a call to strlen.
    unsafe {
        while text.add(len).read_volatile() != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(text, len)
    }
}

fn exit(status: i32) -> ! {
    // SAFETY: exit_group (231) does not return and touches no memory.
    unsafe { asm!("syscall", in("rax") 231, in("rdi") status, options(noreturn, nostack)) }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}
