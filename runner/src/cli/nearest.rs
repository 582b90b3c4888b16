//! The name that a misspelt one was probably meant to be.

/// The candidate most like `name`, if any is like it at all.
pub(crate) fn nearest<'c>(
    name: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    // clap's own measure and threshold, so that flags and keys are treated alike.
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn likely_names_are_found_and_others_are_not() {
        let names = ["batch_size", "block_size", "n_layer", "max_steps"];
        assert_eq!(nearest("bacth_size", names), Some("batch_size"));
        assert_eq!(nearest("n_layers", names), Some("n_layer"));
        assert_eq!(nearest("optimizer", names), None);
    }
}
