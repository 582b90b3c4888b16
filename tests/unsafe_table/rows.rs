//! What the page says by hand: which sources belong together, what is unsafe there, and which tests exercise it.

/// A line of the page.
pub(crate) struct Row {
    /// Sources: a path from the root, in which `{a,b}` stands for one path with each.
    pub(crate) files: &'static str,
    pub(crate) what: &'static str,
    /// `path::function` of a test, or a script or program of its own.
    pub(crate) tests: &'static [&'static str],
}

impl Row {
    const fn new(files: &'static str, what: &'static str, tests: &'static [&'static str]) -> Self {
        Self { files, what, tests }
    }

    /// The path of each source.
    pub(crate) fn paths(&self) -> Vec<String> {
        let Some((before, rest)) = self.files.split_once('{') else {
            return vec![self.files.to_owned()];
        };
        let (names, behind) = rest.split_once('}').unwrap();
        names.split(',').map(|name| format!("{before}{name}{behind}")).collect()
    }
}

/// The page above the table.
pub(crate) const HEAD: &str = "\
# Unsafe code

Made of the sources: `UPDATE_UNSAFE=1 cargo test --test unsafe_table`, and the test fails if a place is missing, has no
comment, or names a test that is not there. All other code denies it. Each place by its line, with its whole comment:
`target/tmp/unsafe.tsv` after the test. `tests/sanitizers.sh` runs most of these tests under sanitizers.

Counted are blocks, functions (`fn`: who calls them promises something), and others (`impl Send`, names for C). *Because*
says who guarantees what blocks rely on, by their comments, and what most of them say: the **caller** of the function that
the block is in; a **check** just before; the **order** of tiles and calls, which gives each its own part
(`core/src/engine/races.rs` looks for others); a value that is there only where the **CPU** has the instructions; the
**user** who owns the files; or the code **here**.

| where | blocks | fn | others | what is unsafe | because | exercised by |
|---|--:|--:|--:|---|---|---|
";

/// In the order of the crates.
pub(crate) const ROWS: &[Row] = &[
    Row::new(
        "kernels/src/table.rs",
        "methods that check lengths, and their calls",
        &[
            "kernels/tests/elementwise.rs::accumulate_and_scale_are_exact",
            "kernels/tests/shapes.rs::flat_passes_check_their_lengths",
        ],
    ),
    Row::new(
        "kernels/src/{product,fresh}.rs",
        "the same of products",
        &[
            "kernels/tests/fresh.rs::packing_on_the_way_gives_the_bits_of_packing_beforehand",
            "kernels/tests/shapes.rs::products_check_every_operand",
        ],
    ),
    Row::new(
        "kernels/src/heads.rs",
        "the same of attention",
        &[
            "kernels/tests/attention.rs::gradients_match_formulas_and_differences",
            "kernels/tests/shapes.rs::attention_checks_its_shapes",
        ],
    ),
    Row::new(
        "kernels/src/rows.rs",
        "the same of norms, losses and embeddings",
        &[
            "kernels/tests/rows.rs::cross_entropy_and_its_gradient_match_the_reference",
            "kernels/tests/shapes.rs::norms_and_losses_check_their_shapes",
        ],
    ),
    Row::new(
        "kernels/src/{shells,built}.rs",
        "functions for each instruction set, made by macros",
        &["kernels/tests/gemm.rs::random_shapes_match_the_reference"],
    ),
    Row::new(
        "kernels/src/mat.rs",
        "views of matrices that lie between others",
        &[
            "kernels/tests/partition_products.rs::a_packed_product_in_parts_has_the_bits_of_the_whole",
            "kernels/tests/shapes.rs::views_must_fit_their_slices",
        ],
    ),
    Row::new(
        "kernels/src/elements.rs",
        "elements of two kinds by one pointer",
        &["kernels/tests/halves.rs::a_left_operand_gives_the_bits_of_its_floats"],
    ),
    Row::new(
        "kernels/src/simd/{mod,scalar}.rs",
        "loads and stores of vectors and of their parts",
        &["kernels/tests/gemm.rs::every_odd_size_in_each_dimension_matches_the_reference"],
    ),
    Row::new(
        "kernels/src/simd/{avx,avx2,avx512}.rs",
        "intrinsics of x86-64",
        &["kernels/tests/elementwise.rs::gelu_and_its_slope_match_on_every_length"],
    ),
    Row::new("kernels/src/simd/neon.rs", "intrinsics of 64-bit ARM", &["tests/aarch64.sh"]),
    Row::new("kernels/src/simd/simd128.rs", "intrinsics of WebAssembly", &["tests/wasm.sh"]),
    Row::new(
        "kernels/src/{amx,gemm/tiled,gemm/tiles}.rs",
        "AMX by `asm!`, products by tiles",
        &["kernels/tests/amx.rs::every_product_has_the_bits_of_the_instruction"],
    ),
    Row::new(
        "kernels/src/gemm/{mod,block,both,shallow,small}.rs",
        "drivers of products: blocks of pointers",
        &[
            "kernels/tests/gemm.rs::every_stride_accumulation_and_epilogue_matches_the_reference",
            "kernels/tests/gemm.rs::products_of_unpacked_operands_match_the_reference",
            "kernels/tests/unpacked.rs::unpacked_operands_have_the_same_bits_wherever_they_lie",
        ],
    ),
    Row::new(
        "kernels/src/gemm/compact.rs",
        "one micro-kernel for all, in small images",
        &["benches/code_size.sh"],
    ),
    Row::new(
        "kernels/src/gemm/{micro,edge,narrow,few,beside,format}.rs",
        "sums of a tile in registers",
        &["kernels/tests/gemm.rs::every_odd_size_in_each_dimension_matches_the_reference"],
    ),
    Row::new(
        "kernels/src/gemm/pack.rs",
        "copies into panels",
        &["kernels/tests/partition_products.rs::a_matrix_packed_in_parts_is_packed_the_same"],
    ),
    Row::new(
        "kernels/src/gemm/epilogue.rs",
        "what is done to a tile of the result",
        &["kernels/tests/addend.rs::an_addend_is_added_once_before_the_epilogue"],
    ),
    Row::new(
        "kernels/src/gemm/kept.rs",
        "products of operands in bf16",
        &["kernels/tests/halves.rs::a_result_is_rounded_once_when_all_of_it_is_there"],
    ),
    Row::new(
        "kernels/src/attention/{mod,forward,few}.rs",
        "scores of a block of queries in scratch",
        &["kernels/tests/attention.rs::forward_with_a_cache_matches_the_definition"],
    ),
    Row::new(
        "kernels/src/attention/{backward,scores,sums}.rs",
        "gradients, in the place of inputs too",
        &["kernels/tests/attention.rs::gradients_match_formulas_and_differences"],
    ),
    Row::new(
        "kernels/src/{norm,softmax,embedding}.rs",
        "rows by pointers",
        &[
            "kernels/tests/rows.rs::norms_and_their_gradients_match_the_reference",
            "kernels/tests/rows.rs::capped_cross_entropy_and_its_gradient_match_the_reference",
            "kernels/tests/rows.rs::embeddings_are_gathered_exactly",
        ],
    ),
    Row::new(
        "kernels/src/{gated,rotary}.rs",
        "rows in pairs, in place",
        &[
            "kernels/tests/llama.rs::swiglu_and_its_gradients_match_the_reference",
            "kernels/tests/llama.rs::rotations_match_the_reference_and_turn_back",
        ],
    ),
    Row::new(
        "kernels/src/{elementwise,peak}.rs",
        "vectors up to the end of an array",
        &[
            "kernels/tests/elementwise.rs::column_sums_are_within_their_bound",
            "kernels/tests/elementwise.rs::a_peak_pass_counts_its_operations",
        ],
    ),
    Row::new(
        "kernels/src/{adamw,adamw8,sgd}.rs",
        "weights and moments in place",
        &[
            "kernels/tests/elementwise.rs::adamw_follows_the_reference_for_several_steps",
            "kernels/tests/optimizers.rs::descent_follows_the_reference_for_several_steps",
            "kernels/tests/optimizers.rs::some_blocks_have_the_bits_of_all",
        ],
    ),
    Row::new(
        "core/src/line.rs",
        "lines as floats",
        &["tests/memory.rs::every_planned_line_is_used_and_no_other"],
    ),
    Row::new(
        "core/src/shared.rs",
        "pieces of a pool for many threads",
        &[
            "core/src/engine/races.rs::tiles_that_may_run_at_the_same_time_share_nothing_that_is_written",
        ],
    ),
    Row::new(
        "core/src/ring/protocol.rs",
        "slots that two threads share",
        &[
            "core/src/ring/models.rs::two_slots_are_used_again_and_again",
            "core/src/ring/tests.rs::two_threads_pass_on_every_item_in_order",
        ],
    ),
    Row::new(
        "core/src/engine/{mod,worker,drill}.rs",
        "a borrowed job for other threads",
        &[
            "tests/engine_stress.rs::thousands_of_steps_survive_workers_that_come_and_go",
            "core/src/engine/models.rs::a_ready_tile_finds_its_inputs",
        ],
    ),
    Row::new(
        "core/src/engine/{sliced,alone,stepwise}.rs",
        "the same on the caller's thread",
        &[
            "tests/slices.rs::slices_of_any_size_give_the_bits_of_whole_steps",
            "benches/code_size.sh",
            "tests/origin.rs::the_first_gradient_that_overflows_is_named",
        ],
    ),
    Row::new(
        "core/src/step/{mod,forward,product,head_norm}.rs",
        "what a tile borrows on the way to the loss",
        &["tests/golden.rs::every_gradient_is_pytorchs"],
    ),
    Row::new(
        "core/src/step/{head,backward,attention_back,weights}.rs",
        "and on the way back",
        &["tests/golden.rs::every_gradient_is_pytorchs"],
    ),
    Row::new(
        "core/src/step/adapter.rs",
        "and beside the products",
        &["tests/adapters.rs::any_tiles_workers_packing_and_recomputation_give_the_same_bits"],
    ),
    Row::new(
        "core/src/step/{update,muon}.rs",
        "and of weights and moments",
        &["tests/optimizers.rs::workers_and_tiles_do_not_change_a_bit"],
    ),
    Row::new(
        "core/src/trainer/{load,ripe}.rs",
        "weights that are only read; gradients that are final",
        &[
            "tests/adapters.rs::panels_may_be_where_they_are_only_read",
            "tests/pieces.rs::what_is_final_is_the_gradient_and_nobody_touches_it",
        ],
    ),
    Row::new(
        "core/src/generate/{mod,feed}.rs",
        "what tiles of a chunk borrow",
        &[
            "core/src/generate/tests.rs::tiles_of_a_stage_share_nothing_that_is_written",
            "tests/generate.rs::any_number_of_threads_gives_the_same_bits",
        ],
    ),
    Row::new(
        "core/src/{engine/tests,engine/races,generate/tests}.rs",
        "jobs of tests",
        &["core/src/engine/tests.rs::a_worker_waits_for_the_seat_that_the_caller_has"],
    ),
    Row::new(
        "core/src/{engine/models,engine/models/runs,ring/models}.rs",
        "the same under loom",
        &[".ci/loom"],
    ),
    Row::new(
        "capi/src/{door,memory,error,idle,lib}.rs",
        "pointers of C, checked as far as they can be",
        &["capi/test.sh", "capi/tests/errors.c"],
    ),
    Row::new(
        "capi/src/{config,checkpoint}.rs",
        "models and checkpoints in the caller's bytes",
        &["capi/test.sh", "capi/tests/errors.c"],
    ),
    Row::new(
        "capi/src/trainer.rs",
        "trainers in the caller's memory",
        &["capi/test.sh", "capi/examples/pthreads.c"],
    ),
    Row::new(
        "capi/src/generator.rs",
        "generators in the caller's memory",
        &["capi/test.sh", "capi/examples/pthreads.c"],
    ),
    Row::new(
        "runner/src/memory.rs",
        "mapped memory as lines",
        &["runner/src/memory.rs::a_trainer_learns_in_them"],
    ),
    Row::new(
        "runner/src/files.rs",
        "mapping files that must not change",
        &["runner/src/data/shard.rs::both_layouts_come_back"],
    ),
    Row::new(
        "runner/src/last_words.rs",
        "a handler of signals that says which file failed",
        &["runner/tests/train_process.rs::what_the_system_ends_a_run_by_has_its_line"],
    ),
    Row::new(
        "tests/support/counting.rs",
        "an allocator that counts",
        &["tests/allocations.rs::a_step_of_workers_and_loader_allocates_nothing_in_any_thread"],
    ),
    Row::new(
        "fuzz/targets/src/c_interface.rs",
        "functions that C calls, called as C does",
        &["tests/fuzz/main.rs::every_seed_goes_through_its_target_in_bounded_memory"],
    ),
    Row::new(
        "tests/freestanding/src/{main,memory,system}.rs",
        "entry, exit and functions on bytes without libc",
        &["tests/freestanding.rs::without_std_the_loss_is_the_same"],
    ),
    Row::new(
        "tests/bare_metal/src/{main,machine}.rs",
        "ports, registers and a second core",
        &["tests/bare_metal.sh"],
    ),
    Row::new(
        "tests/microcontroller/src/{main,machine,adapters}.rs",
        "stack, statics and a debugger",
        &["tests/microcontroller.sh"],
    ),
    Row::new("tests/wasm/src/lib.rs", "statics of one thread", &["tests/wasm.sh"]),
    Row::new(
        "benches/peers/gemm/src/{ours,peers}.rs",
        "other libraries' products",
        &["benches/peers/gemm.sh"],
    ),
];
