//! The table, and what Crystalline is not the fastest at.

use crate::shapes::Product;

/// A share of the peak that no product should be below.
const LEAST_SHARE: f64 = 0.6;

/// Rates of one product with operands of one type.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Type of the operands.
    pub dtype: &'static str,
    /// Operations a second at most.
    pub peak: f64,
    /// Operations a second of each library; the first two are Crystalline's, with B packed
    /// before and within the time.
    pub rates: Vec<(&'static str, f64)>,
}

impl Entry {
    fn ours(&self) -> [f64; 2] {
        [self.rates[0].1, self.rates[1].1]
    }

    /// The fastest of the others.
    fn fastest(&self) -> Option<(&'static str, f64)> {
        self.rates[2..].iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Crystalline's rates beside the fastest one's.
    fn ratios(&self) -> Option<[f64; 2]> {
        self.fastest().map(|(_, rate)| self.ours().map(|ours| ours / rate))
    }
}

/// A product and what was measured for it.
#[derive(Clone, Debug)]
pub struct Line {
    /// The product.
    pub product: Product,
    /// For each type of its operands.
    pub entries: Vec<Entry>,
}

/// The table, printed as it grows.
#[derive(Debug)]
pub struct Report {
    threads: usize,
    lines: Vec<Line>,
}

impl Report {
    /// An empty table for products on `threads` threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { threads, lines: Vec::new() }
    }

    /// Prints a line, below the heads of its columns where a group begins.
    pub fn add(&mut self, line: Line) {
        if self.lines.last().is_none_or(|last| last.product.group != line.product.group) {
            heads(&line);
        }
        print!("{}", label(&line.product));
        for entry in &line.entries {
            print!(" | {:>7.1}", entry.peak / 1e9);
            for (_, rate) in &entry.rates {
                print!(" {:>9.1}", rate / 1e9);
            }
            let [before, within] = entry.ours().map(|rate| 100.0 * rate / entry.peak);
            print!(" {before:>5.1}% {within:>5.1}%");
            if let Some([before, within]) = entry.ratios() {
                print!(" {before:>6.2} {within:>6.2}");
            }
        }
        println!();
        self.lines.push(line);
    }

    /// Prints the lists.
    pub fn finish(&self) {
        let threads = self.threads;
        let entries = || {
            self.lines.iter().flat_map(|line| line.entries.iter().map(move |e| (&line.product, e)))
        };
        for (which, what) in ["B packed before", "B packed within the time"].iter().enumerate() {
            println!("\nNot the fastest, {what}, threads: {threads}");
            let mut count = 0;
            for (product, entry) in entries() {
                let (Some(ratios), Some(fastest)) = (entry.ratios(), entry.fastest()) else {
                    continue;
                };
                if ratios[which] < 1.0 {
                    count += 1;
                    println!(
                        "{} {:>4}  {:>7.1} of {:>7.1} GFLOP/s by {} ({:.2})",
                        label(product),
                        entry.dtype,
                        entry.ours()[which] / 1e9,
                        fastest.1 / 1e9,
                        fastest.0,
                        ratios[which]
                    );
                }
            }
            println!("{count} of {}", entries().count());
        }
        println!(
            "\nBelow {:.0} % of the peak, B packed before, threads: {threads}",
            100.0 * LEAST_SHARE
        );
        for (product, entry) in entries() {
            let share = entry.ours()[0] / entry.peak;
            if share < LEAST_SHARE {
                println!("{} {:>4}  {:.1} %", label(product), entry.dtype, 100.0 * share);
            }
        }
    }
}

fn label(product: &Product) -> String {
    let Product { group, name, m, n, k, .. } = product;
    let name = if name.is_empty() { group } else { name.as_str() };
    format!("{name:<17} {m:>4} x {n:>4} x {k:>4}")
}

fn heads(line: &Line) {
    print!("\n{:<17} {:>18}", line.product.group, "m x n x k");
    for entry in &line.entries {
        print!(" | {:>7}", format!("{} pk", entry.dtype));
        for (name, _) in &entry.rates {
            print!(" {name:>9}");
        }
        print!(" {:>6} {:>6}", "share", "+pack");
        if entry.fastest().is_some() {
            print!(" {:>6} {:>6}", "ratio", "+pack");
        }
    }
    println!();
}
