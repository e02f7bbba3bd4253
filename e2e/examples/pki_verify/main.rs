//! The verdicts of both certificate verifiers on an x509-limbo test suite: `limbo.json` in, verdicts out.
//!
//! `cargo run -p viworks-e2e --example pki_verify < limbo.json > verdicts.json`

use std::io::{self, BufReader, BufWriter, Write};

use anyhow::Context;

mod limbo;

fn main() -> anyhow::Result<()> {
    let suite: limbo::Suite = serde_json::from_reader(BufReader::new(io::stdin().lock()))
        .context("standard input holds no x509-limbo suite")?;
    let mut out = BufWriter::new(io::stdout().lock());
    serde_json::to_writer_pretty(&mut out, &limbo::judge(&suite)?)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}
