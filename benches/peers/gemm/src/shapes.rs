//! Which products are timed.

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, as it stands in the product.
    Plain,
    /// Its transpose lies row after row.
    Transposed,
}

/// `C = A B`, of `m x k` and `k x n`; C lies row after row.
#[derive(Clone, Debug)]
pub struct Product {
    /// Which of the lists it belongs to.
    pub group: &'static str,
    /// What it is in that list.
    pub name: String,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Of A.
    pub a: Layout,
    /// Of B.
    pub b: Layout,
    /// A step keeps its result in memory as bf16, where it has products of bf16.
    pub is_kept: bool,
}

impl Product {
    fn new(group: &'static str, name: impl Into<String>, m: usize, n: usize, k: usize) -> Self {
        let (a, b) = (Layout::Plain, Layout::Plain);
        Self { group, name: name.into(), m, n, k, a, b, is_kept: false }
    }

    fn with(self, a: Layout, b: Layout) -> Self {
        Self { a, b, ..self }
    }

    /// Floating-point operations, a multiplication and an addition counted as two.
    #[must_use]
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64
    }

    /// A gradient of a weight: both operands are used once, and A lies transposed.
    #[must_use]
    pub fn is_weight_gradient(&self) -> bool {
        self.a == Layout::Transposed
    }
}

/// The groups, in the order in which they are timed.
pub const GROUPS: [&str; 4] = ["reference", "attention", "square", "skinny"];

/// Tokens of a batch of the reference workload: 32 sequences of 128.
const TOKENS: usize = 4096;
/// Its matrices, inputs to outputs. The last one is shared with the embedding and lies so: a row
/// for every token of the vocabulary.
const MATRICES: [(&str, usize, usize); 5] = [
    ("qkv", 256, 768),
    ("attn_out", 256, 256),
    ("fc", 256, 1024),
    ("mlp_out", 1024, 256),
    ("head", 256, 5000),
];

/// The products of a group.
///
/// # Panics
/// If it is none of [`GROUPS`].
#[must_use]
pub fn products(group: &str) -> Vec<Product> {
    match group {
        "reference" => reference(),
        // One head of one sequence of the reference workload: scores, and their use.
        "attention" => vec![
            Product::new("attention", "Q K^T", 128, 128, 32)
                .with(Layout::Plain, Layout::Transposed),
            Product::new("attention", "Q K", 128, 128, 32),
            Product::new("attention", "P V", 128, 32, 128),
        ],
        "square" => [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
            .into_iter()
            .map(|size| Product::new("square", "", size, size, size))
            .collect(),
        "skinny" => skinny(),
        _ => panic!("no group of products is called {group}"),
    }
}

/// Forward, gradient of the inputs, gradient of the weights.
fn reference() -> Vec<Product> {
    let mut list = Vec::new();
    for (name, inputs, outputs) in MATRICES {
        let of = |what: &str, m, n, k| Product::new("reference", format!("{name} {what}"), m, n, k);
        // The head's matrix lies transposed beside the others.
        let (straight, turned, (m, n)) = if name == "head" {
            (Layout::Transposed, Layout::Plain, (outputs, inputs))
        } else {
            (Layout::Plain, Layout::Transposed, (inputs, outputs))
        };
        // The two ends of the activation between fc and mlp_out: what attention, norms and the loss read is of floats, as
        // what is added to the tokens' rows.
        let forward = of("X W", TOKENS, outputs, inputs).with(Layout::Plain, straight);
        list.push(Product { is_kept: name == "fc", ..forward });
        let back = of("dY W^T", TOKENS, inputs, outputs).with(Layout::Plain, turned);
        list.push(Product { is_kept: name == "mlp_out", ..back });
        list.push(of("X^T dY", m, n, TOKENS).with(Layout::Transposed, Layout::Plain));
    }
    list
}

/// One token at a time, few rows, few columns, little depth.
fn skinny() -> Vec<Product> {
    let mut list = Vec::new();
    for (name, inputs, outputs) in MATRICES {
        let layout = if name == "head" { Layout::Transposed } else { Layout::Plain };
        let name = format!("one row, {name}");
        list.push(Product::new("skinny", name, 1, outputs, inputs).with(Layout::Plain, layout));
    }
    for rows in [2, 4, 8, 16, 32, 64] {
        list.push(Product::new("skinny", "few rows", rows, 768, 256));
    }
    for size in [1, 2, 4, 8, 16, 32, 64] {
        list.push(Product::new("skinny", "few columns", 1024, size, 256));
    }
    for size in [1, 2, 4, 8, 16, 32, 64] {
        list.push(Product::new("skinny", "little depth", 1024, 256, size));
    }
    list
}
