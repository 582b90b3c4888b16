//! What the program has of the machine: a serial port, an end, and the other core.

use core::arch::asm;
use core::fmt;

use crate::start::TRAMPOLINE;

/// The first serial port, as PCs have had it since 1981.
const SERIAL: u16 = 0x3f8;
/// Where QEMU's `isa-debug-exit` listens.
const EXIT: u16 = 0xf4;
/// The core's own interrupt controller, at its place after a reset.
const LOCAL_APIC: usize = 0xfee0_0000;

fn out8(port: u16, value: u8) {
    // SAFETY: the ports of this module are devices that touch no memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    }
}

fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as `out8`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// The serial port, at whatever speed the machine has set: a virtual one has none.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Room for a byte.
            while in8(SERIAL + 5) & 0x20 == 0 {}
            out8(SERIAL, byte);
        }
        Ok(())
    }
}

/// Ends the machine: QEMU exits with twice the status and one more.
pub(crate) fn exit(status: u8) -> ! {
    out8(EXIT, status);
    loop {
        // SAFETY: waits for an interrupt, and there is none.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Starts the other cores at the trampoline: by an INIT and two STARTUPs, as Intel's manual has it (volume 3,
/// 8.4.4).
///
/// # Safety
/// Called once, by the boot core of a machine of two: [`crate::second_cpu`] and its stack are for one more.
pub(crate) unsafe fn start_second_core() {
    unsafe extern "C" {
        static trampoline: u8;
        static trampoline_end: u8;
    }
    let from = &raw const trampoline;
    let len = (&raw const trampoline_end).addr() - from.addr();
    // SAFETY: the first megabyte is memory that nobody uses: the image begins behind it.
    unsafe { core::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, len) }
    // To all but this one.
    let page = (TRAMPOLINE >> 12) as u32;
    for command in [0xc_4500, 0xc_4600 | page, 0xc_4600 | page] {
        let register = (LOCAL_APIC + 0x300) as *mut u32;
        // SAFETY: the interrupt controller's command register, mapped at its own address.
        unsafe {
            register.write_volatile(command);
            while register.read_volatile() & 1 << 12 != 0 {}
        }
        // A virtual core starts at once; a real one wants ten milliseconds after the first.
        for _ in 0..1_000_000 {
            core::hint::spin_loop();
        }
    }
}
