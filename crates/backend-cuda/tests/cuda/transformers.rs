//! A model of real shapes against transformers, run on the same random checkpoint on the same machine.

use std::path::PathBuf;

use tandem_backend::DenseFormat;
use tandem_model::Formats;
use tandem_testkit::golden_file;

use crate::golden::{BF16, Distance, Gpu, bf16_error};

/// The folder that `tests/gpu/transformers_logits.py` wrote: a checkpoint, and `reference.safetensors` of golden logits.
const FOLDER: &str = "TANDEM_TEST_CHECKPOINT";

#[test]
fn a_checkpoint_of_real_shapes_is_matched_as_well_as_in_bfloat16() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        eprintln!("SKIPPED a checkpoint beside transformers: {FOLDER} names none (tools/gpu-check transformers)");
        return;
    };
    let prompts = golden_file(&folder.join("reference.safetensors")).unwrap();
    let bound = bf16_error(&prompts);
    // BF16 as the checkpoint has it is held to the bound. The default format rounds weights that the reference does not:
    // its distance is shown, and what it may be is a test of formats.
    for formats in [BF16, Formats { dense: DenseFormat::Q8, ..BF16 }] {
        let Some(mut gpu) = Gpu::open("transformers", &folder, formats, false) else { return };
        for (how, chunk) in [("whole", 512), ("one by one", 1)] {
            let what = format!("{}, {:?}, {how}", folder.display(), formats.dense);
            let distance = Distance::measure(&mut gpu, &prompts, chunk);
            distance.print(&what, bound);
            if formats == BF16 {
                distance.hold(&what, bound);
            }
        }
    }
}
