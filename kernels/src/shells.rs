//! The shells that carry the instruction sets, and the tables of kernels that are made of them.
//!
//! A shell is a function with `#[target_feature]` around a generic kernel. Only
//! shells and what they inline use vector registers, so a binary built for plain
//! x86-64 runs everywhere and picks its table at run time.

use crate::adamw::{self, AdamW};
use crate::adamw8::{self, Dither, RawMoments8};
use crate::attention::{self, RawAttention};
use crate::built::{COMPACT, DOCUMENTS, DROPOUT, LLAMA, OPTIMIZERS, left_out};
use crate::dropout::Dropout;
use crate::elements::RawOperand;
use crate::elementwise;
use crate::embedding::{self, RawEmbedding};
use crate::gated::{self, RawGated, RawGatedBackward};
use crate::gemm::beside::{self, Panels};
use crate::gemm::block::{self, Panel};
use crate::gemm::fetch::Run;
use crate::gemm::format::{Format, Rounded, Single};
use crate::gemm::micro::Tile;
use crate::gemm::narrow::{self, Narrow};
use crate::gemm::pack;
use crate::gemm::parts::{Edges, Parts, Shared, Whole};
use crate::gemm::{self, RawGemm, Rows, edge, few};
use crate::isa::Isa;
use crate::norm::{self, RawNorm};
use crate::peak;
use crate::product::{Dtype, Heads, Products};
use crate::rotary::{self, RawRotary};
use crate::sgd::{self, Sgd};
use crate::simd::Simd;
use crate::simd::scalar::Scalar;
use crate::softmax::{self, RawCrossEntropy};
use crate::table::Kernels;

/// In the place of a soft cap that is left out.
///
/// # Safety
/// Nothing is asked: it panics.
unsafe fn no_cap(_: *mut f32, _: f32, _: usize) {
    panic!("capped logits are not built: cllm-kernels has them by its feature `llama`");
}

/// In the place of dropout that is left out.
///
/// # Safety
/// Nothing is asked: it panics.
unsafe fn no_dropout(_: *mut f32, _: *const f32, _: usize, _: &Dropout, _: u32) {
    panic!("dropout is not built: cllm-kernels has it by its feature `dropout`");
}

/// In the place of AdamW with moments of 8 bits that is left out.
///
/// # Safety
/// Nothing is asked: it panics.
unsafe fn no_adamw8(_: &AdamW, _: Dither, _: *mut f32, _: *const f32, _: RawMoments8, _: usize) {
    panic!("this optimizer is not built: cllm-kernels has it by its feature `optimizers`");
}

/// In the place of gradient descent that is left out.
///
/// # Safety
/// Nothing is asked: it panics.
unsafe fn no_sgd(_: &Sgd, _: *mut f32, _: *const f32, _: usize) {
    panic!("this optimizer is not built: cllm-kernels has it by its feature `optimizers`");
}

/// In the place of momentum that is left out.
///
/// # Safety
/// Nothing is asked: it panics.
unsafe fn no_momentum(_: &Sgd, _: f32, _: *mut f32, _: *const f32, _: *mut f32, _: usize) {
    panic!("this optimizer is not built: cllm-kernels has it by its feature `optimizers`");
}

/// What a shell holds. The unit tests of this crate look at parts and call no kernel (`tests/` try those): there shells
/// are empty, for all of them a second time are a minute of building.
macro_rules! kernel {
    ($call:expr) => {
        if cfg!(test) {
            panic!("kernels are not built for unit tests")
        } else {
            // SAFETY: passed on from the caller.
            unsafe { $call }
        }
    };
}

/// Builds the kernels of products of one format.
macro_rules! products {
    ($module:ident, $dtype:expr, $lanes:ty, $token:expr, $Format:ty, $format:expr,
        $driver:ident, $peak:ident, $heads:expr, $keeps:expr, $edges:expr
        $(, $feature:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            pub(super) unsafe fn product(g: &RawGemm) {
                kernel!(gemm::$driver($token, $format, g))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn product_of_both(g: &RawGemm, a: RawOperand, b: RawOperand) {
                kernel!(gemm::both::gemm($token, $format, g, a, b))
            }

            $(#[target_feature(enable = $feature)])?
            pub(super) unsafe fn pack_b(src: RawOperand, k: usize, n: usize, dst: *mut f32) {
                kernel!(pack::pack_b($token, $format, src, k, n, dst))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn peak(iterations: u64) -> (u64, f32) {
                kernel!(peak::$peak($token, $format, iterations))
            }

            pub(crate) const PRODUCTS: Products = Products {
                dtype: $dtype,
                footprint: <$Format as Format<$lanes>>::FOOTPRINT,
                gemm: product,
                gemm_both: product_of_both,
                edges: $edges,
                narrow: Narrow::of::<$lanes, $Format>(),
                pack_b,
                peak,
                heads: $heads,
                keeps: $keeps,
            };
        }
    };
}

/// Builds the functions that all kernels of a format in vectors have the large parts of products from.
macro_rules! parts {
    ($module:ident, $token:expr, $format:expr $(, $feature:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            unsafe fn wide<const ALONG: bool>(
                t: &Tile,
                rows: usize,
                cols: usize,
                accumulate: bool,
            ) {
                kernel!(edge::tile::<_, _, ALONG, true>($token, $format, t, rows, cols, accumulate))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn half<const ALONG: bool>(
                t: &Tile,
                rows: usize,
                cols: usize,
                accumulate: bool,
            ) {
                kernel!(edge::tile::<_, _, ALONG, false>($token, $format, t, rows, cols, accumulate))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn few(g: &RawGemm, a: &Rows) {
                kernel!(few::gemm($token, $format, g, a))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn beside(t: &Tile, p: &Panels, rows: usize, panels: usize, accumulate: bool) {
                kernel!(beside::side_by_side($token, $format, t, p, (rows, panels), accumulate))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn whole<const THROUGH: bool, const AHEAD: bool, const ROWS: bool>(
                g: &RawGemm,
                a: &Rows,
                panel: &Panel,
                far: &mut Run,
            ) -> usize {
                kernel!(block::whole::<_, _, THROUGH, AHEAD, ROWS>(
                    $token, $format, g, a, panel, far
                ))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn block(g: &RawGemm, a: &Rows, depth: usize, kc: usize) {
                kernel!(block::block($token, $format, g, a, depth, kc))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn narrow(t: &Tile, rows: usize, cols: usize, accumulate: bool) {
                kernel!(narrow::tile($token, $format, t, rows, cols, accumulate))
            }

            /// One does for all where code is compact.
            const ONE: Edges = Edges { half: half::<false>, wide: half::<false>, narrow };
            const ALONG: Edges = Edges { half: half::<true>, wide: wide::<true>, narrow };
            const ACROSS: Edges = Edges { wide: wide::<false>, ..ONE };

            pub(crate) const PARTS: Parts = Parts {
                along: if COMPACT { ONE } else { ALONG },
                across: if COMPACT { ONE } else { ACROSS },
                few,
                beside,
                block,
                whole: Whole {
                    plain: whole::<false, false, false>,
                    rows: whole::<false, false, true>,
                    ahead: whole::<false, true, false>,
                    through: whole::<true, true, false>,
                    through_rows: whole::<true, true, true>,
                },
            };
        }
    };
}

/// Builds the kernels of attention whose products are of one format.
macro_rules! heads {
    ($module:ident, $token:expr, $format:expr $(, $feature:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $feature)])?
            unsafe fn attention_forward<const STARTS: bool>(a: &RawAttention) {
                kernel!(attention::forward::forward::<_, _, STARTS>($token, $format, a))
            }

            $(#[target_feature(enable = $feature)])?
            unsafe fn attention_backward<const STARTS: bool>(a: &RawAttention) {
                kernel!(attention::backward::backward::<_, _, STARTS>($token, $format, a))
            }

            pub(crate) const HEADS: Heads = Heads {
                // The code with first keys does for those without.
                forward: [
                    attention_forward::<{ COMPACT && DOCUMENTS }>,
                    if DOCUMENTS { attention_forward::<true> } else { left_out },
                ],
                backward: [
                    attention_backward::<{ COMPACT && DOCUMENTS }>,
                    if DOCUMENTS { attention_backward::<true> } else { left_out },
                ],
            };
        }
    };
}

/// Builds one table: a shell for each kernel, all with the same features.
macro_rules! kernel_table {
    ($module:ident, $isa:expr, $token:expr, $lanes:ty, $peak:ident $(, $feature:literal)?) => {
        pub(crate) mod $module {
            use super::*;

            /// # Safety
            /// The CPU has this module's instruction set.
            #[inline(always)]
            unsafe fn token() -> $lanes {
                // SAFETY: passed on from the caller: the table is handed out only where
                // its instruction set was detected or vouched for.
                #[allow(unused_unsafe, reason = "the scalar token needs no proof")]
                unsafe { $token }
            }

            kernel_table!(@shells $($feature)?;
                fn norm_forward(a: &RawNorm) = norm::forward;
                fn norm_backward(a: &RawNorm) = norm::backward;
                fn cross_entropy(a: &RawCrossEntropy) = softmax::cross_entropy;
                fn embedding_gather(a: &RawEmbedding) = embedding::gather;
                fn embedding_scatter(
                    tokens: *const u32, rows: usize, grad: *const f32, grad_row: usize,
                    cols: usize, table: *mut f32, first_id: usize, ids: usize
                ) = embedding::scatter_add;
                fn accumulate(dst: *mut f32, src: *const f32, n: usize) = elementwise::accumulate;
                fn scale(dst: *mut f32, factor: f32, n: usize) = elementwise::scale;
                fn soft_cap(dst: *mut f32, cap: f32, n: usize) = elementwise::soft_cap;
                fn gelu(dst: *mut f32, src: *const f32, n: usize) = elementwise::gelu;
                fn gelu_backward(grad: *mut f32, pre: *const f32, n: usize) =
                    elementwise::gelu_backward;
                fn swiglu(a: &RawGated) = gated::swiglu;
                fn swiglu_backward(a: &RawGatedBackward) = gated::swiglu_backward;
                fn rotate(a: &RawRotary) = rotary::rotate;
                fn dropout_row(
                    dst: *mut f32, src: *const f32, n: usize, dropout: &Dropout, row: u32
                ) = elementwise::dropout_row;
                fn column_sum(
                    src: *const f32, stride: usize, rows: usize, cols: usize,
                    dst: *mut f32, accumulate: bool
                ) = elementwise::column_sum;
                fn adamw(
                    h: &AdamW, p: *mut f32, g: *const f32, m: *mut f32, v: *mut f32, n: usize
                ) = adamw::adamw;
                fn adamw8(
                    h: &AdamW, dither: Dither, p: *mut f32, g: *const f32, moments: RawMoments8,
                    n: usize
                ) = adamw8::adamw8;
                fn sgd(h: &Sgd, p: *mut f32, g: *const f32, n: usize) = sgd::sgd;
                fn momentum(
                    h: &Sgd, momentum: f32, p: *mut f32, g: *const f32, m: *mut f32, n: usize
                ) = sgd::momentum;
            );

            $(#[target_feature(enable = $feature)])?
            unsafe fn sum_squares(src: *const f32, n: usize) -> f32 {
                kernel!(elementwise::sum_squares(token(), src, n))
            }

            parts!(parts, token(), Single $(, $feature)?);
            heads!(single_heads, token(), Single $(, $feature)?);
            products!(single, Dtype::F32, $lanes, token(), Single, Single,
                in_place, $peak, single_heads::HEADS, None, Some(parts::PARTS.along) $(, $feature)?);
            heads!(rounded_heads, token(), Rounded $(, $feature)?);
            products!(rounded, Dtype::Bf16, $lanes, token(), Rounded, Rounded,
                converted, $peak, rounded_heads::HEADS, None, None
                $(, $feature)?);
            impl Shared for $lanes {
                const PARTS: Parts = parts::PARTS;
                const PACK_SINGLE: pack::PackFn = single::pack_b;
                const PACK_ROUNDED: pack::PackFn = rounded::pack_b;
            }

            pub(crate) const TABLE: Kernels = Kernels {
                isa: $isa,
                lanes: <$lanes as Simd>::LANES,
                packs: false,
                products: single::PRODUCTS,
                norm_forward,
                norm_backward,
                cross_entropy,
                embedding_gather,
                embedding_scatter,
                accumulate,
                scale,
                soft_cap: if LLAMA { soft_cap } else { no_cap },
                gelu,
                gelu_backward,
                swiglu: if LLAMA { swiglu } else { left_out },
                swiglu_backward: if LLAMA { swiglu_backward } else { left_out },
                rotate: if LLAMA { rotate } else { left_out },
                dropout_row: if DROPOUT { dropout_row } else { no_dropout },
                column_sum,
                sum_squares,
                adamw,
                adamw8: if OPTIMIZERS { adamw8 } else { no_adamw8 },
                sgd: if OPTIMIZERS { sgd } else { no_sgd },
                momentum: if OPTIMIZERS { momentum } else { no_momentum },
            };
            pub(crate) const ROUNDED: Products = rounded::PRODUCTS;
            pub(crate) static F32: Kernels = TABLE;
            pub(crate) static BF16: Kernels = Kernels { products: ROUNDED, ..TABLE };
            $(
                #[doc = concat!("Both for CPUs with ", $feature, " that had rather pack.")]
                #[cfg(target_arch = "x86_64")]
                pub(crate) static PACKING: [Kernels; 2] = [
                    Kernels { packs: true, ..TABLE },
                    Kernels { packs: true, products: ROUNDED, ..TABLE },
                ];
            )?
        }
    };
    (@shells $($feature:literal)?;
        $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:path;)*) => {
        kernel_table!(@each [$($feature)?] $(fn $name($($arg: $ty),*) = $kernel;)*);
    };
    (@each $features:tt $(fn $name:ident($($arg:ident: $ty:ty),*) = $kernel:path;)*) => {
        $(kernel_table!(@shell $features fn $name($($arg: $ty),*) = $kernel;);)*
    };
    (@shell [$($feature:literal)?] fn $name:ident($($arg:ident: $ty:ty),*) = $kernel:path;) => {
        $(#[target_feature(enable = $feature)])?
        #[allow(clippy::too_many_arguments, reason = "the raw form of a safe method")]
        unsafe fn $name($($arg: $ty),*) {
            kernel!($kernel(token(), $($arg),*))
        }
    };
}

kernel_table!(scalar, Isa::Scalar, Scalar, Scalar, pass);
// Its multiply-adds overwrite what they add to: chains are sums.
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
kernel_table!(
    neon,
    Isa::Neon,
    crate::simd::neon::Neon::assume(),
    crate::simd::neon::Neon,
    dot_pass,
    "neon"
);
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
kernel_table!(
    simd128,
    Isa::Simd128,
    crate::simd::simd128::Simd128::assume(),
    crate::simd::simd128::Simd128,
    pass,
    "simd128"
);
#[cfg(target_arch = "x86_64")]
kernel_table!(avx, Isa::Avx, crate::simd::avx::Avx::assume(), crate::simd::avx::Avx, pass, "avx");
#[cfg(target_arch = "x86_64")]
kernel_table!(
    avx2,
    Isa::Avx2,
    crate::simd::avx2::Avx2::assume(),
    crate::simd::avx2::Avx2,
    pass,
    "avx2,fma"
);
#[cfg(target_arch = "x86_64")]
kernel_table!(
    avx512,
    Isa::Avx512,
    crate::simd::avx512::Avx512::assume(),
    crate::simd::avx512::Avx512,
    pass,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
);

/// The kernels of AVX-512 with products of pairs of bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512bf16 {
    use super::*;
    use crate::elements::{Bf16, Halves};
    use crate::gemm::format::Paired;
    use crate::gemm::kept::{self, Halved};
    use crate::product::Keeps;
    use crate::simd::avx512::Avx512;

    parts!(
        parts,
        Avx512::assume(),
        Paired::assume(),
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
    );

    heads!(
        paired_heads,
        Avx512::assume(),
        Paired::assume(),
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
    );

    products!(
        paired,
        Dtype::Bf16,
        Avx512,
        Avx512::assume(),
        Paired,
        Paired::assume(),
        converted,
        dot_pass,
        paired_heads::HEADS,
        Some(KEEPS),
        Some(PARTS.along),
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
    );

    /// # Safety
    /// The CPU has this module's instruction set.
    #[inline(always)]
    unsafe fn tokens() -> (Avx512, Halves) {
        // SAFETY: passed on from the caller: see `kernel_table`.
        unsafe { (Avx512::assume(), Halves(Paired::assume())) }
    }

    /// Shells around kernels that read or write bf16.
    macro_rules! shells {
        ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:path;)*) => {
            $(
                #[target_feature(
                    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
                )]
                unsafe fn $name($($arg: $ty),*) {
                    // SAFETY: passed on from the caller.
                    unsafe {
                        let (s, m) = tokens();
                        $kernel(s, m, $($arg),*)
                    }
                }
            )*
        };
    }

    shells!(
        fn product(g: &RawGemm, halves: Halved) = kept_product;
        fn norm_forward(a: &RawNorm) = norm::forward_into::<_, Paired, _>;
        fn norm_backward(a: &RawNorm) = norm::backward_into::<_, Paired, _>;
        fn cross_entropy(a: &RawCrossEntropy) = softmax::cross_entropy_into::<_, Paired, _>;
        fn column_sum(
            src: *const Bf16, stride: usize, rows: usize, cols: usize,
            dst: *mut f32, accumulate: bool,
        ) = elementwise::column_sum_of::<_, Paired, _>;
        fn swiglu(a: &RawGated) = gated::swiglu_of::<_, Paired, _>;
        fn swiglu_backward(a: &RawGatedBackward) = gated::swiglu_backward_of::<_, Paired, _>;
    );

    /// # Safety
    /// As for [`kept::gemm`].
    #[inline(always)]
    unsafe fn kept_product(s: Avx512, m: Halves, g: &RawGemm, halves: Halved) {
        kernel!(kept::gemm(s, m.0, g, halves))
    }

    pub(crate) const PARTS: Parts = parts::PARTS;
    pub(crate) const PACK_B: pack::PackFn = paired::pack_b;

    pub(crate) const KEEPS: Keeps = Keeps {
        product,
        norm_forward,
        norm_backward,
        cross_entropy,
        column_sum,
        swiglu,
        swiglu_backward,
    };

    const TABLE: Kernels = Kernels { products: paired::PRODUCTS, ..avx512::TABLE };
    pub(crate) static BF16: Kernels = TABLE;
    pub(crate) static PACKING: Kernels = Kernels { packs: true, ..TABLE };
}

/// The kernels of AVX-512 with products of bf16 in tiles. What reads and writes bf16 without
/// multiplying is that of [`avx512bf16`].
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx_bf16 {
    use super::*;
    use crate::gemm::kept::Halved;
    use crate::gemm::tiled::Tiled;
    use crate::product::Keeps;
    use crate::simd::avx512::Avx512;

    heads!(
        tiled_heads,
        Avx512::assume(),
        Tiled::assume(),
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
    );

    products!(
        tiled,
        Dtype::Bf16,
        Avx512,
        Avx512::assume(),
        Tiled,
        Tiled::assume(),
        in_tiles,
        tile_pass,
        tiled_heads::HEADS,
        Some(KEEPS),
        None,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
    );

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn product(g: &RawGemm, halves: Halved) {
        kernel!(gemm::tiles::gemm(Avx512::assume(), Tiled::assume(), g, halves))
    }

    pub(crate) const PACK_B: pack::PackFn = tiled::pack_b;

    const KEEPS: Keeps = Keeps { product, ..avx512bf16::KEEPS };

    // No other maker's CPUs have tiles (see `had_rather_pack`).
    const TABLE: Kernels = Kernels { isa: Isa::Amx, packs: true, ..avx512::TABLE };
    pub(crate) static F32: Kernels = TABLE;
    pub(crate) static CONVERTING: Kernels = Kernels { products: avx512::ROUNDED, ..TABLE };
    pub(crate) static BF16: Kernels = Kernels { products: tiled::PRODUCTS, ..TABLE };
}
