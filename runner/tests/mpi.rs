//! What only MPI itself shows; tests/ranks.sh runs it.
#![cfg(feature = "mpi")]

use std::env;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cllm::ranks::Ranks as _;
use cllm::ranks::mpi::MpiRanks;

/// Set for the ranks that the test starts of itself.
const IS_RANK: &str = "CLLM_TEST_IS_RANK";

/// The others would wait for it in `MPI_Finalize`, and it for them, without an end.
#[test]
fn a_rank_that_panics_ends_the_others() {
    if env::var_os(IS_RANK).is_some() {
        let ranks = MpiRanks::new().unwrap();
        assert_eq!(ranks.size(), 2);
        assert_eq!(ranks.rank(), 0, "as it was told");
        return;
    }
    let mut mpirun = Command::new("mpirun")
        .args(["-n", "2"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "a_rank_that_panics_ends_the_others"])
        .env(IS_RANK, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mpirun");
    let begin = Instant::now();
    let code = loop {
        if let Some(status) = mpirun.try_wait().unwrap() {
            break status.code();
        }
        if begin.elapsed() > Duration::from_secs(60) {
            mpirun.kill().unwrap();
            panic!("the ranks wait for one that panicked");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = std::io::read_to_string(mpirun.stderr.take().unwrap()).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("MPI_ABORT was invoked on rank 1"), "{said}");
}
