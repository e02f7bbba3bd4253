//! What others may have applied stays as it was.

use std::path::Path;

use viworks_testkit::dump::changed_migrations;

#[test]
fn a_released_migration_is_never_changed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    assert_eq!(changed_migrations(&folder), [""; 0]);
}
