//! The report of `tandem inspect`.

use std::collections::BTreeSet;
use std::fmt;

use tandem_backend::{DenseFormat, KvFormat};

use crate::layout::{Dtype, TensorKind, tensors};
use crate::memory::{BytesPerToken, MemoryError, MemoryPlan, MemoryRequest, bytes_per_token, plan_memory};
use crate::{Config, LayerKind, Shard, ShardPlan};

/// What there is to know about a model before running it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its shape.
    pub config: Config,
    /// Its tensors.
    pub kinds: Vec<KindLine>,
    /// All its parameters.
    pub parameters: u64,
    /// Those that take part in one token: not the experts that are not chosen, and not the embedding, of which one row is
    /// looked up. It is what the published figures count.
    pub active_parameters: u64,
    /// Bytes of weights that a decoded token reads on one node, by format of attention and lm_head.
    pub bytes_per_token: Vec<(DenseFormat, BytesPerToken)>,
    /// How memory would be divided on one node, and on each of two.
    pub plans: Vec<(usize, Result<MemoryPlan, MemoryError>)>,
}

/// Tensors of one purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindLine {
    /// What for.
    pub kind: TensorKind,
    /// How many there are.
    pub count: usize,
    /// In which formats.
    pub dtypes: Vec<Dtype>,
    /// Bytes in the checkpoint.
    pub bytes: u64,
    /// Parameters.
    pub parameters: u64,
}

impl Report {
    /// Reports on a model; `request` says with what it would be loaded, the number of nodes apart.
    pub fn new(config: &Config, request: &MemoryRequest) -> Self {
        let kinds: Vec<KindLine> = TensorKind::ALL.into_iter().map(|kind| kind_line(config, kind)).collect();
        let first_of = |world| ShardPlan { rank: 0, world, ..request.shard };
        let plan = |world| (world, plan_memory(config, &MemoryRequest { shard: first_of(world), ..*request }));
        let undivided = Shard::undivided(config);
        Self {
            config: config.clone(),
            parameters: kinds.iter().map(|line| line.parameters).sum(),
            active_parameters: active_parameters(config),
            kinds,
            bytes_per_token: DenseFormat::ALL.map(|dense| (dense, bytes_per_token(config, dense, &undivided))).to_vec(),
            plans: [1, 2].map(plan).to_vec(),
        }
    }
}

fn kind_line(config: &Config, kind: TensorKind) -> KindLine {
    let mut line = KindLine { kind, count: 0, dtypes: Vec::new(), bytes: 0, parameters: 0 };
    let mut dtypes = BTreeSet::new();
    for tensor in tensors(config).filter(|tensor| tensor.id.kind() == kind) {
        line.count += 1;
        line.bytes += tensor.bytes();
        line.parameters += tensor.parameters();
        dtypes.insert(tensor.dtype);
    }
    line.dtypes = dtypes.into_iter().collect();
    line
}

fn active_parameters(config: &Config) -> u64 {
    let active = tensors(config).map(|tensor| match tensor.id.kind() {
        TensorKind::Embedding => 0,
        TensorKind::Experts => tensor.parameters() / config.experts as u64 * config.top_k as u64,
        _ => tensor.parameters(),
    });
    active.sum()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_config(&self.config, f)?;
        self.write_tensors(f)?;
        self.write_bytes_per_token(f)?;
        self.plans.iter().try_for_each(|(world, plan)| write_plan(*world, plan, f))
    }
}

fn write_config(config: &Config, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (c, rope) = (config, &config.rope);
    let sliding = c.layers_of(LayerKind::Sliding);
    writeln!(f, "config")?;
    writeln!(
        f,
        "  layers                 {} ({sliding} sliding over {} tokens, {} full)",
        c.layers(),
        c.sliding_window,
        c.layers() - sliding
    )?;
    writeln!(f, "  hidden / intermediate  {} / {}", c.hidden, c.intermediate)?;
    writeln!(f, "  heads                  {} query, {} key, width {}", c.heads, c.kv_heads, c.head_dim)?;
    writeln!(f, "  experts                {}, {} per token", c.experts, c.top_k)?;
    writeln!(f, "  vocabulary             {}", c.vocab)?;
    writeln!(f, "  context                {}", c.max_context)?;
    let bounds = if rope.truncate { "rounded" } else { "not rounded" };
    writeln!(
        f,
        "  rope                   theta {}, YaRN factor {} from {} tokens, beta {} to {}, bounds {bounds}",
        rope.theta, rope.factor, rope.original_context, rope.beta_fast, rope.beta_slow
    )?;
    writeln!(f, "  norm / SwiGLU          eps {:e} / limit {}, alpha {}", c.rms_eps, c.swiglu_limit, c.swiglu_alpha)?;
    writeln!(f, "  end of reply           {:?}", c.eos)
}

impl Report {
    fn write_tensors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\ntensors       count    format         bytes      parameters")?;
        for line in &self.kinds {
            let dtypes: Vec<String> = line.dtypes.iter().map(Dtype::to_string).collect();
            let (kind, dtypes) = (line.kind, dtypes.join(", "));
            writeln!(f, "  {kind:<10} {:>6}  {dtypes:>8} {:>13} {:>15}", line.count, line.bytes, line.parameters)?;
        }
        let count: usize = self.kinds.iter().map(|line| line.count).sum();
        let bytes: u64 = self.kinds.iter().map(|line| line.bytes).sum();
        writeln!(f, "  {:<10} {count:>6}  {:>8} {bytes:>13} {:>15}", "total", "", self.parameters)?;
        let (all, active) = (self.parameters as f64 / 1e9, self.active_parameters as f64 / 1e9);
        writeln!(f, "parameters: {all:.2} B, of which {active:.2} B take part in a token")
    }

    fn write_bytes_per_token(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nGB read per decoded token (one node, empty context)")?;
        writeln!(f, "  dense  experts  attention  lm_head  scales  router, norms, biases  total")?;
        for (dense, bytes) in &self.bytes_per_token {
            let name = match dense {
                DenseFormat::Bf16 => "bf16",
                DenseFormat::Q8 => "q8",
                DenseFormat::Mxfp4 => "mxfp4",
            };
            let gb = |bytes: u64| format!("{:.3}", bytes as f64 / 1e9);
            let BytesPerToken { experts, attention, lm_head, dense_scales, small } = *bytes;
            let (scales, small, total) = (gb(dense_scales), gb(small), gb(bytes.total()));
            writeln!(
                f,
                "  {name:<5}  {:>7}  {:>9}  {:>7}  {scales:>6}  {small:>21}  {total:>5}",
                gb(experts),
                gb(attention),
                gb(lm_head)
            )?;
        }
        self.write_kv_bytes(f)
    }

    fn write_kv_bytes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let values = 2 * config.kv_width() * config.layers_of(LayerKind::Full);
        let formats = KvFormat::ALL.map(|format| format!("{} {}", kv_name(format), values * format.bytes()));
        let formats = formats.join(", ");
        writeln!(f, "  and of keys and values, for every token of the context, bytes in full layers: {formats}")
    }
}

fn kv_name(format: KvFormat) -> &'static str {
    match format {
        KvFormat::F32 => "f32",
        KvFormat::Bf16 => "bf16",
        KvFormat::Fp8 => "fp8",
    }
}

fn write_plan(world: usize, plan: &Result<MemoryPlan, MemoryError>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let title = if world == 1 { "memory on one node" } else { "memory on each of two nodes" };
    match plan {
        Err(error) => writeln!(f, "\n{title}: {error}"),
        Ok(plan) => {
            let (full, sliding) = (plan.full_kv_bytes_per_token, plan.sliding_kv_bytes_per_token);
            let (context, window) = (plan.capacity.context, plan.capacity.window);
            writeln!(f, "\n{title}\n{}", plan.table)?;
            writeln!(
                f,
                "  context {context} tokens; a token costs {full} bytes, and {sliding} more while among a stream's last {window}"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::memory::Computing;

    use super::*;

    fn report(config: &Config) -> Report {
        let request = MemoryRequest {
            dense: DenseFormat::Q8,
            kv: KvFormat::Bf16,
            computing: Computing::CpuFast,
            context: None,
            max_streams: 8,
            prefill_chunk: 512,
            block_tokens: 16,
            budget_bytes: 60_000_000_000,
            shard: ShardPlan::UNDIVIDED,
        };
        Report::new(config, &request)
    }

    /// 20.91 B and 116.83 B parameters, 3.61 B and 5.13 B of them active: OpenAI's model card.
    #[test]
    fn parameters_are_the_published_ones() {
        let billions = |config| {
            let report = report(&config);
            [report.parameters, report.active_parameters].map(|n| format!("{:.2}", n as f64 / 1e9))
        };
        assert_eq!(billions(Config::gpt_oss_20b()), ["20.91", "3.61"]);
        assert_eq!(billions(Config::gpt_oss_120b()), ["116.83", "5.13"]);
    }

    #[test]
    fn kinds_cover_all_tensors() {
        let report = report(&Config::gpt_oss_20b());
        assert_eq!(report.kinds.iter().map(|line| line.count).sum::<usize>(), 459);
        assert_eq!(report.kinds.iter().map(|line| line.bytes).sum::<u64>(), 13_761_264_768);
        let experts = report.kinds.iter().find(|line| line.kind == TensorKind::Experts).unwrap();
        assert_eq!((experts.count, &experts.dtypes[..]), (24 * 6, &[Dtype::Bf16, Dtype::U8][..]));
    }

    #[test]
    fn it_prints_config_tensors_bytes_and_both_plans() {
        let text = report(&Config::gpt_oss_120b()).to_string();
        let lines = [
            "  layers                 36 (18 sliding over 128 tokens, 18 full)",
            "parameters: 116.83 B, of which 5.13 B take part in a token",
            "  bf16     1.904      1.911    1.158   0.000                  0.030  5.003",
            "  mxfp4    1.904      0.478    0.290   0.048                  0.030  2.749",
            "  and of keys and values, for every token of the context, bytes in full layers: f32 73728, bf16 36864, fp8 18432",
            "memory on each of two nodes",
        ];
        for line in lines {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
        assert!(text.contains("memory on one node: a context of 1024 tokens needs 6"), "{text}");
    }
}
