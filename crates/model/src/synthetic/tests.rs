use super::*;
use crate::layout::tensors;

fn read(store: &dyn WeightStore, id: TensorId, first: usize, rows: usize) -> Vec<u8> {
    let source = store.tensor(id).unwrap();
    let mut out = vec![0; rows * source.row_bytes()];
    source.read(first, &mut out).unwrap();
    out
}

fn bf16_values(bytes: &[u8]) -> Vec<f64> {
    let value = |pair: &[u8]| f64::from(f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16));
    bytes.chunks_exact(2).map(value).collect()
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[test]
fn every_tensor_reads_the_same_row_by_row_and_whole() {
    let store = Synthetic::new(SyntheticKind::Tiny);
    for spec in tensors(store.config()).filter(|spec| spec.id != TensorId::Embedding && spec.id != TensorId::LmHead) {
        let whole = read(&store, spec.id, 0, spec.rows());
        assert_eq!(whole.len() as u64, spec.bytes());
        let by_row: Vec<u8> = (0..spec.rows()).flat_map(|row| read(&store, spec.id, row, 1)).collect();
        assert!(whole == by_row, "{:?}", spec.id);
    }
}

#[test]
fn threads_read_the_same_bytes() {
    let store = Synthetic::new(SyntheticKind::Gpt20b);
    let id = TensorId::Layer(3, LayerTensor::GateUpBlocks);
    let alone = read(&store, id, 1000, 64);
    let halves = std::thread::scope(|scope| {
        let threads = [1000, 1032].map(|first| {
            scope.spawn({
                let store = &store;
                move || read(store, id, first, 32)
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(halves.concat(), alone);
}

/// FNV-1a of a stretch of one tensor of each pattern: what one machine generates, all do.
#[test]
fn bytes_are_the_same_on_every_machine() {
    let fnv = |bytes: Vec<u8>| {
        bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let store = Synthetic::new(SyntheticKind::Gpt20b);
    let hash = |tensor| fnv(read(&store, TensorId::Layer(23, tensor), 17, 100));
    assert_eq!(hash(LayerTensor::QWeight), 17223204391145535433);
    assert_eq!(hash(LayerTensor::DownBlocks), 2535454074961038031);
    assert_eq!(hash(LayerTensor::DownScales), 12174628631270194365);
}

#[test]
fn matrices_have_the_gain_they_are_meant_to_have() {
    let store = Synthetic::new(SyntheticKind::Gpt20b);
    let (mean, deviation) =
        mean_and_deviation(&bf16_values(&read(&store, TensorId::Layer(0, LayerTensor::QWeight), 0, 256)));
    let expected = 1.5 / 2880f64.sqrt();
    assert!(mean.abs() < 0.01 * expected && (deviation / expected - 1.0).abs() < 0.01, "{mean} {deviation}");
    let norm = mean_and_deviation(&bf16_values(&read(&store, TensorId::FinalNorm, 0, 2880)));
    assert!((norm.0 - 1.0).abs() < 0.02 && (norm.1 - 0.15).abs() < 0.01, "{norm:?}");
}

/// `Σ (code · scale)²` over a row is the squared gain on unit-variance inputs.
#[test]
fn expert_matrices_have_a_gain_near_one() {
    const CODES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let store = Synthetic::new(SyntheticKind::Gpt20b);
    let blocks = read(&store, TensorId::Layer(1, LayerTensor::GateUpBlocks), 0, 200);
    let scales = read(&store, TensorId::Layer(1, LayerTensor::GateUpScales), 0, 200);
    let squares = blocks.chunks(16).zip(&scales).map(|(group, &scale)| {
        let codes = group.iter().flat_map(|byte| [byte & 7, (byte >> 4) & 7]);
        codes.map(|code| (CODES[usize::from(code)] * 2f64.powi(i32::from(scale) - 127)).powi(2)).sum::<f64>()
    });
    let gain = (squares.sum::<f64>() / 200.0).sqrt();
    assert!((0.5..2.0).contains(&gain), "{gain}");
}

#[test]
fn tensors_and_their_words_are_unlike_each_other() {
    let store = Synthetic::new(SyntheticKind::Tiny);
    let blocks = |layer, tensor| read(&store, TensorId::Layer(layer, tensor), 0, 64);
    let one = blocks(0, LayerTensor::GateUpBlocks);
    for other in [blocks(1, LayerTensor::GateUpBlocks), blocks(0, LayerTensor::DownBlocks)] {
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < one.len() / 64, "{same} of {} bytes agree", one.len());
    }
}

#[test]
fn kinds_have_names() {
    assert_eq!("120b".parse(), Ok(SyntheticKind::Gpt120b));
    let error = "7b".parse::<SyntheticKind>().unwrap_err();
    assert_eq!(error.to_string(), "synthetic weights come as tiny, 20b or 120b, not \"7b\"");
}

#[test]
fn layers_beyond_the_last_are_refused() {
    let store = Synthetic::new(SyntheticKind::Tiny);
    assert!(store.tensor(TensorId::Layer(4, LayerTensor::Sinks)).is_err());
}
