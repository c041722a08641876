use std::sync::Arc;
use std::time::Instant;

use tandem_backend::BackendError;
use tracing::{info, warn};

use crate::block_scale;
use crate::device::Device;
use crate::kernels::{BlockScaled, Kernels, Packing};

/// What activations of prompts are rounded to before they meet the experts' MXFP4 weights. Decoding has F16 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefillActivations {
    /// MXFP8 where the device has block-scaled products, F16 elsewhere.
    #[default]
    Auto,
    /// F16.
    F16,
    /// E4M3 in groups of 32 with an E8M0 scale each: by block-scaled products where the device has them and they prove to
    /// be right, by plain ones elsewhere.
    Mxfp8,
    /// The same by plain 8-bit products, whose sums are scaled in f32.
    Mxfp8Plain,
}

/// What that comes to on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertInputs {
    F16,
    /// MXFP8, by plain products.
    Plain,
    /// MXFP8, by block-scaled products.
    Scaled,
}

impl ExpertInputs {
    /// Decides, and says why.
    pub(crate) fn choose(
        asked: PrefillActivations,
        device: &Arc<Device>,
        kernels: &Kernels,
        packing: &Packing,
    ) -> Result<Self, BackendError> {
        let arch = device.arch();
        let (chosen, why) = match (asked, &kernels.block_scaled) {
            (PrefillActivations::F16, _) => (Self::F16, "as asked for".to_owned()),
            (PrefillActivations::Mxfp8Plain, _) => (Self::Plain, "as asked for".to_owned()),
            (PrefillActivations::Auto, None) => (Self::F16, format!("the fastest on {arch}")),
            (PrefillActivations::Mxfp8, None) => (Self::Plain, format!("{arch} has no block-scaled products")),
            (PrefillActivations::Auto | PrefillActivations::Mxfp8, Some(scaled)) => prove(device, packing, scaled)?,
        };
        info!("experts of prompts: {}, {why}", chosen.describe());
        Ok(chosen)
    }

    /// For the log.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::F16 => "F16 activations",
            Self::Plain => "MXFP8 activations by plain 8-bit products",
            Self::Scaled => "MXFP8 activations by block-scaled products",
        }
    }
}

/// Block-scaled products where they are right here, and why.
fn prove(
    device: &Arc<Device>,
    packing: &Packing,
    scaled: &BlockScaled,
) -> Result<(ExpertInputs, String), BackendError> {
    let started = Instant::now();
    let Some(fault) = block_scale::prove(device, packing, scaled.probe)? else {
        let took = started.elapsed().as_secs_f64() * 1e3;
        return Ok((ExpertInputs::Scaled, format!("which a probe found to be right ({took:.1} ms)")));
    };
    warn!("block-scaled products are not used: {fault}; please report this, with the GPU and its driver");
    Ok((ExpertInputs::Plain, "as the block-scaled ones failed their probe".to_owned()))
}
