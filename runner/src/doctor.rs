//! What this machine has, and what a run would take of it and why: `cllm doctor`.
//!
//! Everything is asked of the same places as by the commands that compute, so what it says is
//! what they do.

use core::fmt::Write as _;
use std::fs;

use cllm_core::{Caches, Dtype, Isa, Kernels};
use serde::Serialize;

use crate::error::Result;
use crate::memory::{MachineMemory, human_bytes, machine};
use crate::pool::cpus;
use crate::tune::{self, Sizes};

/// An instruction set on this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Set {
    /// The name that `--isa` takes.
    pub name: &'static str,
    /// This CPU and its system run it.
    pub usable: bool,
    /// It has instructions for products of bf16.
    pub bf16: bool,
}

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// All that the process may have.
    pub total: u64,
    /// What is free of it.
    pub available: u64,
}

/// CPUs, from all to those that count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cpus {
    /// The machine's; `None` where it does not tell.
    pub online: Option<usize>,
    /// Those that the affinity mask of the process allows.
    pub allowed: Option<usize>,
    /// As many as a quota of CPU time keeps busy too: the most workers of `--threads auto`.
    pub workers: usize,
}

/// All that is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// The CPU's own name and signature.
    pub cpu: String,
    /// Those of this kind of CPU, weakest first.
    pub sets: Vec<Set>,
    /// The set that is chosen, by `asked` if that is there.
    pub isa: &'static str,
    /// What `CLLM_ISA` asks for.
    pub asked: Option<&'static str>,
    /// Products of bf16 are instructions of the CPU with that set.
    pub native_bf16: bool,
    /// Bytes of the data caches of levels 1, 2 and 3; 0 if there is none.
    pub caches: [usize; 3],
    /// How many may compute.
    pub cpus: Cpus,
    /// `None` where the system does not tell.
    pub memory: Option<Memory>,
    /// The system's setting of transparent huge pages.
    pub huge_pages: Option<String>,
    /// Sizes of blocks that follow from the caches.
    pub blocking: Sizes,
    /// File of sizes that `cllm tune` has stored.
    pub tuning: Option<String>,
    /// How many sets of sizes it has for this CPU.
    pub tuned: usize,
}

impl Report {
    /// Looks. `asked` is an instruction set that the environment asks for and the CPU has.
    ///
    /// # Errors
    /// A broken tuning file, which commands would stumble over as well.
    pub fn look(asked: Option<Isa>) -> Result<Self> {
        let isa = asked.unwrap_or_else(Isa::best);
        let bf16 = Kernels::for_isa(isa).map(|kernels| kernels.with_dtype(Dtype::Bf16));
        let caches = Caches::detect();
        let (tuning, tuned) = tune::stored_for_this_cpu()?;
        let set = |isa: Isa| Set {
            name: isa.name(),
            usable: isa.is_supported(),
            bf16: isa.is_supported() && isa.has_bf16(),
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            cpu: tune::cpu_name(),
            sets: Isa::ALL.into_iter().filter(|isa| isa.is_compiled()).map(set).collect(),
            isa: isa.name(),
            asked: asked.map(Isa::name),
            native_bf16: bf16.is_some_and(Kernels::is_native),
            caches: [caches.l1d, caches.l2, caches.l3],
            cpus: Cpus {
                online: cpus::online(),
                allowed: cpus::allowed(),
                workers: cpus::available(),
            },
            memory: machine().map(|MachineMemory { total, available }| Memory { total, available }),
            huge_pages: huge_pages(),
            blocking: Sizes(tune::default_blocking()),
            tuning: tuning.map(|path| path.display().to_string()),
            tuned,
        })
    }

    /// For people: what there is, what is chosen, and what could be better.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("cllm", self.version.to_owned());
        line("CPU", self.cpu.clone());
        let sets: Vec<_> = self.sets.iter().map(Set::text).collect();
        line("", sets.join(", "));
        line("kernels", self.kernels());
        let bf16 = if self.native_bf16 {
            "--dtype bf16 uses instructions of this CPU"
        } else {
            "--dtype bf16 works by conversion, no faster than f32: no instructions for it here"
        };
        line("", bf16.to_owned());
        let [l1d, l2, l3] = self.caches.map(|bytes| human_bytes(bytes as u64));
        line("caches", format!("{l1d} of level 1, {l2} of level 2, {l3} of level 3"));
        let sizes: Vec<_> =
            self.blocking.0.fields().iter().map(|(name, size)| format!("{name} {size}")).collect();
        line("blocks", format!("{}: from the caches", sizes.join(", ")));
        line("", self.tuning_text());
        line("threads", self.threads());
        line("memory", self.memory.map_or("not told".to_owned(), Memory::text));
        line("huge pages", self.huge_pages_text());
        text
    }

    fn kernels(&self) -> String {
        let why = match self.asked {
            Some(_) => "CLLM_ISA asks for it",
            None => "the best that this CPU and system run",
        };
        format!("{}: {why}", self.isa)
    }

    fn tuning_text(&self) -> String {
        match (&self.tuning, self.tuned) {
            (Some(path), 0) => format!("nothing measured for this CPU in {path}: see `cllm tune`"),
            (Some(path), sets) => format!("{sets} measured by `cllm tune`, in {path}"),
            (None, _) => "nothing measured: neither XDG_CONFIG_HOME nor HOME is set".to_owned(),
        }
    }

    fn threads(&self) -> String {
        let Cpus { online, allowed, workers } = self.cpus;
        let mut text = format!("--threads auto tries up to {workers}");
        match (online, allowed) {
            (Some(online), Some(allowed)) if allowed < online => {
                text += &format!(": the affinity mask allows {allowed} of {online} CPUs");
                if workers < allowed {
                    text += ", and a quota of CPU time fewer";
                }
            }
            (Some(online), _) if workers < online => {
                text += &format!(": a quota of CPU time allows no more of {online} CPUs");
            }
            (Some(_), _) => text += ": one on each CPU",
            (None, _) => {}
        }
        text
    }

    fn huge_pages_text(&self) -> String {
        match self.huge_pages.as_deref() {
            Some("always" | "madvise") => "on: training asks for them".to_owned(),
            Some("never") => "off: first steps are slower; `echo madvise > \
                 /sys/kernel/mm/transparent_hugepage/enabled` as root turns them on"
                .to_owned(),
            Some(other) => other.to_owned(),
            None => "not known here".to_owned(),
        }
    }
}

impl Set {
    fn text(&self) -> String {
        let what = match (self.usable, self.bf16) {
            (false, _) => "no",
            (true, true) => "yes, with bf16",
            (true, false) => "yes",
        };
        format!("{} {what}", self.name)
    }
}

impl Memory {
    fn text(self) -> String {
        format!("{} available of {}", human_bytes(self.available), human_bytes(self.total))
    }
}

/// The word in brackets of the system's setting.
fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    chosen(&text).map(str::to_owned)
}

fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            cpus: Cpus { online: Some(8), allowed: Some(8), workers: 8 },
            ..Report::look(None).unwrap()
        }
    }

    #[test]
    fn it_says_what_commands_do() {
        let report = report();
        assert_eq!(report.isa, Isa::best().name());
        let best = report.sets.iter().rfind(|set| set.usable).unwrap();
        assert_eq!(best.name, report.isa);
        let text = report.text();
        assert!(text.contains(&format!("{}: the best that this CPU", report.isa)), "{text}");
        let asked = Report::look(Some(Isa::Scalar)).unwrap();
        assert_eq!((asked.isa, asked.native_bf16), ("scalar", false));
        assert!(asked.text().contains("scalar: CLLM_ISA asks for it"));
    }

    #[test]
    fn why_there_are_fewer_threads_is_told() {
        let with = |allowed, workers| {
            let cpus = Cpus { online: Some(8), allowed: Some(allowed), workers };
            Report { cpus, ..report() }.threads()
        };
        assert_eq!(with(8, 8), "--threads auto tries up to 8: one on each CPU");
        assert!(with(8, 3).ends_with("a quota of CPU time allows no more of 8 CPUs"));
        assert!(with(4, 4).ends_with("the affinity mask allows 4 of 8 CPUs"));
        assert!(with(4, 2).ends_with("allows 4 of 8 CPUs, and a quota of CPU time fewer"));
    }

    #[test]
    fn the_word_in_brackets_is_the_setting() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }
}
