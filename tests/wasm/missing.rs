//! What Debian's C library for WASI lacks of what Rust's standard library links to.
//!
//! The tag of exceptions, by which panics unwind; and the ends of threads, which nobody starts here.
#![no_core]
#![crate_type = "lib"]
#![feature(asm_experimental_arch, lang_items, no_core, rustc_attrs)]
#![allow(internal_features, reason = "before `core`, which has an exception's tag to link to")]

#[lang = "pointee_sized"]
trait PointeeSized {}
#[lang = "meta_sized"]
trait MetaSized: PointeeSized {}
#[lang = "sized"]
trait Sized: MetaSized {}

#[rustc_builtin_macro]
macro_rules! global_asm {
    () => {};
}

global_asm!(
    "
    .tagtype __cpp_exception i32
    .globl __cpp_exception
__cpp_exception:
    .globl pthread_join
    .type pthread_join,@function
pthread_join:
    .functype pthread_join (i32, i32) -> (i32)
    unreachable
    end_function
    .globl pthread_detach
    .type pthread_detach,@function
pthread_detach:
    .functype pthread_detach (i32) -> (i32)
    unreachable
    end_function
"
);
