use anyhow::{Context, Result, bail};
use tandem_backend::Precision;
use tandem_backend::cpu::{CpuOptions, Isa};
use tandem_backend_cuda::{self as cuda, CudaOptions, Device as Gpu};
use tandem_model::memory::available_memory;
use tracing::info;

use crate::demo;
use crate::settings::{Device, Kv, ModelArgs, PrefillActivations};

/// Unless told otherwise, this share of the available memory is left to everything else, but not more than the bound.
const SPARE_SHARE: u64 = 10;
const SPARE_BYTES_MAX: u64 = 8 << 30;

/// Where the model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the CPU.
    Cpu,
    /// On an NVIDIA GPU.
    Cuda,
}

impl Place {
    /// What was asked for, or, with `--device auto`, a GPU where there is one that will do.
    pub fn choose(args: &ModelArgs) -> Result<Self> {
        match (args.device, unfit_for_cuda(args)) {
            (Device::Cuda, Some(why)) => bail!("--device cuda: {why}"),
            (Device::Cuda | Device::Auto, None) => Ok(Self::Cuda),
            (Device::Cpu, _) => Self::cpu(args, "--device cpu was asked for"),
            (Device::Auto, Some(why)) => Self::cpu(args, &why),
        }
    }

    /// The CPU, unless a setting only means something on a GPU.
    fn cpu(args: &ModelArgs, why: &str) -> Result<Self> {
        if args.prefill_activations != PrefillActivations::Auto {
            bail!("--prefill-activations is for GPUs, and the CPU would compute: {why}; leave it out");
        }
        Ok(Self::Cpu)
    }

    /// Prompt tokens of a step: what was asked for, or what the device needs to be at its best without making others wait
    /// for long. A step reads nearly all experts whatever its size, which a GPU wants to share among many tokens.
    pub fn prefill_chunk(self, args: &ModelArgs) -> u32 {
        args.prefill_chunk.unwrap_or(match self {
            Self::Cpu => 512,
            Self::Cuda => 4096,
        })
    }

    /// Steps under way: the host's part of a step is worth hiding where the device computes by itself.
    pub(super) fn pipeline_depth(self, args: &ModelArgs) -> u32 {
        let depth = args.pipeline_depth.unwrap_or(match self {
            Self::Cpu => 1,
            Self::Cuda => 2,
        });
        depth.into()
    }

    /// Tells what was chosen and why, where the choice was ours.
    pub(super) fn announce(self, args: &ModelArgs) {
        match (args.device, self) {
            (Device::Auto, Self::Cuda) => info!("--device auto takes the GPU"),
            (Device::Auto, Self::Cpu) => {
                info!("--device auto takes the CPU: {}", unfit_for_cuda(args).unwrap_or_default());
            }
            (Device::Cpu | Device::Cuda, _) => {}
        }
    }
}

/// Why the GPU cannot do what was asked for.
fn unfit_for_cuda(args: &ModelArgs) -> Option<String> {
    if args.exact {
        return Some("exact mode is computed on the CPU".into());
    }
    if args.kv == Some(Kv::F32) {
        return Some("keys and values in f32 are for the CPU".into());
    }
    Gpu::open(args.gpu).err().map(|error| error.to_string())
}

/// Which GPU of all machines it is; empty for a CPU. The start of the machine tells apart what has the same number on two.
pub fn device_id(args: &ModelArgs) -> Result<String> {
    if Place::choose(args)? == Place::Cpu {
        return Ok(String::new());
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading which start this is")?;
    Ok(format!("{} of {}", Gpu::open(args.gpu)?.uuid()?, boot.trim()))
}

/// Memory that may be used in all.
pub fn budget(args: &ModelArgs) -> Result<u64> {
    if let Some(bytes) = args.memory {
        return Ok(bytes);
    }
    let available = match Place::choose(args)? {
        Place::Cpu => host_memory()?,
        Place::Cuda => {
            let gpu = Gpu::open(args.gpu)?;
            let (free, _) = gpu.memory()?;
            // A GB10 shares the machine's memory: what the page cache holds counts as available, what is in use does not.
            if gpu.integrated() { free.max(host_memory()?) } else { free }
        }
    };
    Ok(available - (available / SPARE_SHARE).min(SPARE_BYTES_MAX))
}

fn host_memory() -> Result<u64> {
    available_memory().context("reading how much memory is available")
}

/// CPU threads of the model.
pub fn threads(args: &ModelArgs) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(all, usize::from)
}

/// Options of the CPU backend.
pub fn cpu_options(args: &ModelArgs, precision: Precision) -> Result<CpuOptions> {
    let isa = args.isa.as_deref().map(str::parse::<Isa>).transpose()?;
    Ok(CpuOptions { precision, threads: Some(threads(args)), isa })
}

/// Options of the GPU backend.
pub fn cuda_options(args: &ModelArgs) -> CudaOptions {
    let prefill_activations = match args.prefill_activations {
        PrefillActivations::Auto => cuda::PrefillActivations::Auto,
        PrefillActivations::F16 => cuda::PrefillActivations::F16,
        PrefillActivations::Mxfp8 => cuda::PrefillActivations::Mxfp8,
        PrefillActivations::Mxfp8Plain => cuda::PrefillActivations::Mxfp8Plain,
    };
    CudaOptions { eager: args.eager, prefill_activations, ..gpu_options(args.gpu) }
}

/// How a GPU is opened of which nothing else was said.
pub fn gpu_options(ordinal: usize) -> CudaOptions {
    let cache = Some(demo::cache_folder().join("kernels"));
    CudaOptions { ordinal, cache, ..CudaOptions::default() }
}
