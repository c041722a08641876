//! Checkpoints of every layout open and give the bytes that were written; broken ones are refused in one precise line.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tandem_backend::RowSource;
use tandem_model::checkpoint::Layout;
use tandem_model::layout::{LayerTensor, TensorId, tensors};
use tandem_model::{Checkpoint, Counted, WeightStore, qkv_bias, qkv_weight};
use tandem_testkit::{CheckpointSpec, Tensor, safetensors_bytes, write_hub, write_hub_sharded, write_original};
use tempfile::TempDir;

const SPEC: CheckpointSpec = CheckpointSpec::SMALL;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn hub() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_hub(dir.path(), &SPEC).unwrap();
    dir
}

fn sharded() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_hub_sharded(dir.path(), &SPEC, 3).unwrap();
    dir
}

/// A hub checkpoint in one file whose tensors went through `change`.
fn changed(change: impl FnOnce(&mut Vec<Tensor>)) -> TempDir {
    let dir = hub();
    let mut all = tandem_testkit::tensors(&SPEC);
    change(&mut all);
    fs::write(dir.path().join(SINGLE), safetensors_bytes(&all)).unwrap();
    dir
}

/// A sharded checkpoint whose index went through `change`.
fn reindexed(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = sharded();
    let path = dir.path().join(INDEX);
    let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut index);
    fs::write(&path, index.to_string()).unwrap();
    dir
}

/// A hub checkpoint whose one file has this header and `data` zero bytes.
fn headed(header: &str, data: usize) -> TempDir {
    let dir = hub();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs::write(dir.path().join(SINGLE), bytes).unwrap();
    dir
}

fn find<'a>(all: &'a mut [Tensor], name: &str) -> &'a mut Tensor {
    all.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

/// Why the folder is refused, without its path.
fn refusal(dir: &Path) -> String {
    let text = Checkpoint::open(dir).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text.replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR")
}

fn read_all(source: &dyn RowSource) -> Vec<u8> {
    let mut out = vec![0; source.rows() * source.row_bytes()];
    source.read(0, &mut out).unwrap();
    out
}

/// Checks every tensor against what the generator wrote under its hub name.
fn assert_same_bytes(checkpoint: &Checkpoint) {
    let written: HashMap<String, Tensor> =
        tandem_testkit::tensors(&SPEC).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let specs: Vec<_> = tensors(checkpoint.config()).collect();
    assert_eq!(specs.len(), written.len());
    for spec in specs {
        let expected = &written[&spec.id.hub_name()];
        assert_eq!(spec.shape, expected.shape);
        assert!(read_all(&*checkpoint.tensor(spec.id).unwrap()) == expected.bytes, "{:?}", spec.id);
    }
}

#[test]
fn a_single_file_opens() {
    let dir = hub();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.layout(), Layout::Hub);
    assert_same_bytes(&checkpoint);
}

#[test]
fn shards_open() {
    let dir = sharded();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.files().count(), 3);
    assert_same_bytes(&checkpoint);
}

#[test]
fn the_original_layout_opens_from_its_parent_and_by_itself() {
    let parent = tempfile::tempdir().unwrap();
    let original = parent.path().join("original");
    fs::create_dir(&original).unwrap();
    write_original(&original, &SPEC).unwrap();
    for dir in [parent.path(), &original] {
        let checkpoint = Checkpoint::open(dir).unwrap();
        assert_eq!(checkpoint.layout(), Layout::Original);
        assert_same_bytes(&checkpoint);
    }
    // A repository of which only `original` was downloaded, but with the config at its root.
    fs::write(parent.path().join("config.json"), SPEC.hub_config().to_string()).unwrap();
    assert_same_bytes(&Checkpoint::open(parent.path()).unwrap());
}

#[test]
fn original_shards_open_without_an_index() {
    let dir = tempfile::tempdir().unwrap();
    write_original(dir.path(), &SPEC).unwrap();
    let single = dir.path().join(SINGLE);
    let bytes = fs::read(&single).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<Tensor> = file
        .iter()
        .map(|(name, view)| Tensor {
            name: name.to_owned(),
            dtype: if view.dtype() == safetensors::Dtype::BF16 { "BF16" } else { "U8" },
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        })
        .collect();
    let rest = all.split_off(10);
    fs::write(dir.path().join("model--00001-of-00002.safetensors"), safetensors_bytes(&all)).unwrap();
    fs::write(dir.path().join("model--00002-of-00002.safetensors"), safetensors_bytes(&rest)).unwrap();
    fs::remove_file(&single).unwrap();
    assert_same_bytes(&Checkpoint::open(dir.path()).unwrap());
    fs::remove_file(dir.path().join("model--00002-of-00002.safetensors")).unwrap();
    assert_eq!(refusal(dir.path()), "DIR: expected 2 shards numbered from 1 to 2, found 1 with numbers [1]");
}

#[test]
fn q_k_and_v_read_as_one_matrix() {
    let dir = hub();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let part = |tensor| read_all(&*checkpoint.tensor(TensorId::Layer(1, tensor)).unwrap());
    let weight = qkv_weight(&checkpoint, 1).unwrap();
    assert_eq!(weight.rows(), checkpoint.config().qkv_width());
    let parts = [LayerTensor::QWeight, LayerTensor::KWeight, LayerTensor::VWeight].map(part);
    assert!(read_all(&weight) == parts.concat());
    let parts = [LayerTensor::QBias, LayerTensor::KBias, LayerTensor::VBias].map(part);
    assert!(read_all(&qkv_bias(&checkpoint, 1).unwrap()) == parts.concat());
}

#[test]
fn every_byte_read_is_counted() {
    let dir = hub();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let bytes = AtomicU64::new(0);
    let counted = Counted::new(&checkpoint, &bytes);
    tensors(counted.config()).for_each(|spec| drop(read_all(&*counted.tensor(spec.id).unwrap())));
    let written: usize = tandem_testkit::tensors(&SPEC).iter().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!((bytes.load(Ordering::Relaxed), counted.total_bytes()), (written as u64, written as u64));
}

#[test]
fn a_folder_without_a_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(refusal(dir.path()), "DIR: expected a checkpoint: config.json or original/config.json, found neither");
    assert_eq!(refusal(&dir.path().join("x")), "DIR: expected the folder of a checkpoint, found nothing there");
    fs::write(dir.path().join("config.json"), SPEC.hub_config().to_string()).unwrap();
    let expected = "DIR: expected model.safetensors.index.json or model.safetensors, found neither";
    assert_eq!(refusal(dir.path()), expected);
    assert_eq!(refusal(&dir.path().join("config.json")), "DIR: expected the folder of a checkpoint, found a file");
}

#[test]
fn a_wrong_architecture_is_refused() {
    let dir = hub();
    let mut config = SPEC.hub_config();
    config["model_type"] = json!("qwen3_moe");
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(refusal(dir.path()), r#"config.json: model_type: expected "gpt_oss", found "qwen3_moe""#);
}

#[test]
fn tensors_that_do_not_fit_the_config_are_refused() {
    let sinks = "model.layers.1.self_attn.sinks";
    let dir = changed(|all| all.retain(|tensor| tensor.name != sinks));
    assert_eq!(refusal(dir.path()), format!("model.safetensors: tensor {sinks}: expected BF16 [4], found nothing"));

    let extra =
        Tensor { name: "model.layers.2.self_attn.sinks".into(), dtype: "F16", shape: vec![4], bytes: vec![0; 8] };
    let dir = changed(|all| all.push(extra));
    let expected = "model.safetensors: tensor model.layers.2.self_attn.sinks: \
                    expected no tensor of this name in a model of this config, found F16 [4]";
    assert_eq!(refusal(dir.path()), expected);

    let dir = changed(|all| find(all, "lm_head.weight").shape = vec![64, 96]);
    let expected = "model.safetensors: tensor lm_head.weight: expected BF16 [96, 64], found BF16 [64, 96]";
    assert_eq!(refusal(dir.path()), expected);

    let dir = changed(|all| find(all, "model.norm.weight").dtype = "F16");
    let expected = "model.safetensors: tensor model.norm.weight: expected BF16 [64], found F16 [64]";
    assert_eq!(refusal(dir.path()), expected);
}

#[test]
fn truncated_and_overlong_files_are_refused() {
    let dir = hub();
    let path = dir.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
    let data = whole.len() - header;
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    let expected = format!(
        "model.safetensors: tensor lm_head.weight: expected data up to offset {data}, found a file that ends at {} (truncated)",
        data - 10
    );
    assert_eq!(refusal(dir.path()), expected);
    fs::write(&path, &whole[..header - 1]).unwrap();
    let expected = format!(
        "model.safetensors: expected a header of at most {} bytes, found one of {} bytes",
        header - 9,
        header - 8
    );
    assert_eq!(refusal(dir.path()), expected);
    fs::write(&path, &whole[..5]).unwrap();
    assert_eq!(refusal(dir.path()), "model.safetensors: expected the 8 bytes of a header's length, found 5 bytes");
    fs::write(&path, [&whole[..], &[0; 3]].concat()).unwrap();
    let expected =
        format!("model.safetensors: expected {data} bytes of tensors after the header, found {} bytes", data + 3);
    assert_eq!(refusal(dir.path()), expected);
}

#[test]
fn corrupt_headers_are_refused() {
    let start = "model.safetensors: expected a header of JSON with dtype, shape and data_offsets per tensor, found ";
    let of_json = |header: &str| refusal(headed(header, 8).path()).strip_prefix(start).unwrap().to_owned();
    assert!(of_json("{\"a\": ").starts_with("EOF while parsing a value"));
    assert!(of_json("[]").starts_with("invalid type: sequence, expected an object"));
    assert!(of_json("\u{0}\u{1}").starts_with("expected value"));
    assert!(of_json(r#"{"a": {"dtype": "U8", "shape": [8]}}"#).starts_with("missing field `data_offsets`"));
    assert!(of_json(r#"{"a": {"dtype": "U8", "shape": [-8], "data_offsets": [0, 8]}}"#).starts_with("invalid value"));
    let twice = r#"{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "a": {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]}}"#;
    assert!(of_json(twice).starts_with("a twice"));

    let dir = hub();
    let path = dir.path().join(SINGLE);
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &(1u64 << 29).to_le_bytes(), 0).unwrap();
    let expected = "model.safetensors: expected a header of at most 8388608 bytes, found one of 536870912 bytes";
    assert_eq!(refusal(dir.path()), expected);
}

#[test]
fn offsets_that_overlap_gape_or_lie_are_refused() {
    let two = |first: &str, second: &str| {
        let header = format!(r#"{{"a": {{"dtype": "U8", {first}}}, "b": {{"dtype": "BF16", {second}}}}}"#);
        refusal(headed(&header, 16).path()).strip_prefix("model.safetensors: tensor ").unwrap().to_owned()
    };
    let first = r#""shape": [8], "data_offsets": [0, 8]"#;
    assert_eq!(
        two(first, r#""shape": [4], "data_offsets": [4, 12]"#),
        "b: expected data from offset 8, where the tensor before ends, found 4 (an overlap)"
    );
    assert_eq!(
        two(first, r#""shape": [2], "data_offsets": [12, 16]"#),
        "b: expected data from offset 8, where the tensor before ends, found 12 (a gap)"
    );
    assert_eq!(
        two(first, r#""shape": [4], "data_offsets": [16, 8]"#),
        "b: expected data_offsets in ascending order, found [16, 8]"
    );
    assert_eq!(
        two(first, r#""shape": [5], "data_offsets": [8, 16]"#),
        "b: expected 10 bytes for BF16 [5], found 8, from 8 to 16"
    );
    assert_eq!(
        two(first, r#""shape": [5], "data_offsets": [8, 18]"#),
        "b: expected data up to offset 18, found a file that ends at 16 (truncated)"
    );
    let huge = u64::MAX;
    let product = two(first, &format!(r#""shape": [{huge}, {huge}, {huge}, 0], "data_offsets": [8, 16]"#));
    assert!(product.starts_with("b: expected 0 bytes for BF16 ["), "{product}");
}

#[test]
fn an_index_that_disagrees_with_its_files_is_refused() {
    let (norm, last) = ("model.norm.weight", "model-00002-of-00002.safetensors");
    let dir = reindexed(|index| index["weight_map"][norm] = json!("model-00000-of-00002.safetensors"));
    let expected =
        format!("{INDEX}: tensor {norm}: expected it in model-00000-of-00002.safetensors, found it in {last}");
    assert_eq!(refusal(dir.path()), expected);

    let dir = reindexed(|index| index["weight_map"]["ghost"] = json!(last));
    assert_eq!(refusal(dir.path()), format!("{INDEX}: tensor ghost: expected it in {last}, found it in no file"));

    let dir = reindexed(|index| drop(index["weight_map"].as_object_mut().unwrap().remove(norm)));
    let expected =
        format!("{INDEX}: tensor {norm}: expected no tensor that the index does not list, found it in {last}");
    assert_eq!(refusal(dir.path()), expected);

    let written: usize = tandem_testkit::tensors(&SPEC).iter().map(|tensor| tensor.bytes.len()).sum();
    let dir = reindexed(|index| index["metadata"]["total_size"] = json!(12));
    assert_eq!(
        refusal(dir.path()),
        format!("{INDEX}: expected a total_size of {written} bytes, as its files have, found 12")
    );

    let dir = reindexed(|index| index["weight_map"][norm] = json!("../model.safetensors"));
    let expected = format!(
        "{INDEX}: tensor {norm}: expected the name of a .safetensors file beside the index, found ../model.safetensors"
    );
    assert_eq!(refusal(dir.path()), expected);

    let dir = reindexed(|index| index["weight_map"] = json!({}));
    assert_eq!(refusal(dir.path()), format!("{INDEX}: expected a weight_map with tensors, found an empty one"));

    let dir = reindexed(|index| *index = json!([]));
    assert!(
        refusal(dir.path())
            .starts_with(&format!("{INDEX}: expected an index of JSON with weight_map and metadata, found"))
    );
}

#[test]
fn missing_and_doubled_shards_are_refused() {
    let dir = sharded();
    fs::remove_file(dir.path().join("model-00001-of-00002.safetensors")).unwrap();
    let expected = format!("model-00001-of-00002.safetensors: expected a shard that {INDEX} lists, found no such file");
    assert_eq!(refusal(dir.path()), expected);

    let dir = sharded();
    let shard = |number| dir.path().join(format!("model-0000{number}-of-00002.safetensors"));
    fs::copy(shard(0), shard(1)).unwrap();
    let expected = "model-00001-of-00002.safetensors: tensor model.embed_tokens.weight: \
                    expected every tensor in one file, found it also in model-00000-of-00002.safetensors";
    assert_eq!(refusal(dir.path()), expected);
}

#[test]
fn a_tensor_missing_from_shards_and_index_is_named() {
    let dir = reindexed(|index| {
        index["weight_map"].as_object_mut().unwrap().remove("lm_head.weight");
        index["metadata"] = Value::Null;
    });
    let last = dir.path().join("model-00002-of-00002.safetensors");
    let all = tandem_testkit::tensors(&SPEC);
    let part = all.chunks(all.len().div_ceil(3)).next_back().unwrap();
    fs::write(last, safetensors_bytes(&part[..part.len() - 1])).unwrap();
    assert_eq!(refusal(dir.path()), format!("{INDEX}: tensor lm_head.weight: expected BF16 [96, 64], found nothing"));
}

#[test]
fn a_scale_that_is_no_number_is_refused_when_read() {
    let name = "model.layers.1.mlp.experts.down_proj_scales";
    let dir = changed(|all| find(all, name).bytes[2 * (3 * 64 + 7)] = 255);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let source = checkpoint.tensor(TensorId::Layer(1, LayerTensor::DownScales)).unwrap();
    let mut row = vec![0; source.row_bytes()];
    source.read(3 * 64 + 6, &mut row).unwrap();
    let error = source.read(3 * 64 + 7, &mut row).unwrap_err().to_string();
    let expected = format!("tensor {name}: expected scales of 0 to 254, found 255 (NaN) in row 199, group 0");
    assert!(error.ends_with(&expected), "{error}");
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error_not_a_crash() {
    let dir = hub();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    fs::File::options().write(true).open(dir.path().join(SINGLE)).unwrap().set_len(4096).unwrap();
    let source = checkpoint.tensor(TensorId::LmHead).unwrap();
    let error = source.read(0, &mut vec![0; source.row_bytes()]).unwrap_err().to_string();
    assert!(error.contains("tensor lm_head.weight: reading: failed to fill whole buffer"), "{error}");
}
