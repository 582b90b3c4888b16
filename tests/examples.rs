//! The examples run: each checks by itself that its weights are those of one thread alone.
#![expect(clippy::duplicate_mod, reason = "each example is a program that can stand alone")]

#[path = "../examples/come_and_go.rs"]
mod come_and_go;
#[path = "../examples/one_thread.rs"]
mod one_thread;
#[path = "../examples/plain_threads.rs"]
mod plain_threads;
#[path = "../examples/rayon_pool.rs"]
mod rayon_pool;

#[test]
fn one_thread_trains() {
    one_thread::main();
}

#[test]
fn threads_of_the_standard_library_work() {
    plain_threads::main();
}

#[test]
fn rayon_lends_its_threads_and_has_them_back() {
    rayon_pool::main();
}

#[test]
fn workers_come_and_go() {
    come_and_go::main();
}
