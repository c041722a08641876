use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tandem_testkit::CheckpointSpec;

use super::*;

fn read_hub(config: &Value) -> Result<Config, ConfigError> {
    read_with(config, None)
}

fn read_with(config: &Value, generation: Option<&Value>) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    if let Some(generation) = generation {
        fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    }
    Config::read_hub(&write(dir.path(), config))
}

fn read_original(config: &Value) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    Config::read_original(&write(dir.path(), config))
}

fn write(dir: &Path, config: &Value) -> std::path::PathBuf {
    let path = dir.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    path
}

/// The specs of the hub's gpt-oss-20b, so that the whole way from file to config is under test.
fn hub_20b() -> Value {
    let spec = CheckpointSpec {
        layers: 24,
        experts: 32,
        hidden: 2880,
        intermediate: 2880,
        heads: 64,
        kv_heads: 8,
        vocab: 201_088,
        window: 128,
        original_context: 4096,
        ..CheckpointSpec::A
    };
    let mut config = spec.hub_config();
    config["eos_token_id"] = json!(200_002);
    config
}

/// Removes or replaces one key, dots leading inwards.
fn with(key: &str, value: Option<Value>) -> Value {
    let mut config = hub_20b();
    let (parents, last) = key.rsplit_once('.').map_or(("", key), |(parents, last)| (parents, last));
    let mut at = &mut config;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        at = &mut at[parent];
    }
    match value {
        Some(value) => at[last] = value,
        None => drop(at.as_object_mut().unwrap().remove(last)),
    }
    config
}

/// The complaint after its file name.
fn complaint(result: Result<Config, ConfigError>) -> String {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text.split_once("config.json: ").unwrap().1.to_owned()
}

#[test]
fn the_hub_config_of_20b_is_the_built_in_one() {
    let generation = json!({ "eos_token_id": [200_002, 199_999, 200_012] });
    assert_eq!(read_with(&hub_20b(), Some(&generation)).unwrap(), Config::gpt_oss_20b());
}

#[test]
fn eos_comes_from_generation_config_if_that_has_it() {
    assert_eq!(read_hub(&hub_20b()).unwrap().eos, [200_002]);
    assert_eq!(read_with(&hub_20b(), Some(&json!({ "eos_token_id": [7, 8] }))).unwrap().eos, [7, 8]);
    assert_eq!(read_with(&hub_20b(), Some(&json!({ "do_sample": true }))).unwrap().eos, [200_002]);
}

#[test]
fn both_spellings_of_the_rope_keys_mean_the_same() {
    let old = hub_20b();
    let mut new = old.clone();
    let mut scaling = new.as_object_mut().unwrap().remove("rope_scaling").unwrap();
    scaling["rope_theta"] = new.as_object_mut().unwrap().remove("rope_theta").unwrap();
    new["rope_parameters"] = scaling;
    assert_eq!(read_hub(&new).unwrap(), read_hub(&old).unwrap());
    let mut both = old.clone();
    both["rope_parameters"] = new["rope_parameters"].clone();
    assert_eq!(read_hub(&both).unwrap(), read_hub(&old).unwrap());
    both["rope_parameters"]["factor"] = json!(8.0);
    assert!(complaint(read_hub(&both)).starts_with("rope_scaling: expected the same as rope_parameters"));
}

#[test]
fn the_original_config_means_the_same_as_the_hub_config() {
    let spec = CheckpointSpec::A;
    let (hub, original) = (read_hub(&spec.hub_config()).unwrap(), read_original(&spec.original_config()).unwrap());
    assert_eq!(Config { eos: vec![], pad: None, ..hub }, original);
}

#[test]
fn optional_keys_have_the_defaults_of_transformers() {
    assert_eq!(read_hub(&with("swiglu_alpha", Some(json!(1.5)))).unwrap().swiglu_alpha, 1.5);
    assert_eq!(read_hub(&with("layer_types", None)).unwrap(), read_hub(&hub_20b()).unwrap());
    assert!(read_hub(&with("rope_scaling.truncate", None)).unwrap().rope.truncate);
}

#[test]
fn every_inconsistency_says_key_expected_and_found() {
    let cases = [
        ("model_type", Some(json!("llama")), r#"model_type: expected "gpt_oss", found "llama""#),
        ("model_type", None, r#"model_type: expected "gpt_oss", found nothing"#),
        (
            "architectures",
            Some(json!(["LlamaForCausalLM"])),
            r#"architectures: expected ["GptOssForCausalLM"], found ["LlamaForCausalLM"]"#,
        ),
        ("tie_word_embeddings", Some(json!(true)), "tie_word_embeddings: expected false, found true"),
        ("attention_bias", Some(json!(false)), "attention_bias: expected true, found false"),
        (
            "quantization_config",
            None,
            r#"quantization_config: expected an object with quant_method "mxfp4", found nothing"#,
        ),
        (
            "quantization_config.quant_method",
            Some(json!("awq")),
            r#"quantization_config.quant_method: expected "mxfp4", found "awq""#,
        ),
        ("num_hidden_layers", None, "num_hidden_layers: expected a whole number, found nothing"),
        (
            "num_hidden_layers",
            Some(json!(23)),
            "layer_types: expected one for each of num_hidden_layers, which is 23, found 24 of them",
        ),
        (
            "num_hidden_layers",
            Some(json!(u64::MAX)),
            "num_hidden_layers: expected 1 to 1024, found 18446744073709551615",
        ),
        (
            "layer_types",
            Some(json!(vec!["chunked_attention"; 24])),
            r#"layer_types[0]: expected "sliding_attention" or "full_attention", found "chunked_attention""#,
        ),
        ("hidden_size", Some(json!(2881)), "hidden_size: expected a multiple of 32, the MXFP4 group, found 2881"),
        ("hidden_size", Some(json!(0)), "hidden_size: expected 1 to 65536, found 0"),
        ("hidden_size", Some(json!("big")), r#"hidden_size: expected a whole number, found "big""#),
        ("intermediate_size", Some(json!(1u64 << 40)), "intermediate_size: expected 1 to 65536, found 1099511627776"),
        (
            "num_key_value_heads",
            Some(json!(7)),
            "num_key_value_heads: expected a divisor of num_attention_heads, which is 64, found 7",
        ),
        ("head_dim", Some(json!(45)), "head_dim: expected an even number, for rotary pairs, found 45"),
        (
            "num_experts_per_tok",
            Some(json!(5)),
            "experts_per_token: expected the same as num_experts_per_tok, which is 5, found 4",
        ),
        (
            "num_local_experts",
            Some(json!(3)),
            "num_experts_per_tok: expected at most num_local_experts, which is 3, found 4",
        ),
        ("vocab_size", Some(json!(-1)), "vocab_size: expected a whole number, found -1"),
        ("sliding_window", Some(Value::Null), "sliding_window: expected a whole number, found null"),
        ("rms_norm_eps", Some(json!(0)), "rms_norm_eps: expected a number between 0 and 1, found 0"),
        ("swiglu_limit", Some(json!(-7.0)), "swiglu_limit: expected a positive number, found -7"),
        ("rope_scaling", None, "rope_scaling: expected an object, here or as rope_parameters, found nothing"),
        ("rope_scaling.rope_type", Some(json!("linear")), r#"rope_scaling.rope_type: expected "yarn", found "linear""#),
        ("rope_scaling.factor", None, "rope_scaling.factor: expected a number, found nothing"),
        ("rope_scaling.factor", Some(json!(0.5)), "rope_scaling.factor: expected a number from 1 to 1e12, found 0.5"),
        (
            "rope_scaling.beta_fast",
            Some(json!(0.5)),
            "rope_scaling.beta_fast: expected a number above beta_slow, which is 1, found 0.5",
        ),
        (
            "rope_scaling.mscale",
            Some(json!(1.0)),
            "rope_scaling.mscale: expected nothing: gpt-oss has no such key, found 1.0",
        ),
        ("rope_theta", None, "rope_theta: expected a number, found nothing"),
        (
            "initial_context_length",
            Some(json!(2048)),
            "initial_context_length: expected the same as original_max_position_embeddings, which is 4096, found 2048",
        ),
        (
            "max_position_embeddings",
            Some(json!(1u64 << 40)),
            "max_position_embeddings: expected 1 to 16777216, found 1099511627776",
        ),
        (
            "eos_token_id",
            Some(json!([200_002, 201_088])),
            "eos_token_id: expected token ids below vocab_size, which is 201088, found [200002,201088]",
        ),
        (
            "pad_token_id",
            Some(json!(-1)),
            "pad_token_id: expected token ids below vocab_size, which is 201088, found -1",
        ),
    ];
    for (key, value, expected) in cases {
        assert_eq!(complaint(read_hub(&with(key, value))), expected);
    }
}

#[test]
fn original_configs_are_checked_alike() {
    let mut config = CheckpointSpec::A.original_config();
    config["head_dim"] = json!(3);
    assert_eq!(complaint(read_original(&config)), "head_dim: expected an even number, for rotary pairs, found 3");
    config.as_object_mut().unwrap().remove("num_experts");
    assert_eq!(complaint(read_original(&config)), "num_experts: expected a whole number, found nothing");
}

#[test]
fn what_is_not_a_config_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let said = |path: &Path| complaint(Config::read_hub(path));
    assert!(said(&path).starts_with("reading the config: No such file"));
    fs::write(&path, "{\"model_type\": ").unwrap();
    assert!(said(&path).starts_with("parsing the config: EOF while parsing"));
    fs::write(&path, "[1]").unwrap();
    assert_eq!(said(&path), "(whole file): expected an object, found [1]");
    fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    assert_eq!(said(&path), "(whole file): expected at most 1048576 bytes, found more");
}

/// Values computed in f64 from the formula of YaRN, with bounds that are not rounded.
#[test]
fn inverse_frequencies_are_those_of_gpt_oss() {
    let rope = Config::gpt_oss_20b().rope();
    let expected = [
        (0, 1.0),
        (1, 0.6890443),
        (2, 0.47478206),
        (8, 0.050813275),
        (9, 0.031705696),
        (10, 0.019335001),
        (11, 0.011592049),
        (12, 0.0067949595),
        (13, 0.0038603593),
        (14, 0.0020937924),
        (15, 0.0010526021),
        (16, 4.5648392e-4),
        (17, 1.293187e-4),
        (18, 3.8308812e-5),
        (31, 3.0235114e-7),
    ];
    assert_eq!(rope.inv_freq.len(), 32);
    for (pair, value) in expected {
        let relative = (f64::from(rope.inv_freq[pair]) - value).abs() / value;
        assert!(relative < 2e-7, "pair {pair}: {} is not {value}", rope.inv_freq[pair]);
    }
    assert!((f64::from(rope.scale) - 1.346_573_590_279_972_7).abs() < 1e-7);
}

#[test]
fn truncated_bounds_give_other_frequencies() {
    let rope = RopeConfig { truncate: true, ..RopeConfig::gpt_oss() }.resolve(64);
    for (pair, value) in [(16, 5.809_475e-4), (17, 2.279_478e-4)] {
        assert!((f64::from(rope.inv_freq[pair]) / value - 1.0).abs() < 2e-7);
    }
}
