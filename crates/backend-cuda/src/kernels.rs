use cudarc::driver::result;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule};
use std::ffi::{CString, c_void};
use tandem_backend::BackendError;

use crate::compile::{CompileError, Compiler, Cubin};
use crate::device::{Device, failed};
use crate::late::KernelProgress;

/// A file of kernels, or a header.
pub struct Source {
    /// File name.
    pub name: &'static str,
    /// What it says.
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        [$(Source { name: $name, text: include_str!(concat!("../../../kernels/", $name)) }),*]
    };
}

/// All kernel files, first the one with what packs weights: that is wanted before all others.
pub const SOURCES: &[Source] = &sources![
    "pack.cu",
    "probe.cu",
    "rows.cu",
    "linear_decode.cu",
    "route_decode.cu",
    "mxfp4_moe_decode.cu",
    "attention_decode.cu",
    "attention_any.cu",
    "draw.cu",
    "draw_part.cu",
    "exchange.cu",
    "moe_group.cu",
    "mxfp4_moe_prefill.cu",
    "mxfp4_moe_prefill_fp8.cu",
    "dense_prefill.cu",
    "attention_prefill.cu",
    "rms_norm_rows.cu",
    "narrow_rows.cu",
    "rope_store.cu",
];

macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        [$(Source { name: $name, text: include_str!(concat!("../../../kernels/include/", $name)) }),*]
    };
}

/// What they include.
pub(crate) const HEADERS: &[Source] = &headers![
    "types.cuh",
    "mxfp4.cuh",
    "tandem.cuh",
    "decode.cuh",
    "prefill.cuh",
    "wide.cuh",
    "experts.cuh",
    "results.cuh",
    "draw.cuh",
    "fp8.cuh",
    "e4m3.cuh",
];

/// A kernel on the device.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub(crate) CUfunction);

/// One product of many rows, compiled for several tiles of activation rows.
pub(crate) struct Tiled {
    /// For tiles of [`TILES`] rows.
    pub(crate) narrow: [TileKernel; 4],
    /// With warpgroup products, [`WIDE_TILE`] rows; on sm_90a.
    pub(crate) wide: Option<TileKernel>,
}

/// The experts' two products with MXFP8 activations, for tiles of [`FP8_TILES`] rows.
pub(crate) struct Fp8Experts {
    pub(crate) gate_up: [TileKernel; 2],
    pub(crate) down: [TileKernel; 2],
}

/// The same with block-scaled products, and what proves them.
pub(crate) struct BlockScaled {
    pub(crate) experts: Fp8Experts,
    pub(crate) probe: Kernel,
}

/// A product for one tile.
#[derive(Clone, Copy)]
pub(crate) struct TileKernel {
    pub(crate) kernel: Kernel,
    /// Dynamic shared memory it needs, bytes.
    pub(crate) shared: usize,
}

/// Activation rows of a narrow tile.
pub(crate) const TILES: [usize; 4] = [16, 32, 64, 128];
/// Activation rows of a wide tile.
pub(crate) const WIDE_TILE: usize = 256;
/// Activation rows of a tile with MXFP8 activations.
pub(crate) const FP8_TILES: [usize; 2] = [64, 128];

impl Tiled {
    fn find(modules: &[CUmodule], name: &str) -> Result<Self, BackendError> {
        let [a, b, c, d] = TILES.map(|tile| TileKernel::find(modules, &format!("{name}_{tile}")));
        Ok(Self { narrow: [a?, b?, c?, d?], wide: TileKernel::find(modules, &format!("{name}_wide")).ok() })
    }
}

impl Fp8Experts {
    /// `kind`: `plain` or `scaled`.
    fn find(modules: &[CUmodule], kind: &str) -> Result<Self, BackendError> {
        let find = |product: &str| -> Result<[TileKernel; 2], BackendError> {
            let [a, b] =
                FP8_TILES.map(|tile| TileKernel::find(modules, &format!("mxfp4_moe_{product}_fp8_{kind}_{tile}")));
            Ok([a?, b?])
        };
        Ok(Self { gate_up: find("gate_up")?, down: find("down")? })
    }

    fn tiles(&self) -> impl Iterator<Item = TileKernel> {
        self.gate_up.into_iter().chain(self.down)
    }
}

impl BlockScaled {
    /// None where the target has no such products.
    fn find(modules: &[CUmodule]) -> Option<Self> {
        let probe = function(modules, "block_scale_probe").ok()?;
        Some(Self { experts: Fp8Experts::find(modules, "scaled").ok()?, probe })
    }
}

impl TileKernel {
    fn find(modules: &[CUmodule], name: &str) -> Result<Self, BackendError> {
        Ok(Self { kernel: function(modules, name)?, shared: number(modules, &format!("{name}_shared"))? })
    }
}

macro_rules! kernels {
    ($($name:ident),* $(,)?) => {
        /// Every kernel of a step, by its name in `kernels/`.
        pub(crate) struct Kernels {
            $(pub(crate) $name: Kernel,)*
            /// Products of many rows, by tile: dense ones by format, then the experts' two.
            pub(crate) dense_bf16: Tiled,
            pub(crate) dense_q8: Tiled,
            pub(crate) dense_mxfp4: Tiled,
            pub(crate) moe_gate_up: Tiled,
            pub(crate) moe_down: Tiled,
            pub(crate) fp8_experts: Fp8Experts,
            pub(crate) block_scaled: Option<BlockScaled>,
        }

        impl Kernels {
            fn find(modules: &[CUmodule]) -> Result<Self, BackendError> {
                let find = |name: &str| function(modules, name);
                Ok(Self {
                    $($name: find(stringify!($name))?,)*
                    dense_bf16: Tiled::find(&modules, "dense_bf16")?,
                    dense_q8: Tiled::find(&modules, "dense_q8")?,
                    dense_mxfp4: Tiled::find(&modules, "dense_mxfp4")?,
                    moe_gate_up: Tiled::find(&modules, "mxfp4_moe_gate_up")?,
                    moe_down: Tiled::find(&modules, "mxfp4_moe_down")?,
                    fp8_experts: Fp8Experts::find(modules, "plain")?,
                    block_scaled: BlockScaled::find(modules),
                })
            }

            /// All of them, for settings they share.
            fn all(&self) -> Vec<Kernel> {
                let dense = [&self.dense_bf16, &self.dense_q8, &self.dense_mxfp4];
                let tiled = dense.into_iter().chain([&self.moe_gate_up, &self.moe_down]);
                let tiled = tiled.flat_map(|tiled| tiled.narrow.into_iter().chain(tiled.wide));
                let scaled = self.block_scaled.iter().flat_map(|scaled| scaled.experts.tiles());
                let tiled = tiled.chain(self.fp8_experts.tiles()).chain(scaled);
                [$(self.$name),*].into_iter().chain(tiled.map(|tile| tile.kernel)).collect()
            }
        }
    };
}

kernels![
    rms_norm,
    add_rows,
    gather_rows,
    count_experts,
    embed,
    set_words,
    read_once,
    stage_rows,
    linear_decode_bf16,
    linear_decode_q8,
    linear_decode_mxfp4,
    linear_decode_bf16_many,
    linear_decode_q8_many,
    linear_decode_mxfp4_many,
    route_decode,
    moe_gate_up_decode,
    moe_down_decode,
    attention_decode,
    attention_decode_fp8,
    rope_store_any,
    attention_any,
    draw_tokens,
    part_largest,
    part_weight,
    part_find,
    exchange_packets,
    exchange_relayed,
    choose_experts,
    moe_group,
    moe_combine,
    attention_prefill,
    attention_prefill_fp8,
    rms_norm_rows,
    narrow_rows,
    narrow_rows_fp8,
    rope_store,
    rope_store_fp8,
];

/// What packs weights when they are read.
#[derive(Clone, Copy)]
pub(crate) struct Packing {
    pub(crate) pack_bf16_tiles: Kernel,
    pub(crate) pack_q8_tiles: Kernel,
    pub(crate) q8_row_base: Kernel,
    pub(crate) pack_bf16_to_mxfp4: Kernel,
    pub(crate) pack_mxfp4_tiles: Kernel,
    pub(crate) pack_mxfp4_scales: Kernel,
    pub(crate) mxfp4_row_base: Kernel,
    pub(crate) widen: Kernel,
}

// SAFETY: a handle of the driver, which may be used from any thread on which the context is current.
unsafe impl Send for Kernel {}
// SAFETY: as above; it is only read.
unsafe impl Sync for Kernel {}

impl Packing {
    /// Compiles them if the cache does not have them, and loads them onto the device.
    pub(crate) fn load(device: &Device, compiler: &Compiler) -> Result<Self, BackendError> {
        let modules = load(device, compiler, &SOURCES[..1], &KernelProgress::default())?;
        let find = |name: &str| function(&modules, name);
        Ok(Self {
            pack_bf16_tiles: find("pack_bf16_tiles")?,
            pack_q8_tiles: find("pack_q8_tiles")?,
            q8_row_base: find("q8_row_base")?,
            pack_bf16_to_mxfp4: find("pack_bf16_to_mxfp4")?,
            pack_mxfp4_tiles: find("pack_mxfp4_tiles")?,
            pack_mxfp4_scales: find("pack_mxfp4_scales")?,
            mxfp4_row_base: find("mxfp4_row_base")?,
            widen: find("widen")?,
        })
    }
}

/// Files of the kernels of steps.
pub(crate) const FILES: usize = SOURCES.len() - 1;

impl Kernels {
    /// Compiles what the cache does not have, all files at the same time, and loads everything onto the device.
    pub(crate) fn load(device: &Device, compiler: &Compiler, progress: &KernelProgress) -> Result<Self, BackendError> {
        let kernels = Self::find(&load(device, compiler, &SOURCES[1..], progress)?)?;
        kernels.allow_shared_memory(device.shared_bytes_max())?;
        Ok(kernels)
    }

    /// Blocks get more than 48 KB only where that was said before. Static shared memory counts too.
    fn allow_shared_memory(&self, most: u32) -> Result<(), BackendError> {
        for kernel in self.all() {
            use CUfunction_attribute::{
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
                CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
            };
            // SAFETY: the function belongs to a loaded module.
            let set = unsafe {
                result::function::get_function_attribute(kernel.0, STATIC)
                    .and_then(|used| result::function::set_function_attribute(kernel.0, DYNAMIC, most as i32 - used))
            };
            set.map_err(|error| failed("raising a kernel's shared memory", error))?;
        }
        Ok(())
    }
}

/// Modules on the device, never unloaded while the process lives.
fn load(
    device: &Device,
    compiler: &Compiler,
    sources: &[Source],
    progress: &KernelProgress,
) -> Result<Vec<CUmodule>, BackendError> {
    let compile = |source: &Source| {
        let cubin = compiler.compile(source);
        progress.note(cubin.as_ref().is_ok_and(|cubin| cubin.cached));
        cubin
    };
    let cubins: Vec<Result<Cubin, CompileError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = sources.iter().map(|source| scope.spawn(|| compile(source))).collect();
        let joined = threads.into_iter().zip(sources).map(|(thread, source)| {
            thread.join().unwrap_or_else(|_| {
                let (name, arch) = (source.name.to_owned(), device.arch().to_owned());
                Err(CompileError::Failed { name, arch, log: "the compiler's thread panicked".into() })
            })
        });
        joined.collect()
    });
    device.bind()?;
    let mut modules = Vec::with_capacity(sources.len());
    for (cubin, source) in cubins.into_iter().zip(sources) {
        let cubin = cubin.map_err(|error| BackendError::Unsupported(error.to_string()))?;
        // SAFETY: the image is a cubin of NVRTC's, or what the cache holds under its hash; the driver checks it.
        let module = unsafe { result::module::load_data(cubin.image.as_ptr().cast::<c_void>()) };
        modules.push(module.map_err(|error| failed(&format!("loading kernels of {}", source.name), error))?);
    }
    Ok(modules)
}

fn function(modules: &[CUmodule], name: &str) -> Result<Kernel, BackendError> {
    let c_name = CString::new(name).map_err(|error| BackendError::Unsupported(error.to_string()))?;
    for module in modules {
        // SAFETY: the module is loaded and never unloaded while the process lives.
        if let Ok(found) = unsafe { result::module::get_function(*module, c_name.clone()) } {
            return Ok(Kernel(found));
        }
    }
    Err(BackendError::Unsupported(format!("there is no kernel {name}")))
}

/// The value of a variable on the device.
fn number(modules: &[CUmodule], name: &str) -> Result<usize, BackendError> {
    let missing = || BackendError::Unsupported(format!("there is no variable {name} beside its kernel"));
    let c_name = CString::new(name).map_err(|_| missing())?;
    // SAFETY: the modules are loaded and never unloaded while the process lives.
    let mut found =
        modules.iter().filter_map(|module| unsafe { result::module::get_global(*module, c_name.clone()) }.ok());
    let (address, _) = found.next().ok_or_else(missing)?;
    let mut value = [0_i32];
    // SAFETY: the variable is an int.
    unsafe { result::memcpy_dtoh_sync(&mut value, address) }
        .map_err(|error| failed(&format!("reading {name}"), error))?;
    usize::try_from(value[0]).map_err(|_| missing())
}
