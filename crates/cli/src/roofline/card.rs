use tandem_backend::cpu::Isa;

/// What a machine can do: the limits that predictions are made of. Measured where the comment names a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// What it is called.
    pub name: String,
    /// Whether it is a GPU.
    pub gpu: bool,
    /// Memory read, bytes per second.
    pub read: f64,
    /// Large products of 16-bit activations, FLOP per second; `None` where nobody has measured it.
    pub products: Option<f64>,
    /// Products of prompts with experts' MXFP4 weights, FLOP per second.
    pub prompt_experts: Option<f64>,
    /// Attention of prompts, FLOP per second: products with a softmax between them.
    pub attention: Option<f64>,
    /// What a launch that depends on the one before it costs in a recorded step beside its reading, seconds.
    pub launch: f64,
    /// Nodes that share a model's layers.
    pub nodes: usize,
    /// One exchange of a token's partial sums between them, seconds.
    pub exchange: f64,
    /// What a node sends another, bytes per second.
    pub link: f64,
}

/// Attention reaches about half of the rate of large products: its own products are narrow, and a softmax is between them.
const ATTENTION_SHARE: f64 = 0.5;

impl Card {
    /// One DGX Spark. Nobody who wrote this had one: 235 GB/s, 92 TFLOP/s of BF16 and 136 TFLOP/s of 8-bit products of 256 rows
    /// are what others measured on a GB10 (read probes give 231 to 251 GB/s), 3 µs a launch is a guess.
    pub fn gb10() -> Self {
        Self {
            name: "GB10".into(),
            gpu: true,
            read: 235e9,
            products: Some(92e12),
            prompt_experts: Some(136e12),
            attention: Some(ATTENTION_SHARE * 92e12),
            launch: 3e-6,
            nodes: 1,
            exchange: 0.0,
            link: f64::INFINITY,
        }
    }

    /// Two, joined by one cable: an exchange takes 10 µs, which others measured for 8 KB of one-shot RDMA
    /// writes; 20 GB/s are four fifths of the cable.
    pub fn two_gb10() -> Self {
        Self { name: "two GB10".into(), nodes: 2, exchange: 10e-6, link: 20e9, ..Self::gb10() }
    }

    /// One H200: 4.6 TB/s (this program's probe), 790 TFLOP/s (a large BF16 product of torch's library), 2 µs a launch (a chain of
    /// dependent kernels in a graph that only read, less the reading).
    pub fn h200() -> Self {
        Self {
            name: "H200".into(),
            gpu: true,
            read: 4.6e12,
            products: Some(790e12),
            prompt_experts: Some(790e12),
            attention: Some(ATTENTION_SHARE * 790e12),
            launch: 2e-6,
            nodes: 1,
            exchange: 0.0,
            link: f64::INFINITY,
        }
    }

    /// One H100: an H200 with slower memory, 3.0 TB/s (a large copy).
    pub fn h100() -> Self {
        Self { name: "H100".into(), read: 3.0e12, ..Self::h200() }
    }

    /// The GPU of this name, as its driver says it; `None` for one nobody has described.
    pub fn of_gpu(name: &str) -> Option<Self> {
        let card = match name {
            _ if name.contains("GB10") => Self::gb10(),
            _ if name.contains("H200") => Self::h200(),
            _ if name.contains("H100") => Self::h100(),
            _ => return None,
        };
        Some(card)
    }

    /// A CPU that reads this many bytes per second. Rates of products are those of a Zen 5 thread; no other was measured.
    pub fn cpu(isa: Isa, threads: usize, read: f64) -> Self {
        let each = match isa {
            Isa::Avx512Vnni => Some(300e9),
            Isa::Avx2 => Some(100e9),
            Isa::Scalar | Isa::NeonDotprod | Isa::NeonI8mm => None,
        };
        let products = each.map(|each| each * threads as f64);
        Self {
            name: format!("cpu {isa}, {threads} threads"),
            gpu: false,
            read,
            products,
            prompt_experts: products,
            attention: products.map(|products| ATTENTION_SHARE * products),
            launch: 5e-6,
            nodes: 1,
            exchange: 0.0,
            link: f64::INFINITY,
        }
    }
}
