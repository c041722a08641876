//! The self-test serves what is sound in every format and refuses what is damaged.

use std::io;
use std::time::Duration;

use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{DenseFormat, KvFormat, Precision, RowSource};
use tandem_model::layout::{LayerTensor, TensorId};
use tandem_model::selftest::{Reference, SelfTestError, Verdict, self_test};
use tandem_model::{
    CheckpointError, Config, Formats, LocalWorker, Model, Runner, ShardPlan, Synthetic, SyntheticKind, WeightStore,
};
use tandem_step::{Capacity, StepPlan, Worker};

const TINY: SyntheticKind = SyntheticKind::Tiny;
/// Longer than a step on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Synthetic weights with every byte of one tensor changed.
struct Damaged {
    store: Synthetic,
    tensor: TensorId,
    change: fn(u8) -> u8,
}

impl WeightStore for Damaged {
    fn config(&self) -> &Config {
        self.store.config()
    }

    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError> {
        let source = self.store.tensor(id)?;
        if id != self.tensor {
            return Ok(source);
        }
        Ok(Box::new(Changed { source, change: self.change }))
    }
}

struct Changed<'a> {
    source: Box<dyn RowSource + 'a>,
    change: fn(u8) -> u8,
}

impl RowSource for Changed<'_> {
    fn rows(&self) -> usize {
        self.source.rows()
    }

    fn row_bytes(&self) -> usize {
        self.source.row_bytes()
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        self.source.read(first, out)?;
        out.iter_mut().for_each(|byte| *byte = (self.change)(*byte));
        Ok(())
    }
}

fn test(
    store: &dyn WeightStore,
    (precision, formats): (Precision, Formats),
    reference: Option<&Reference>,
    (context, chunk): (u32, u32),
) -> Result<Verdict, SelfTestError> {
    let capacity = Capacity {
        block_tokens: 16,
        full_blocks: context.div_ceil(16),
        sliding_blocks: 16,
        window: store.config().sliding_window as u32,
        context,
        max_streams: 1,
        max_step_tokens: chunk,
        layers: store.config().layers() as u32,
        vocab: store.config().vocab as u32,
    };
    let backend = CpuBackend::new(CpuOptions { precision, threads: Some(2), isa: None }).unwrap();
    let mut model = Model::load(backend, store, formats, capacity, ShardPlan::UNDIVIDED).unwrap();
    model.prepare(|_, _| {}).unwrap();
    let mut worker = LocalWorker::start(Runner::new(model)).unwrap();
    let verdict = self_test(&mut worker, &capacity, reference, PATIENCE);
    if verdict.is_ok() {
        // Whoever comes next begins at its own step 0.
        worker.submit(StepPlan { epoch: 7, ..StepPlan::default() }).unwrap();
        assert_eq!(worker.next(PATIENCE).unwrap().epoch, 7);
    }
    verdict
}

const fn formats(dense: DenseFormat, kv: KvFormat) -> Formats {
    Formats { dense, kv }
}

const EXACT: (Precision, Formats) = (Precision::Exact, formats(DenseFormat::Bf16, KvFormat::F32));
const FAST: (Precision, Formats) = (Precision::Fast, formats(DenseFormat::Q8, KvFormat::Bf16));

#[test]
fn sound_weights_pass_in_every_format_and_however_little_fits() {
    let store = Synthetic::new(TINY);
    let fast = [DenseFormat::Bf16, DenseFormat::Q8, DenseFormat::Mxfp4]
        .into_iter()
        .flat_map(|dense| [KvFormat::Bf16, KvFormat::Fp8].map(|kv| (Precision::Fast, formats(dense, kv))));
    for formats in [EXACT].into_iter().chain(fast) {
        let reference = Reference::synthetic(TINY, formats.1);
        // An emulator is slow.
        let sizes =
            if std::env::var_os("TEST_EMULATED").is_some() { &[(64, 3)][..] } else { &[(64, 64), (64, 3), (16, 1)] };
        for &size in sizes {
            let verdict = test(&store, formats, Some(&reference), size).unwrap();
            println!("{formats:?} {size:?}: {verdict}");
        }
        test(&store, formats, None, (64, 64)).unwrap();
    }
}

/// What the stored values were computed from is what exact mode computes.
#[test]
fn exact_mode_gives_the_stored_values() {
    let reference = Reference { mean_max: 1e-4, ..Reference::synthetic(TINY, EXACT.1) };
    test(&Synthetic::new(TINY), EXACT, Some(&reference), (64, 64)).unwrap();
}

#[test]
fn damaged_weights_are_refused() {
    use LayerTensor::*;
    let some_bits: fn(u8) -> u8 = |byte| byte ^ 0x06;
    let four_times: fn(u8) -> u8 = |byte| byte + 2;
    let high_bits: fn(u8) -> u8 = |byte| byte ^ 0x88;
    let of_layer = |tensor| TensorId::Layer(1, tensor);
    let damages = [
        (of_layer(DownScales), some_bits),
        (of_layer(GateUpScales), some_bits),
        (of_layer(QWeight), high_bits),
        (of_layer(VWeight), high_bits),
        (TensorId::LmHead, high_bits),
        (TensorId::Layer(2, DownScales), four_times),
    ];
    let reference = Reference::synthetic(TINY, FAST.1);
    for (tensor, change) in damages {
        let store = Damaged { store: Synthetic::new(TINY), tensor, change };
        let result = test(&store, FAST, Some(&reference), (64, 64));
        println!("{}: {result:?}", tensor.hub_name());
        let said = result.expect_err(&tensor.hub_name()).to_string();
        assert!(said.starts_with("self-test failed: ") && said.ends_with("refusing to serve"), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

/// Without stored values nonsense that is no number is still noticed.
#[test]
fn unknown_weights_must_be_finite() {
    let store = Damaged { store: Synthetic::new(TINY), tensor: TensorId::LmHead, change: |_| 0xff };
    let error = test(&store, FAST, None, (64, 64)).unwrap_err();
    assert!(matches!(error, SelfTestError::Degenerate(_)), "{error}");
}

/// Only the shapes that values were published for have any, and the text has to have as many tokens as there are values.
#[test]
fn published_values_go_with_their_shapes() {
    let encode = |text: &str| tandem_harmony::Tokenizer::shared().encode(text);
    let continuations = [
        (Config::gpt_oss_20b(), " are blue, I love you, and I love you too"),
        (Config::gpt_oss_120b(), " are blue,\nI am a language model, not a human"),
    ];
    for (config, continuation) in continuations {
        let reference = Reference::published(&Config { pad: None, ..config }, encode).unwrap();
        let last = encode(continuation);
        assert_eq!(last.len(), reference.logprobs.len());
        assert!(reference.tokens.ends_with(&last));
    }
    assert!(Reference::published(&TINY.config(), encode).is_none());
}
