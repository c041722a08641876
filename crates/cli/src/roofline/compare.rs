use serde::Serialize;

use super::{Card, Kernel, seconds};

/// A figure beside what the model of the card makes of it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// With its unit.
    pub name: &'static str,
    /// `None` where nothing was run.
    pub measured: Option<f64>,
    /// `None` where the model says nothing, as of a CPU whose arithmetic nobody has measured.
    pub predicted: Option<f64>,
}

impl Figure {
    /// Measured over predicted.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.measured? / self.predicted?)
    }
}

/// A table of figures; where nothing was run, of predictions alone.
pub fn print_figures(card: &Card, figures: &[Figure]) {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let title = format!("model of {}", card.name);
    if figures.iter().all(|figure| figure.measured.is_none()) {
        println!("\n{title:<30}{:>12}", "predicted");
        figures.iter().for_each(|figure| println!("{:<30}{:>12}", figure.name, number(figure.predicted)));
        return;
    }
    println!("\n{title:<30}{:>12}{:>12}{:>10}", "measured", "predicted", "ratio");
    for figure in figures {
        let (measured, predicted) = (number(figure.measured), number(figure.predicted));
        println!("{:<30}{measured:>12}{predicted:>12}{:>10}", figure.name, number(figure.ratio()));
    }
}

/// Where a step's time should go.
pub fn print_prediction(what: &str, card: &Card, kernels: &[Kernel]) {
    println!("\n{:<30}{:>9}{:>12}{:>12}{:>12}", what, "launches", "MB", "GFLOP", "µs");
    let row = |name: &str, launches: f64, bytes: f64, flop: f64, time: Option<f64>| {
        let time = time.map_or("-".into(), |time| format!("{:.1}", time * 1e6));
        println!("{name:<30}{launches:>9.0}{:>12.2}{:>12.2}{time:>12}", bytes / 1e6, flop / 1e9);
    };
    let bytes = |kernel: &Kernel| kernel.bytes + kernel.activations;
    let flop = |kernel: &Kernel| kernel.products + kernel.prompt_experts + kernel.attention;
    for kernel in kernels {
        row(kernel.name, kernel.launches, bytes(kernel), flop(kernel), kernel.seconds(card));
    }
    let sum = |of: &dyn Fn(&Kernel) -> f64| kernels.iter().map(of).sum::<f64>();
    row("all", sum(&|kernel| kernel.launches), sum(&bytes), sum(&flop), seconds(kernels, card));
}
