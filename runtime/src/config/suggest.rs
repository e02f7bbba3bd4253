//! What somebody who mistyped a name may have meant.

use strsim::osa_distance;

/// The candidate nearest to `name`, if any is near enough to be meant.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (osa_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_been_meant_is_suggested() {
        let keys = ["url", "pins", "connect_timeout_ms"];
        assert_eq!(nearest("ulr", keys), Some("url"));
        assert_eq!(nearest("conect_timeout", keys), Some("connect_timeout_ms"));
        assert_eq!(nearest("PINS", keys), Some("pins"));
        assert_eq!(nearest("colour", keys), None);
    }
}
