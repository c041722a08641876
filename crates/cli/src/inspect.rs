//! `tandem inspect`: what is in a checkpoint and what it needs.

use anyhow::Result;
use tandem_model::inspect::Report;

use crate::load::{self, Source};
use crate::settings::InspectArgs;

/// Opens and checks the model, loads nothing, prints the report.
pub fn run(args: &InspectArgs) -> Result<()> {
    let source = Source::open(&args.model)?;
    let report = Report::new(source.store.config(), &load::memory_request(&args.model)?);
    println!("{}\n{report}", source.name);
    Ok(())
}
