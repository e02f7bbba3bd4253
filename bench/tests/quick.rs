//! The benchmark works from end to end: every measurement yields a figure for both sides. Speed is not tested here.

use std::process::Command;

#[test]
fn a_quick_run_yields_every_figure() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_viworks-bench"))
        .args(["--quick", "--json"])
        .arg(&json)
        .output()
        .expect("the benchmark starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = std::fs::read(&json).expect("the figures were written");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("they are JSON");
    let figures = report["figures"].as_array().expect("a list of figures");
    assert_eq!(figures.len(), 12, "{report:#}");
    for figure in figures {
        for side in ["ours", "reference"] {
            let value = figure[side].as_f64().unwrap_or_default();
            assert!(value > 0.0, "{figure:#}");
        }
    }
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("commands, 100 in flight"), "{table}");
}
