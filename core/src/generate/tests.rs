//! Tiles of a stage touch nothing that another one of it writes; stages wait for one another.

extern crate std;

use super::feed::Feed;
use super::plan::GeneratePlan;
use crate::line::{LANES, Line};
use crate::shared::{Shared, record};
use crate::{Architecture, Dtype, Kernels, ModelConfig};
use core::ops::Range;
use std::vec;
use std::vec::Vec;

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 201,
    block_size: 150,
    n_layer: 2,
    n_head: 3,
    d_model: 45,
    d_ff: 170,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};

/// Of the Llama family.
const LLAMA: ModelConfig = ModelConfig {
    n_head: 4,
    d_model: 48,
    bias: false,
    arch: Architecture {
        n_kv_head: Some(2),
        head_size: Some(14),
        qk_norm: true,
        ..Architecture::LLAMA
    },
    ..CONFIG
};

/// What a tile has borrowed, and whether it writes that, but for what its seat has for itself.
type Borrows = Vec<(Range<usize>, bool)>;

fn meet(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Runs a chunk; gives for each stage what its tiles borrow.
fn borrows(plan: &GeneratePlan, kernels: &Kernels, rows: usize, first: usize) -> Vec<Vec<Borrows>> {
    let lines = |n: usize| vec![Line([0.01; LANES]); n];
    let parameters = vec![0.01; plan.table.arena_len()];
    let packed = lines(plan.packed_lines());
    let (mut cache, mut act) = (lines(plan.cache_lines()), lines(plan.activation_lines()));
    let start = act.as_ptr().addr();
    let own = start + 4 * plan.places.seats..start + size_of_val(&act[..]);
    let feed = Feed {
        plan,
        kernels,
        parameters: &parameters,
        packed: crate::line::floats(&packed),
        cache: Shared::new(&mut cache),
        act: Shared::new(&mut act),
        rows,
        first,
    };
    let of_tile = |id, tile| {
        let _ = record::take();
        // SAFETY: one tile after the other, stage by stage.
        unsafe { feed.tile(id, tile, 1) };
        let all = record::take().into_iter();
        all.map(|b| (b.bytes, b.writes)).filter(|(bytes, _)| !meet(bytes, &own)).collect()
    };
    let of_stage = |id| (0..plan.tiles(id)).map(|tile| of_tile(id, tile)).collect();
    (0..plan.slots()).map(of_stage).collect()
}

#[test]
fn tiles_of_a_stage_share_nothing_that_is_written() {
    let best = Kernels::detect();
    let mut pairs = 0;
    let tables = [Kernels::scalar(), best, best.with_dtype(Dtype::Bf16)];
    for (config, kernels) in [CONFIG, LLAMA].iter().flat_map(|c| tables.map(|k| (c, k))) {
        let plan = GeneratePlan::with_workers(config, 4, kernels).unwrap();
        for (rows, first) in [(1, 0), (1, 149), (5, 20), (96, 54)] {
            for (id, tiles) in borrows(&plan, kernels, rows, first).iter().enumerate() {
                assert!(tiles.iter().all(|tile| tile.iter().any(|(_, writes)| *writes)));
                for (i, one) in tiles.iter().enumerate() {
                    for (j, other) in tiles.iter().enumerate().filter(|(j, _)| *j != i) {
                        pairs += 1;
                        let conflict = one
                            .iter()
                            .filter(|(_, writes)| *writes)
                            .any(|(bytes, _)| other.iter().any(|(theirs, _)| meet(bytes, theirs)));
                        assert!(!conflict, "{}: tiles {i} and {j} of stage {id}", kernels.set());
                    }
                }
            }
        }
    }
    assert!(pairs > 1000, "{pairs} pairs of tiles");
}

#[test]
fn tiles_have_all_columns_of_their_product() {
    let kernels = Kernels::detect();
    for (config, workers) in [CONFIG, LLAMA].iter().flat_map(|c| [1, 2, 3, 64].map(|w| (c, w))) {
        let plan = GeneratePlan::with_workers(config, workers, kernels).unwrap();
        for id in 0..plan.slots() {
            let Some((_, n)) = plan.product(plan.stage_kind(id).0) else { continue };
            let mut end = 0;
            for tile in 0..plan.tiles(id) {
                let columns = plan.columns(id, tile, n);
                assert!(columns.start == end && columns.end > end, "tile {tile} of stage {id}");
                end = columns.end;
            }
            assert_eq!(end, n);
        }
    }
}
