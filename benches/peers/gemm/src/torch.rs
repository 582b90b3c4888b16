//! PyTorch's products, in a Python process that is asked for one sample at a time.

use crate::problem::Problem;
use crate::shapes::Layout;
use crate::timing::{Calls, Sampler};
use core::cell::RefCell;
use core::time::Duration;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What is run by Python.
const WORKER: &str = include_str!("torch_worker.py");

/// A Python process with PyTorch.
pub struct Torch {
    process: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    /// Its version and instruction set.
    pub description: String,
}

impl Torch {
    /// Starts Python.
    ///
    /// # Errors
    /// If it cannot be started, or has no PyTorch.
    pub fn start(python: &Path, threads: usize) -> Result<Self, String> {
        let mut process = Command::new(python)
            .args(["-c", WORKER, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("--python {}: {e}", python.display()))?;
        let (Some(to), Some(from)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("no pipes to Python".into());
        };
        let pipes = RefCell::new((to, BufReader::new(from)));
        let mut torch = Self { process, pipes, description: String::new() };
        torch.description = torch
            .answer()
            .map_err(|e| format!("--python {}: no PyTorch answers: {e}", python.display()))?;
        Ok(torch)
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// The next line.
    fn answer(&self) -> Result<String, String> {
        let mut line = String::new();
        let read = self.pipes.borrow_mut().1.read_line(&mut line);
        match read {
            Ok(n) if n > 0 => Ok(line.trim_end().to_owned()),
            Ok(_) => Err("Python has ended".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn ask(&self, question: &str) -> Result<String, String> {
        writeln!(self.pipes.borrow_mut().0, "{question}").map_err(|e| e.to_string())?;
        self.answer()
    }

    /// Makes a product's operands in Python and checks its result there.
    ///
    /// # Errors
    /// If the result is wrong.
    pub fn product(
        &self,
        problem: &Problem,
        dtype: &'static str,
    ) -> Result<Box<dyn Sampler + '_>, String> {
        let product = &problem.product;
        let turned = |layout| u8::from(layout == Layout::Transposed);
        let answer = self.ask(&format!(
            "product {dtype} {} {} {} {} {}",
            product.m,
            product.n,
            product.k,
            turned(product.a),
            turned(product.b)
        ))?;
        if answer == "right" {
            Ok(Box::new(Asked { torch: self, dtype }))
        } else {
            Err(format!("PyTorch, {dtype}: {answer}"))
        }
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It ends at the word, and is not waited for if it has ended already.
        let _ = writeln!(self.pipes.get_mut().0, "end");
        let _ = self.process.wait();
    }
}

struct Asked<'a> {
    torch: &'a Torch,
    dtype: &'static str,
}

impl Sampler for Asked<'_> {
    fn sample(&mut self, _: &mut [f32], calls: Calls) -> Result<Duration, String> {
        let answer =
            self.torch.ask(&format!("time {} {} {}", self.dtype, calls.warm, calls.timed))?;
        let seconds: f64 = answer.parse().map_err(|e| format!("PyTorch says {answer}: {e}"))?;
        Ok(Duration::from_secs_f64(seconds))
    }
}
