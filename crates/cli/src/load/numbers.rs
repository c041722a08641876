use std::fmt;

use anyhow::{Result, bail};
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_model::Formats;

use crate::settings::{Dense, Kv, ModelArgs};

/// Number formats: what was typed, resolved.
pub struct Numbers {
    /// Exact or fast.
    pub precision: Precision,
    /// Of attention and lm_head weights.
    pub dense: DenseFormat,
    /// Of cached keys and values.
    pub kv: KvFormat,
}

impl Numbers {
    /// Resolves them.
    pub fn of(args: &ModelArgs) -> Result<Self> {
        let precision = if args.exact { Precision::Exact } else { Precision::Fast };
        let dense = match args.dense {
            Some(Dense::Q8) => DenseFormat::Q8,
            Some(Dense::Bf16) => DenseFormat::Bf16,
            Some(Dense::Mxfp4) => DenseFormat::Mxfp4,
            None if args.exact => DenseFormat::Bf16,
            None => DenseFormat::Q8,
        };
        let kv = match args.kv {
            Some(Kv::Bf16 | Kv::Fp8) if args.exact => bail!("--exact keeps keys and values in f32; leave --kv out"),
            Some(Kv::Fp8) => KvFormat::Fp8,
            Some(Kv::Bf16) => KvFormat::Bf16,
            Some(Kv::F32) => KvFormat::F32,
            None if args.exact => KvFormat::F32,
            None => KvFormat::Bf16,
        };
        Ok(Self { precision, dense, kv })
    }

    /// Those of a loaded model.
    pub fn formats(&self) -> Formats {
        Formats { dense: self.dense, kv: self.kv }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dense = match self.dense {
            DenseFormat::Q8 => "8-bit",
            DenseFormat::Bf16 => "BF16",
            DenseFormat::Mxfp4 => "MXFP4",
        };
        let kv = match self.kv {
            KvFormat::F32 => "F32",
            KvFormat::Bf16 => "BF16",
            KvFormat::Fp8 => "FP8",
        };
        let exact = if self.precision == Precision::Exact { ", exact" } else { "" };
        write!(f, "experts MXFP4, attention and lm_head {dense}, KV {kv}{exact}")
    }
}
