//! Keeps the house: what `docs/architecture.md` draws, nothing public that is dead, no claim about what is not there.

mod claims;
mod dead;
mod faults;
mod house;
mod plurals;
mod rules;
mod storeys;
mod words;

use std::path::Path;

use house::House;

/// Everything that is not as it should be, one line each; empty when the house is tidy.
pub(crate) fn findings(root: &Path) -> Result<Vec<String>, String> {
    let house = House::load(root)?;
    let mut found = storeys::check(&house);
    found.extend(dead::check(&house));
    found.extend(claims::check(&house));
    found.extend(faults::check(&house));
    found.extend(rules::check(&house));
    found.extend(plurals::check(&house));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_house_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let found = super::findings(&root).unwrap();
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }
}
