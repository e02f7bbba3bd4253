//! Which keys gateways pin: those of the database, or of the configuration where nobody can ask it.

use viworks_backend_agent::nginx::check::own_pins;
use viworks_common::pin::{PinSet, SpkiPin};

use super::{SHIPPED, Scene};

#[test]
fn the_keys_that_gateways_pin_are_those_in_force_where_the_database_says_so() {
    let mut scene = Scene::new();
    let own = own_pins(&scene.config).unwrap();
    assert_eq!(own.configured.pins.len(), 2, "{own:?}");
    let line = |scene: &Scene| {
        let found = scene.found(SHIPPED, None).unwrap();
        let mut pins = found.into_iter().filter(|it| it.contains("gateways pin "));
        pins.next().unwrap()
    };
    let told = scene.found(SHIPPED, None).unwrap().join("\n");
    assert!(
        line(&scene).ends_with(" by the configuration") && told.contains("nobody asked it"),
        "{told}"
    );
    // The next key took the place of the one before, and another one was staged.
    let staged = SpkiPin::from_digest([7; 32]);
    scene.in_force = Ok(PinSet {
        version: 9,
        pins: [own.live, staged].into(),
    });
    assert_eq!(
        line(&scene),
        format!("gateways pin {} and {staged}", own.live)
    );
    // Put in place, the next key is the shown one, and is named once.
    let key = std::fs::read(&scene.config.agents.key_file).unwrap();
    let next = scene.config.agents.next_key_file.clone().unwrap();
    std::fs::write(&next, key).unwrap();
    assert_eq!(own_pins(&scene.config).unwrap().configured.pins.len(), 1);
    scene.in_force = Err("nobody asked it".to_owned());
    let told = line(&scene);
    assert_eq!(told.matches("sha256/").count(), 1, "{told}");
}
