//! The shipped catalogue, as it is installed to `commands.d`.

/// File names and contents.
pub const SHIPPED: &[(&str, &str)] = &[
    (
        "10-gateway.toml",
        include_str!("../../catalogue/10-gateway.toml"),
    ),
    (
        "20-system.toml",
        include_str!("../../catalogue/20-system.toml"),
    ),
    (
        "30-network.toml",
        include_str!("../../catalogue/30-network.toml"),
    ),
    (
        "40-services.toml",
        include_str!("../../catalogue/40-services.toml"),
    ),
];
