//! Plans that a worker runs in parts, and plans that it refuses.

use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_model::{Checkpoint, Formats, Model, Runner, ShardPlan, WeightStore};
use tandem_step::{BlockAssignment, Capacity, Input, Pool, Row, RowResult, Sampling, Slice, Start, StepPlan};
use tandem_testkit::CheckpointSpec;

/// Layers of the checkpoint.
const LAYERS: u32 = CheckpointSpec::B.layers as u32;
const BLOCK_TOKENS: u32 = 16;
/// Blocks of a slot.
const BLOCKS: u32 = 4;
const STREAMS: u32 = 3;

/// A runner with all slots taken, each by a greedy request with log-probabilities.
struct Running {
    runner: Runner<CpuBackend>,
    step: u64,
}

impl Running {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tandem_testkit::write_hub(folder.path(), &CheckpointSpec::B).unwrap();
        let store = Checkpoint::open(folder.path()).unwrap();
        let capacity = Capacity {
            block_tokens: BLOCK_TOKENS,
            full_blocks: STREAMS * BLOCKS,
            sliding_blocks: STREAMS * BLOCKS,
            window: store.config().sliding_window as u32,
            context: BLOCKS * BLOCK_TOKENS,
            max_streams: STREAMS,
            max_step_tokens: 64,
            layers: LAYERS,
            vocab: store.config().vocab as u32,
        };
        let backend = CpuBackend::new(CpuOptions { precision: Precision::Exact, threads: Some(1), isa: None }).unwrap();
        let formats = Formats { dense: DenseFormat::Bf16, kv: KvFormat::F32 };
        let model = Model::load(backend, &store, formats, capacity, ShardPlan::UNDIVIDED).unwrap();
        let mut running = Self { runner: Runner::new(model), step: 0 };
        let sampling = Sampling { temperature: 0.0, logprobs: Some(2), ..Sampling::default() };
        let start = |slot| Start { slot, sampling: sampling.clone(), history: vec![], generated: 0, constraint: None };
        let starts = (0..STREAMS).map(start).collect();
        running.run(StepPlan { starts, ..StepPlan::default() }).unwrap();
        running
    }

    fn run(&mut self, plan: StepPlan) -> Result<Vec<RowResult>, String> {
        let plan = StepPlan { step: self.step, ..plan };
        self.step += 1;
        let result = self.runner.run(&plan).map_err(|error| error.to_string())?;
        assert_eq!(result.timings.slice_us > 0, plan.slice.is_some());
        Ok(result.rows)
    }

    fn refusal(mut self, plan: StepPlan) -> String {
        self.run(plan).unwrap_err()
    }
}

/// A first row of so many tokens, which brings all blocks of its slot.
fn prompt(slot: u32, length: u32) -> Row {
    let tokens = (0..length).map(|i| 5 + 3 * i + slot).collect();
    let of = |pool| move |index| BlockAssignment { pool, index, block: slot * BLOCKS + index };
    let blocks = (0..BLOCKS).map(of(Pool::Full)).chain((0..BLOCKS).map(of(Pool::Sliding))).collect();
    Row { slot, input: Input::Tokens(tokens), position: 0, blocks, sample: true, score: None }
}

fn decode(slot: u32, position: u32) -> Row {
    Row { slot, input: Input::Sampled, position, blocks: vec![], sample: true, score: None }
}

fn begin(rows: Vec<Row>, layers: u32) -> Option<Slice> {
    Some(Slice { rows, layers })
}

fn more(layers: u32) -> Option<Slice> {
    begin(vec![], layers)
}

#[test]
fn a_pass_in_slices_with_decodes_between_is_the_pass_and_the_decodes() {
    let mut whole = Running::new();
    let mut want = vec![whole.run(StepPlan { rows: vec![prompt(0, 9)], ..StepPlan::default() }).unwrap()];
    for position in 9..9 + LAYERS {
        want.push(whole.run(StepPlan { rows: vec![decode(0, position)], ..StepPlan::default() }).unwrap());
    }
    want.push(whole.run(StepPlan { rows: vec![prompt(1, 30), prompt(2, 1)], ..StepPlan::default() }).unwrap());

    let mut sliced = Running::new();
    let mut got = vec![sliced.run(StepPlan { rows: vec![prompt(0, 9)], ..StepPlan::default() }).unwrap()];
    for layer in 0..LAYERS {
        let slice = if layer == 0 { begin(vec![prompt(1, 30), prompt(2, 1)], 1) } else { more(1) };
        got.push(sliced.run(StepPlan { slice, rows: vec![decode(0, 9 + layer)], ..StepPlan::default() }).unwrap());
    }
    // The last slice's step answers the pass's rows after its own.
    let last = got.pop().unwrap();
    got.extend([last[..1].to_vec(), last[1..].to_vec()]);
    assert_eq!(got, want, "to the bit");
}

/// Also where it is as small as what runs between, and in one slice.
#[test]
fn small_passes_and_passes_of_one_slice_are_passes() {
    let mut whole = Running::new();
    let want = whole.run(StepPlan { rows: vec![prompt(1, 1), prompt(2, 1)], ..StepPlan::default() }).unwrap();
    for slices in [vec![LAYERS], vec![1, LAYERS - 1]] {
        let mut sliced = Running::new();
        let mut got = Vec::new();
        for (index, layers) in slices.into_iter().enumerate() {
            let rows = if index == 0 { vec![prompt(1, 1), prompt(2, 1)] } else { vec![] };
            let beside = if index == 0 { vec![prompt(0, STREAMS)] } else { vec![] };
            let plan = StepPlan { slice: begin(rows, layers), rows: beside, ..StepPlan::default() };
            got = sliced.run(plan).unwrap();
        }
        assert_eq!(got[got.len() - 2..], want[..]);
    }
}

#[test]
fn a_pass_is_over_when_all_its_slots_end() {
    let mut running = Running::new();
    running.run(StepPlan { slice: begin(vec![prompt(1, 20), prompt(2, 9)], 1), ..StepPlan::default() }).unwrap();
    running.run(StepPlan { ends: vec![1, 2], rows: vec![prompt(0, 40)], ..StepPlan::default() }).unwrap();
    let error = running.refusal(StepPlan { slice: more(1), ..StepPlan::default() });
    assert_eq!(error, "bad plan: a slice of no pass");
}

#[test]
fn what_contradicts_the_pass_under_way_is_refused() {
    let under_way = || {
        let mut running = Running::new();
        running.run(StepPlan { rows: vec![prompt(0, 9)], ..StepPlan::default() }).unwrap();
        let slice = begin(vec![prompt(1, 20), prompt(2, 9)], 1);
        running.run(StepPlan { slice, ..StepPlan::default() }).unwrap();
        running
    };
    let refused = |slice, rows, ends| under_way().refusal(StepPlan { slice, rows, ends, ..StepPlan::default() });
    let error = refused(begin(vec![decode(0, 9)], 1), vec![], vec![]);
    assert_eq!(error, "bad plan: a pass begins while another is under way");
    assert_eq!(refused(more(0), vec![], vec![]), format!("bad plan: 0 layers after 1 of {LAYERS}"));
    assert_eq!(refused(more(LAYERS), vec![], vec![]), format!("bad plan: {LAYERS} layers after 1 of {LAYERS}"));
    let error = refused(more(1), vec![decode(1, 20)], vec![]);
    assert_eq!(error, "bad plan: slot 1 has another row while its pass is under way");
    let long = Row { position: 9, blocks: vec![], ..prompt(0, STREAMS + 1) };
    assert_eq!(refused(more(1), vec![long], vec![]), "bad plan: 4 tokens beside a pass that is under way");
    assert_eq!(refused(more(1), vec![], vec![2]), "bad plan: 1 of 2 slots end in the middle of their pass");
    let error = Running::new().refusal(StepPlan { slice: more(1), ..StepPlan::default() });
    assert_eq!(error, "bad plan: a slice of no pass");
}
