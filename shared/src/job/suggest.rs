//! "Did you mean": the nearest of the words that are allowed.

/// The nearest candidate, if it is near enough to be what was meant.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let lower = word.to_lowercase().replace('-', "_");
    let shorten = |text: &str| text.chars().take(80).collect::<String>();
    let lower = shorten(&lower);
    candidates
        .into_iter()
        .map(|candidate| {
            let other = shorten(&candidate.to_lowercase().replace('-', "_"));
            let edits = strsim::damerau_levenshtein(&lower, &other);
            let longest = lower.chars().count().max(other.chars().count());
            let begins =
                lower.len() >= 4 && other.len() >= 4 && (other.starts_with(&lower) || lower.starts_with(&other));
            let near = edits * 3 <= longest || begins;
            (near, edits, candidate)
        })
        .filter(|(near, _, _)| *near)
        .min_by_key(|(_, edits, _)| *edits)
        .map(|(_, _, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_known_and_strangers_are_not() {
        let keys = ["epochs", "learning_rate", "batch_size"];
        assert_eq!(nearest("epoch", keys), Some("epochs"));
        assert_eq!(nearest("learning-rate", keys), Some("learning_rate"));
        assert_eq!(nearest("bacth_size", keys), Some("batch_size"));
        assert_eq!(nearest("optimizer", keys), None);
        assert_eq!(nearest("", keys), None);
    }
}
