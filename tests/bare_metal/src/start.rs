//! From the first instruction of each core to Rust.
//!
//! ```text
//! boot core    PVH: protected mode of 32 bits, no paging          start32
//! second core  real mode at 0x8000, where the boot core put       trampoline -> second32
//! both         page tables of the first 4 GiB, each address its own
//!              64 bits, SSE; what the CPU has of AVX               long_mode
//!              a stack of its own, then Rust                      boot_cpu, second_cpu
//! ```
//! Interrupts stay off for good. Intel, Software Developer's Manual, volume 3: 9.8.5 (64-bit mode), 2.6 (XCR0),
//! 8.4 (starting other cores). The note is Xen's `XEN_ELFNOTE_PHYS32_ENTRY`, by which QEMU finds the entry.

use core::arch::global_asm;

/// Where the second core starts: any page of the first megabyte that is free.
pub(crate) const TRAMPOLINE: usize = 0x8000;

/// Bytes of each core's stack.
const STACK: usize = 256 << 10;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .align 4
    .long 4
    .long 4
    .long 18
    .asciz "Xen"
    .long start32

    .section .text.start, "ax", @progbits
    .code32
    .global start32
start32:
    cli
    cld
    // One table of each higher kind, and four of 2 MiB pages.
    mov eax, offset tables + 4096 + 3
    mov [tables], eax
    xor ecx, ecx
2:
    mov eax, ecx
    shl eax, 12
    add eax, offset tables + 8192 + 3
    mov [tables + 4096 + ecx * 8], eax
    inc ecx
    cmp ecx, 4
    jne 2b
    xor ecx, ecx
3:
    mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov [tables + 8192 + ecx * 8], eax
    inc ecx
    cmp ecx, 2048
    jne 3b
    mov esp, offset stacks + {stack}
    xor esi, esi
    jmp long_mode

    .global second32
second32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset stacks + 2 * {stack}
    mov esi, 1

    // esi: which core.
long_mode:
    mov eax, cr4
    // Long addresses, SSE and its exceptions.
    or eax, 0x620
    mov cr4, eax
    mov eax, offset tables
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    // No emulation of the x87 and none of its tasks, caches on; paging, protection.
    and eax, 0x9ffffff3
    or eax, 0x80000003
    mov cr0, eax
    lgdt [gdt_pointer]
    push 8
    mov eax, offset long64
    push eax
    retf

    .code64
long64:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov eax, esp
    mov rsp, rax
    // Without XSAVE there is no AVX.
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, 26
    jnc 5f
    mov rax, cr4
    or rax, 0x40000
    mov cr4, rax
    // What of x87, SSE, AVX and AVX-512 the CPU can keep.
    mov eax, 13
    xor ecx, ecx
    cpuid
    and eax, 0xe7
    xor edx, edx
    xor ecx, ecx
    xsetbv
5:
    test esi, esi
    jnz 6f
    call {boot_cpu}
    ud2
6:
    call {second_cpu}
7:
    hlt
    jmp 7b

    .section .rodata.start, "a", @progbits
    .align 8
gdt:
    .quad 0
    .quad 0x00af9a000000ffff
    .quad 0x00cf92000000ffff
    .quad 0x00cf9a000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .global trampoline
    .global trampoline_end
    .code16
trampoline:
    cli
    xor ax, ax
    mov ds, ax
    // lgdt of the pointer below, by its address where this is copied to.
    .byte 0x66, 0x0f, 0x01, 0x16
    .word {trampoline} + (8f - trampoline)
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long second32
    .word 0x18
8:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:
    .code64

    .section .bss.start, "aw", @nobits
    .align 4096
tables:
    .skip 6 * 4096
stacks:
    .skip 2 * {stack}
    .text
    "#,
    stack = const STACK,
    trampoline = const TRAMPOLINE,
    boot_cpu = sym crate::boot_cpu,
    second_cpu = sym crate::second_cpu,
);
