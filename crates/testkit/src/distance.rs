/// How far logits computed one way are from those of another, over many positions.
#[derive(Clone, Debug, Default)]
pub struct Distance {
    divergence: f64,
    positions: u32,
    /// Positions where the yardstick's first choice leads clearly, and those of them where the other agrees.
    clear: u32,
    agree: u32,
}

/// Where the yardstick's first choice leads by more than this in logits, it leads clearly.
const CLEAR_MARGIN: f32 = 0.1;

impl Distance {
    /// One position: the yardstick's logits, and the other's.
    pub fn add(&mut self, want: &[f32], got: &[f32]) {
        self.divergence += divergence(want, got);
        self.positions += 1;
        let (first, margin) = top(want);
        if margin > CLEAR_MARGIN {
            self.clear += 1;
            self.agree += u32::from(top(got).0 == first);
        }
    }

    /// Positions compared.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// Mean Kullback-Leibler divergence from the yardstick, nats.
    pub fn mean(&self) -> f64 {
        self.divergence / f64::from(self.positions)
    }

    /// Share of the clear positions where the first choices agree.
    pub fn agreement(&self) -> f64 {
        f64::from(self.agree) / f64::from(self.clear)
    }

    /// Prints both.
    pub fn print(&self, what: &str) {
        let (mean, share) = (self.mean(), self.agreement());
        println!("{what}: mean divergence {mean:.2e}, agreement {share:.4} at {} clear positions", self.clear);
    }
}

/// Kullback-Leibler divergence of `got` from `want`, both logits.
fn divergence(want: &[f32], got: &[f32]) -> f64 {
    let (want, got) = (log_softmax(want), log_softmax(got));
    want.iter().zip(&got).map(|(w, g)| w.exp() * (w - g)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    logits.iter().map(|l| f64::from(l - max) - sum.ln()).collect()
}

/// Index of the largest value, and by how much it beats the second.
pub fn top(logits: &[f32]) -> (usize, f32) {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or_default();
    let second = logits.iter().enumerate().filter(|(i, _)| *i != best).map(|(_, l)| *l).fold(f32::MIN, f32::max);
    (best, logits[best] - second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of (3/4, 1/4) from (1/2, 1/2): half of ln(2/3) and half of ln 2, with signs.
    #[test]
    fn a_divergence_is_the_known_one() {
        let mut distance = Distance::default();
        distance.add(&[1.0, 1.0], &[3_f32.ln(), 0.0]);
        distance.add(&[2.0, 1.0], &[2.0, 1.0]);
        distance.add(&[2.0, 1.0], &[1.0, 2.0]);
        let known = 0.5 * (2.0_f64 / 3.0).ln() + 0.5 * 2_f64.ln();
        let swapped = {
            let p = 1.0 / (1.0 + (-1.0_f64).exp());
            2.0 * p - 1.0
        };
        assert!((distance.mean() - (known + swapped) / 3.0).abs() < 1e-7);
        // The first position is a tie, no clear lead.
        assert_eq!((distance.positions(), distance.agreement()), (3, 0.5));
    }
}
