//! The `tandem` program.

mod settings;

fn main() -> anyhow::Result<()> {
    let cli = settings::Cli::from_process()?;
    println!("{cli:?}");
    Ok(())
}
