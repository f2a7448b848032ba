//! The word that was probably meant.

/// The candidate that a typing error or two turn into `word`, if there is one.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > MAX_WORD {
        return None;
    }
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= MAX_WORD)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Longest word looked at, in bytes: the work grows with the square.
const MAX_WORD: usize = 64;

/// Letters to add, drop, change or swap with their neighbour (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().map(|letter| letter.to_ascii_lowercase()).collect();
    // Three rows of the table: the one before the last, the last, and the one being filled.
    let mut older: Vec<usize> = Vec::new();
    let mut old: Vec<usize> = (0..=to.len()).collect();
    let mut before: Option<char> = None;
    for (row, letter) in from.chars().map(|letter| letter.to_ascii_lowercase()).enumerate() {
        let mut new = vec![row + 1];
        for (column, &other) in to.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX - 1);
            let change = at(&old, column) + usize::from(letter != other);
            let mut best = change.min(at(&old, column + 1) + 1).min(at(&new, column) + 1);
            let earlier = column.checked_sub(1);
            if let Some(earlier) = earlier
                && before == Some(other)
                && to.get(earlier) == Some(&letter)
            {
                best = best.min(at(&older, earlier) + 1);
            }
            new.push(best);
        }
        older = std::mem::replace(&mut old, new);
        before = Some(letter);
    }
    old.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_recognised_and_another_word_is_not() {
        let keys = ["packs", "mode", "action", "block-ttl", "strip-ech", "allow", "block"];
        #[rustfmt::skip]
        let cases = [
            ("pakcs", Some("packs")),
            ("Packs", Some("packs")),
            ("packs", Some("packs")),
            ("block_ttl", Some("block-ttl")),
            ("blocks", Some("block")),
            ("stripech", Some("strip-ech")),
            ("mod", Some("mode")),
            ("servers", None),
            ("", None),
            ("x", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
        assert_eq!(nearest(&"p".repeat(10_000), keys), None);
    }
}
