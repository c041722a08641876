//! What number formats cost on the GPU: each against BF16 throughout, over the same prompts.

use std::path::Path;

use tandem_backend::conformance::{MXFP8_DIVERGENCE_MAX, divergence_max};
use tandem_backend::{DenseFormat, KvFormat};
use tandem_backend_cuda::{CudaOptions, PrefillActivations};
use tandem_model::Formats;
use tandem_testkit::{Conversation, Distance, demo_conversations, golden, write_demo};

use crate::golden::{BF16, FILES, Gpu, checkpoint};

/// By the kernels for many rows, and, token by token, by those that decode.
#[test]
fn every_format_costs_about_what_it_does_on_the_cpu() {
    for (name, spec) in FILES {
        let folder = checkpoint(&spec);
        let prompts: Vec<_> = golden(name).unwrap().into_iter().map(|prompt| prompt.tokens).collect();
        for (how, chunk) in [("in chunks", 32), ("one by one", 1)] {
            compare(&format!("golden {name}, {how}"), folder.path(), &prompts, chunk);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    write_demo(folder.path()).unwrap();
    // A fifth of them: of 200,000 logits a position the host takes longer to compare than the GPU to compute.
    let conversations: Vec<_> = demo_conversations().unwrap().iter().step_by(5).map(Conversation::tokens).collect();
    compare("demonstration model, in chunks", folder.path(), &conversations, 32);
}

fn compare(name: &str, folder: &Path, prompts: &[Vec<u32>], chunk: usize) {
    let open = |formats: Formats| Gpu::open(&format!("{name}, {formats:?}"), folder, formats, false);
    let Some(mut shipped) = open(BF16) else { return };
    let formats =
        DenseFormat::ALL.into_iter().flat_map(|dense| [KvFormat::Bf16, KvFormat::Fp8].map(|kv| Formats { dense, kv }));
    let others = formats.filter(|formats| (formats.dense, formats.kv) != (BF16.dense, BF16.kv));
    let others = others.filter_map(|formats| {
        let most = divergence_max(formats.dense, formats.kv);
        Some((described(formats), open(formats)?, most, Distance::default()))
    });
    // In steps of single rows there are no prompts to round.
    let mxfp8 = [DenseFormat::Bf16, DenseFormat::Q8].into_iter().filter(|_| chunk > 1).filter_map(|dense| {
        let formats = Formats { dense, ..BF16 };
        let prefill_activations = PrefillActivations::Mxfp8;
        let options = CudaOptions { prefill_activations, ..CudaOptions::default() };
        let gpu = Gpu::with(&format!("{name}, MXFP8 into experts"), folder, formats, options, 1)?;
        let most = divergence_max(dense, formats.kv) + MXFP8_DIVERGENCE_MAX;
        Some((format!("{}, MXFP8 into experts", described(formats)), gpu, most, Distance::default()))
    });
    let mut others: Vec<_> = others.chain(mxfp8).collect();
    for tokens in prompts {
        for start in (0..tokens.len()).step_by(chunk) {
            let some = &tokens[start..tokens.len().min(start + chunk)];
            let want = shipped.step(&[some], start);
            for (_, gpu, _, distance) in &mut others {
                let got = gpu.step(&[some], start);
                want.iter().zip(&got).for_each(|(want, got)| distance.add(want, got));
            }
        }
    }
    for (formats, _, most, distance) in others {
        let what = format!("{name}: {formats}, from BF16 throughout");
        distance.print(&what);
        let mean = distance.mean();
        assert!(mean <= most, "{what}: mean divergence {mean:.2e} > {most:.1e}");
    }
}

fn described(Formats { dense, kv }: Formats) -> String {
    format!("{dense:?}, KV {kv:?}")
}
