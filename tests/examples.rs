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
#[path = "../examples/real_time.rs"]
mod real_time;
#[path = "../examples/tokio_service.rs"]
mod tokio_service;

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

#[test]
fn a_real_time_loop_trains_in_the_rest_of_its_periods() {
    real_time::main();
}

#[test]
fn a_tokio_service_trains_between_requests() {
    tokio_service::main();
}
