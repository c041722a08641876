use std::path::Path;

use tandem_backend::{DenseFormat, KvFormat};
use tandem_model::memory::bytes_per_token;
use tandem_model::{Config, Formats, Shard};

use super::{Card, Kernel, Subject};

fn subject(config: &Config, dense: DenseFormat) -> Subject<'_> {
    divided(config, dense, 1)
}

fn divided(config: &Config, dense: DenseFormat, nodes: usize) -> Subject<'_> {
    Subject::new(config, Formats { dense, kv: KvFormat::Bf16 }, nodes).unwrap()
}

#[test]
fn a_first_token_reads_what_the_memory_plan_says() {
    for config in [Config::gpt_oss_20b(), Config::gpt_oss_120b()] {
        for dense in [DenseFormat::Q8, DenseFormat::Bf16, DenseFormat::Mxfp4] {
            let bytes = subject(&config, dense).decode_bytes(Subject::decode(1, 0.0, None));
            let planned = bytes_per_token(&config, dense, &Shard::undivided(&config)).total() as f64;
            assert!((bytes / planned - 1.0).abs() < 1e-6, "{bytes} and {planned}");
        }
    }
}

/// Independent choices of 4 of 128 touch 28.7 different experts with 8 tokens, as published.
#[test]
fn several_rows_read_as_many_experts_as_chance_has_it() {
    let config = Config::gpt_oss_120b();
    let subject = subject(&config, DenseFormat::Q8);
    let read = subject.experts_read(Subject::decode(8, 0.0, None));
    assert!((read - 28.7).abs() < 0.1, "{read}");
    assert_eq!(subject.experts_read(Subject::decode(8, 0.0, Some(19.0))), 19.0);
    assert!((subject.experts_read(Subject::decode(1, 0.0, None)) - 4.0).abs() < 1e-9);
}

/// Chains of kernels that only read, in a graph on an H200: microseconds of one launch.
#[test]
fn an_h200s_read_floors_are_those_measured() {
    let config = Config::gpt_oss_120b();
    let kernels = subject(&config, DenseFormat::Q8).step(Subject::decode(1, 0.0, None));
    let measured = [("norm, qkv", 5.4), ("o_proj, sum", 4.7), ("gate-up, SwiGLU", 9.4), ("down, sum", 5.3)];
    for (name, us) in measured {
        let kernel = kernels.iter().find(|kernel| kernel.name == name).unwrap();
        let got = kernel.seconds(&Card::h200()).unwrap() / kernel.launches * 1e6;
        assert!((got / us - 1.0).abs() < 0.12, "{name}: {got} µs, measured {us}");
    }
}

#[test]
fn nodes_share_bytes_and_pay_for_exchanges() {
    let config = Config::gpt_oss_120b();
    let kernels = |nodes| divided(&config, DenseFormat::Q8, nodes).step(Subject::decode(1, 1000.0, None));
    let sum = |kernels: &[Kernel], of: fn(&Kernel) -> f64| kernels.iter().map(of).sum::<f64>();
    let (one, two) = (kernels(1), kernels(2));
    let share = sum(&two, |kernel| kernel.bytes) / sum(&one, |kernel| kernel.bytes);
    assert!((0.5..0.51).contains(&share), "{share}");
    assert_eq!((sum(&one, |kernel| kernel.exchanges), sum(&two, |kernel| kernel.exchanges)), (0.0, 72.0));
}

#[test]
fn nothing_is_predicted_where_a_rate_is_not_known() {
    let config = Config::gpt_oss_20b();
    let subject = subject(&config, DenseFormat::Q8);
    let card = Card { products: None, ..Card::h200() };
    assert_eq!(subject.prefill_seconds(&card, 512, 512, 1), None);
    assert_eq!(Card::of_gpu("NVIDIA GH200 480GB").unwrap().name, "H200");
    assert_eq!(Card::of_gpu("NVIDIA GB10 (sm_121a), F16 activations").unwrap(), Card::gb10());
    assert!(Card::of_gpu("NVIDIA A100").is_none());
}

/// Lines of docs/performance.md: what a GB10 should do.
fn gb10_table() -> Vec<String> {
    let mut lines = Vec::new();
    for (nodes, card) in [("", Card::gb10()), (", two nodes", Card::two_gb10())] {
        for (name, config) in [("20b", Config::gpt_oss_20b()), ("120b", Config::gpt_oss_120b())] {
            for (format, dense) in [("8-bit", DenseFormat::Q8), ("BF16", DenseFormat::Bf16)] {
                let subject = divided(&config, dense, card.nodes);
                let decode =
                    |streams, depth| subject.decode_rate(&card, Subject::decode(streams, depth, None)).unwrap();
                let prefill = 8192.0 / subject.prefill_seconds(&card, 8192, 4096, 1).unwrap();
                let (one, eight, many) = (decode(1, 256.0), decode(8, 256.0), decode(32, 256.0));
                let deep = decode(1, 32_768.0);
                lines.push(format!(
                    "| {name}, {format}{nodes} | {one:.1} | {deep:.1} | {eight:.0} | {many:.0} | {prefill:.0} |"
                ));
            }
        }
    }
    lines
}

/// Figures of docs/on-spark.md, by number of the command.
fn spark_figures() -> Vec<(u32, String)> {
    let (small, large, card) = (Config::gpt_oss_20b(), Config::gpt_oss_120b(), Card::gb10());
    let decode = |config, dense, streams, prompt, output: u32| {
        let load = Subject::decode(streams, f64::from(prompt) + f64::from(output) / 2.0, None);
        let subject = subject(config, dense);
        let (rate, bytes) = (subject.decode_rate(&card, load).unwrap(), subject.decode_bytes(load) / 1e9);
        let launches: f64 = subject.step(load).iter().map(|kernel| kernel.launches).sum();
        format!("decode {rate:.1} tokens/s ({bytes:.2} GB and {launches:.0} launches a step)")
    };
    let prefill = 8192.0 / subject(&large, DenseFormat::Q8).prefill_seconds(&card, 8192, 8192, 1).unwrap();
    vec![
        (3, decode(&small, DenseFormat::Q8, 1, 128, 256)),
        (4, decode(&large, DenseFormat::Q8, 1, 128, 256)),
        (5, decode(&large, DenseFormat::Bf16, 1, 128, 256)),
        (7, format!("prefill {prefill:.0} tokens/s")),
        (8, decode(&large, DenseFormat::Q8, 1, 32_768, 64)),
        (9, decode(&large, DenseFormat::Q8, 8, 128, 128)),
    ]
}

#[test]
fn the_documentation_has_these_predictions() {
    let docs = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let (performance, spark, table) = (docs("performance.md"), docs("on-spark.md"), gb10_table());
    let missing: Vec<&String> = table.iter().filter(|line| !performance.contains(line.as_str())).collect();
    assert!(missing.is_empty(), "docs/performance.md lacks\n{missing:#?}");
    let said = |number: u32| spark.lines().find(|line| line.starts_with(&format!("| {number} |"))).unwrap_or_default();
    let missing: Vec<_> =
        spark_figures().into_iter().filter(|(number, said_of)| !said(*number).contains(said_of)).collect();
    assert!(missing.is_empty(), "docs/on-spark.md lacks\n{missing:#?}");
}
