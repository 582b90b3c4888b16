//! What scheduling cost in a recording: the numbers that a simulation goes by.

use super::about::Costs;
use super::record::TileEvent;
use super::tracer::{Span, What};

/// The median; 0 of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The lower quartile, for waits for a thread to be woken: the system may give its core to
/// others for much longer than waking takes. 0 of nothing.
fn quartile(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 4).copied().unwrap_or(0.0)
}

/// The mean without the largest fiftieth: moments in which the system took the core away are
/// not a cost of scheduling. 0 of nothing.
fn typical(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let kept = &values[..values.len() - values.len() / 50];
    kept.iter().sum::<f64>() / kept.len().max(1) as f64
}

/// Measures the costs of a recording, all but the memory's.
pub(super) fn measure(tracks: &[Vec<TileEvent>], spans: &[Span]) -> Costs {
    let of = |what: What| spans.iter().filter(move |span| span.what == what);
    let mut steps: Vec<f64> = of(What::Step).map(Span::nanos).collect();
    let count = steps.len().max(1) as f64;
    let runs: Vec<&Span> = of(What::Gradients).chain(of(What::Update)).collect();
    let sum = |spans: &mut dyn Iterator<Item = &Span>| spans.map(Span::nanos).sum::<f64>();
    let data = sum(&mut of(What::Data));
    let main = sum(&mut of(What::Step)) - data - sum(&mut runs.iter().copied());
    let gaps = |stolen: bool| {
        let direct = tracks.iter().flat_map(|track| track.windows(2)).filter(move |pair| {
            let [before, after] = pair else { return false };
            // Operations of one tile follow without a gap.
            let gap = after.begin - before.end;
            gap > 0 && after.wait == 0 && gap == u64::from(after.search) && after.stolen == stolen
        });
        typical(direct.map(|pair| f64::from(pair[1].search)).collect())
    };
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for run in &runs {
        let mut last = 0;
        for track in tracks {
            let from = track.partition_point(|event| event.begin < run.begin);
            let until = track.partition_point(|event| event.begin < run.end);
            let Some(first) = track.get(from).filter(|_| from < until) else { continue };
            starts.push((first.begin - run.begin) as f64);
            last = last.max(track[until - 1].end);
        }
        ends.push(run.end.saturating_sub(last.max(run.begin)) as f64);
    }
    Costs {
        step_ns: median(&mut steps),
        dispatch_ns: gaps(false),
        steal_ns: gaps(true),
        wake_ns: wake(tracks),
        start_ns: quartile(&mut starts),
        end_ns: quartile(&mut ends),
        main_ns: main.max(0.0) / count,
        data_ns: data / count,
        memory_gb_per_s: 0.0,
    }
}

/// From the last tile that ended anywhere to the begin of one that was waited for.
fn wake(tracks: &[Vec<TileEvent>]) -> f64 {
    let mut ends: Vec<u64> = tracks.iter().flatten().map(|event| event.end).collect();
    ends.sort_unstable();
    let waited = tracks.iter().flatten().filter(|event| event.wait > 0);
    let latency = waited.filter_map(|event| {
        let before = ends.partition_point(|end| *end <= event.begin).checked_sub(1)?;
        Some((event.begin - ends[before]) as f64)
    });
    quartile(&mut latency.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begin: u64, end: u64, search: u32, wait: u32, stolen: bool) -> TileEvent {
        let (kind, layer, stage, tile) = (0, None, 0, begin as u32);
        TileEvent { begin, end, kind, layer, stage, tile, stolen, search, wait }
    }

    #[test]
    fn gaps_starts_ends_and_what_is_left_are_told_apart() {
        let tracks = [
            vec![
                event(1100, 1200, 3, 0, false),
                // The same tile's next operation, then one after a gap of 10.
                event(1200, 1300, 0, 0, false),
                event(1310, 1400, 10, 0, false),
                event(1430, 1500, 30, 0, true),
            ],
            // Waits for the end at 1500.
            vec![event(1140, 1200, 3, 0, false), event(1520, 1900, 5, 315, false)],
        ];
        let span = |what, begin, end| Span { what, begin, end };
        let spans = [
            span(What::Data, 1010, 1020),
            span(What::Gradients, 1050, 1950),
            span(What::Step, 1000, 2000),
        ];
        let costs = measure(&tracks, &spans);
        assert_eq!((costs.step_ns, costs.data_ns, costs.main_ns), (1000.0, 10.0, 90.0));
        assert_eq!((costs.dispatch_ns, costs.steal_ns), (10.0, 30.0));
        assert_eq!((costs.start_ns, costs.end_ns), (50.0, 50.0));
        assert_eq!(costs.wake_ns, 20.0);
        assert_eq!(measure(&[], &[]), Costs::default());
    }
}
