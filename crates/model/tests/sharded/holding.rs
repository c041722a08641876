//! A backend that reads what it is given and notes how much of what it would hold, and computes nothing.

use std::sync::Mutex;

use tandem_backend::{
    AttentionContext, Backend, BackendError, Batch, DenseFormat, ExpertsShape, ExpertsSource, KvShape, Rope, RowSource,
};

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub matrices: u64,
    pub vectors: u64,
    pub experts: u64,
    pub kv: u64,
    pub buffers: u64,
}

pub struct Holding<'a> {
    pub held: &'a Mutex<Held>,
    /// Whether sources are read, or only asked for their size.
    pub reads: bool,
}

impl Holding<'_> {
    fn note(&self, add: impl FnOnce(&mut Held)) {
        add(&mut self.held.lock().unwrap());
    }

    /// Values of a BF16 source.
    fn values(&self, source: &dyn RowSource) -> Result<u64, BackendError> {
        Ok(self.bytes(source)? / 2)
    }

    fn bytes(&self, source: &dyn RowSource) -> Result<u64, BackendError> {
        let mut row = vec![0; source.row_bytes()];
        for index in 0..if self.reads { source.rows() } else { 0 } {
            source.read(index, &mut row).map_err(|source| BackendError::Read { what: "a row".into(), source })?;
        }
        Ok((source.rows() * source.row_bytes()) as u64)
    }
}

type Done = Result<(), BackendError>;

fn computes_nothing() -> Done {
    Err(BackendError::Unsupported("this backend only holds".into()))
}

impl Backend for Holding<'_> {
    type Buffer = ();
    type Matrix = ();
    type Vector = ();
    type Experts = ();
    type Kv = ();
    type Routing = ();

    fn describe(&self) -> String {
        "nothing but memory".into()
    }

    fn buffer(&self, rows: usize, width: usize) -> Done {
        self.note(|held| held.buffers += (rows * width * size_of::<f32>()) as u64);
        Ok(())
    }

    fn routing(&self, _rows: usize, _top_k: usize) -> Done {
        Ok(())
    }

    fn kv(&self, shape: KvShape) -> Done {
        let tokens = shape.layers * shape.blocks * shape.block_tokens;
        let bytes = tokens * 2 * shape.kv_heads * shape.head_dim * shape.format.bytes();
        self.note(|held| held.kv += bytes as u64);
        Ok(())
    }

    fn vector(&self, source: &dyn RowSource) -> Done {
        let values = self.values(source)?;
        self.note(|held| held.vectors += 4 * values);
        Ok(())
    }

    fn matrix(&self, source: &dyn RowSource, format: DenseFormat) -> Done {
        let values = self.values(source)?;
        let bytes = match format {
            DenseFormat::Bf16 => 2 * values,
            DenseFormat::Q8 => values + values / 32 * 2,
            DenseFormat::Mxfp4 => values / 2 + values / 32,
        };
        self.note(|held| held.matrices += bytes);
        Ok(())
    }

    fn experts(&self, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Done {
        assert_eq!(source.down_bias.rows(), shape.experts);
        let matrices = [source.gate_up_blocks, source.gate_up_scales, source.down_blocks, source.down_scales];
        let matrices: Result<Vec<u64>, _> = matrices.iter().map(|source| self.bytes(*source)).collect();
        let (matrices, biases) =
            (matrices?.iter().sum::<u64>(), self.values(source.gate_up_bias)? + self.values(source.down_bias)?);
        self.note(|held| {
            held.experts += matrices;
            held.vectors += 4 * biases;
        });
        Ok(())
    }

    fn download(&self, _buffer: &(), _first: usize, _out: &mut [f32]) -> Done {
        computes_nothing()
    }

    fn upload(&self, _buffer: &mut (), _first: usize, _values: &[f32]) -> Done {
        computes_nothing()
    }

    fn copy_blocks(&self, _kv: &mut (), _pairs: &[(u32, u32)]) -> Done {
        computes_nothing()
    }

    fn embed(&self, _table: &(), _batch: &Batch<'_>, _out: &mut ()) -> Done {
        computes_nothing()
    }

    fn rms_norm(&self, _x: &(), _n: usize, _weight: &(), _eps: f32, _out: &mut ()) -> Done {
        computes_nothing()
    }

    fn linear(&self, _x: &(), _n: usize, _weight: &(), _bias: Option<&()>, _out: &mut ()) -> Done {
        computes_nothing()
    }

    fn rope_store(&self, _qkv: &mut (), _rope: &Rope, _context: &AttentionContext<'_>, _kv: &mut ()) -> Done {
        computes_nothing()
    }

    fn attention(&self, _qkv: &(), _sinks: &(), _context: &AttentionContext<'_>, _kv: &(), _out: &mut ()) -> Done {
        computes_nothing()
    }

    fn route(&self, _x: &(), _n: usize, _weight: &(), _bias: &(), _out: &mut ()) -> Done {
        computes_nothing()
    }

    fn moe(&self, _x: &(), _n: usize, _routing: &(), _experts: &(), _out: &mut ()) -> Done {
        computes_nothing()
    }

    fn add(&self, _x: &mut (), _n: usize, _y: &()) -> Done {
        computes_nothing()
    }

    fn gather(&self, _x: &(), _rows: &[usize], _out: &mut ()) -> Done {
        computes_nothing()
    }
}
