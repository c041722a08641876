/// How many different experts steps have read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertCount {
    /// Layers of steps that were counted.
    pub layers: u64,
    /// Different experts that the rows of a step chose, over all these layers.
    pub distinct: u64,
}

impl std::ops::AddAssign for ExpertCount {
    fn add_assign(&mut self, other: Self) {
        self.layers += other.layers;
        self.distinct += other.distinct;
    }
}
