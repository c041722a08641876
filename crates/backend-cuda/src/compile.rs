use std::ffi::{CString, c_char};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use crate::kernels::{HEADERS, Source};

/// Why a kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// NVRTC is not there, and neither is a compiled kernel.
    #[error(
        "libnvrtc.so.13 was not found in $CUDA_HOME, /usr/local/cuda or the library path: install the CUDA toolkit 13 \
         (package cuda-nvrtc-13-0), or set CUDA_HOME"
    )]
    NoCompiler,
    /// The compiler's complaint: a bug of ours.
    #[error("compiling kernel {name} for {arch}:\n{log}")]
    Failed {
        /// File.
        name: String,
        /// Target.
        arch: String,
        /// What NVRTC said.
        log: String,
    },
}

/// A compiled kernel file.
pub struct Cubin {
    /// The image, as the driver loads it.
    pub image: Vec<u8>,
    /// Whether it came from the cache.
    pub cached: bool,
    /// What the assembler said of registers and spills; empty where the image came from the cache.
    pub log: String,
}

/// Compiles kernels for one target, or takes them from a cache.
pub struct Compiler {
    arch: String,
    /// Whether a Hopper's kernels are built as a GB10's are.
    as_gb10: bool,
    /// Folder of compiled kernels; none: always compile.
    cache: Option<PathBuf>,
}

impl Compiler {
    /// For a target like `sm_90a`.
    pub fn new(arch: &str, cache: Option<PathBuf>) -> Self {
        Self { arch: arch.to_owned(), as_gb10: false, cache }
    }

    /// With a GB10's tiles, placement of codes and kernels (`kernels/include/types.cuh`), to be run on a Hopper.
    pub fn as_gb10(self, as_gb10: bool) -> Self {
        Self { as_gb10, ..self }
    }

    /// The image of one kernel file. A cache that cannot be read or written is no error.
    pub fn compile(&self, source: &Source) -> Result<Cubin, CompileError> {
        let cached = self.cache.as_ref().map(|folder| folder.join(self.file_name(source)));
        if let Some(image) = cached.as_deref().and_then(|file| fs::read(file).ok()).filter(|image| is_cubin(image)) {
            return Ok(Cubin { image, cached: true, log: String::new() });
        }
        open_compiler()?;
        let (image, log) = self.run(source)?;
        if let Some(file) = cached
            && let Err(error) = write_whole(&file, &image)
        {
            tracing::warn!("{} was not kept and will be compiled again at the next start: {error}", file.display());
        }
        Ok(Cubin { image, cached: false, log })
    }

    /// Named by everything the image depends on.
    fn file_name(&self, source: &Source) -> String {
        let mut hash = Sha256::new();
        let parts = [self.arch.as_str(), COMPILER, source.name, source.text];
        let headers = HEADERS.iter().flat_map(|header| [header.name, header.text]);
        for part in parts.into_iter().chain(headers).chain(self.options()) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest: String = hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{}-{digest}.cubin", source.name.trim_end_matches(".cu"), self.arch)
    }

    fn options(&self) -> Vec<&'static str> {
        OPTIONS.into_iter().chain(self.as_gb10.then_some("-DAS_GB10")).collect()
    }

    fn run(&self, source: &Source) -> Result<(Vec<u8>, String), CompileError> {
        let failed = |log: String| CompileError::Failed { name: source.name.into(), arch: self.arch.clone(), log };
        let text = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
        let (program_text, name) = (text(source.text)?, text(source.name)?);
        let header_texts: Vec<_> = HEADERS.iter().map(|header| text(header.text)).collect::<Result<_, _>>()?;
        let header_names: Vec<_> = HEADERS.iter().map(|header| text(header.name)).collect::<Result<_, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<*const c_char>>();
        let (texts, names) = (pointers(&header_texts), pointers(&header_names));
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings outlive the call; NVRTC copies them.
        unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                program_text.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        }
        .result()
        .map_err(|error| failed(format!("{error:?}")))?;
        let arch = format!("--gpu-architecture={}", self.arch);
        let options: Vec<&str> = std::iter::once(arch.as_str()).chain(self.options()).collect();
        // SAFETY: the program was created above and is destroyed below.
        let compiled = unsafe { result::compile_program(program, &options) };
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program) }.map(|log| to_text(&log)).unwrap_or_default();
        let image = compiled
            .map_err(|error| failed(format!("{log}\n{error:?}")))
            .and_then(|()| cubin(program).map_err(|error| failed(format!("{error:?}"))));
        // SAFETY: created above; not used again. Failing to free it loses some memory.
        let _ = unsafe { result::destroy_program(program) };
        Ok((image?, log))
    }
}

/// `--std`: lambdas and templates as used; PTX's own defaults keep subnormals and round divisions. `-v` makes the
/// assembler report registers and spills.
const OPTIONS: [&str; 3] = ["--std=c++17", "-default-device", "--ptxas-options=-v"];
/// Images of another compiler are not mixed with these.
const COMPILER: &str = "nvrtc 13";

fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the program has been compiled; the pointer is valid for the call.
    unsafe { sys::nvrtcGetCUBINSize(program, &mut size) }.result()?;
    let mut image = vec![0_u8; size];
    // SAFETY: `image` has the size NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) }.result()?;
    Ok(image)
}

fn to_text(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// An ELF file: what a cache holds may have been cut short or be something else.
fn is_cubin(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Under its final name only when complete.
fn write_whole(file: &Path, image: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = file.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    let written = fs::write(&partial, image).and_then(|()| fs::rename(&partial, file));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Opens NVRTC where a toolkit has it; cudarc then finds it by name. Without the check cudarc panics where there is none.
fn open_compiler() -> Result<(), CompileError> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = *FOUND.get_or_init(|| {
        folders().iter().any(|folder| open_in(folder));
        // SAFETY: opening a library runs its initialisers; it is the vendor's compiler.
        unsafe { sys::is_culib_present() }
    });
    if found { Ok(()) } else { Err(CompileError::NoCompiler) }
}

fn folders() -> Vec<PathBuf> {
    let home = std::env::var_os("CUDA_HOME").map(PathBuf::from);
    let roots = home.into_iter().chain([PathBuf::from("/usr/local/cuda")]);
    roots.flat_map(|root| [root.join("lib64"), root.join("lib"), root.join("targets/sbsa-linux/lib")]).collect()
}

/// Opens the compiler and its built-in headers for good.
fn open_in(folder: &Path) -> bool {
    ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"].iter().all(|name| {
        let Ok(path) = CString::new(folder.join(name).into_os_string().into_encoded_bytes()) else { return false };
        // SAFETY: a path ending in zero; the handle is never closed, so the library stays.
        !unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null()
    })
}
