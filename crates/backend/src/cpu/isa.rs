use std::{fmt, str::FromStr};

use super::simd::{self, Kernel};
use crate::BackendError;

/// Instruction set a CPU backend's kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL and VNNI.
    Avx512Vnni,
    /// NEON with the dot product extension.
    NeonDotprod,
    /// NEON with dot product and int8 matrix multiplication.
    NeonI8mm,
}

impl Isa {
    /// All instruction sets, the slowest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni, Isa::NeonDotprod, Isa::NeonI8mm];

    /// The best this machine has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.available()).unwrap_or(Isa::Scalar)
    }

    /// Those this machine has.
    pub fn all_available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    /// Whether this machine has it.
    #[cfg(target_arch = "x86_64")]
    pub fn available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Isa::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Isa::NeonDotprod | Isa::NeonI8mm => false,
        }
    }

    /// Whether this machine has it.
    #[cfg(target_arch = "aarch64")]
    pub fn available(self) -> bool {
        use std::arch::is_aarch64_feature_detected;
        match self {
            Isa::Scalar => true,
            Isa::Avx2 | Isa::Avx512Vnni => false,
            Isa::NeonDotprod => is_aarch64_feature_detected!("dotprod"),
            Isa::NeonI8mm => is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm"),
        }
    }

    /// Whether this machine has it.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub fn available(self) -> bool {
        self == Isa::Scalar
    }

    /// Its name as printed and parsed: `avx512-vnni`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    ///
    /// # Safety
    /// The instruction set must be [`available`](Isa::available), and the kernel's own conditions must hold.
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller checked that the machine has it.
            Isa::Avx2 => unsafe { simd::avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Vnni => unsafe { simd::avx512::run(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonDotprod => unsafe { simd::neon::run_dotprod(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonI8mm => unsafe { simd::neon::run_i8mm(kernel) },
            // SAFETY: scalar code needs nothing; the kernel's conditions are the caller's.
            _ => unsafe { kernel.run::<simd::scalar::Scalar>() },
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Isa, BackendError> {
        Isa::ALL.into_iter().find(|isa| isa.name() == text).ok_or_else(|| {
            let names = Isa::ALL.map(Isa::name).join(", ");
            BackendError::Unsupported(format!("unknown instruction set `{text}`; known are {names}"))
        })
    }
}
