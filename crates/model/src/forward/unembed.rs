use std::ops::Range;

use tandem_backend::{Backend, BackendError, Draw, LogitsPart};

use super::ModelError;
use super::candidates::{OnDevice, OnHost, draw_among_ranks};
use crate::Config;
use crate::shard::{Exchange, ExchangeError, ShardPlan, share};

/// The way from the residual stream to logits.
pub(super) struct Unembedding<B: Backend> {
    norm: B::Vector,
    eps: f32,
    /// One for every part.
    heads: Vec<Head<B>>,
    /// The rows wanted, before and after the norm.
    last: B::Buffer,
    normed: B::Buffer,
    host: HostLogits,
}

/// One shard of lm_head.
pub(super) struct Head<B: Backend> {
    pub(super) weight: B::Matrix,
    /// `[rows, vocab.len()]`.
    pub(super) logits: B::Buffer,
    /// The tokens whose logits it gives.
    pub(super) vocab: Range<usize>,
}

impl<B: Backend> Unembedding<B> {
    /// `plan` is the first part's; `rows` is the most rows at a time.
    pub(super) fn new(
        backend: &B,
        config: &Config,
        plan: ShardPlan,
        norm: B::Vector,
        heads: Vec<Head<B>>,
        rows: usize,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            norm,
            eps: config.rms_eps,
            last: backend.buffer(rows, config.hidden)?,
            normed: backend.buffer(rows, config.hidden)?,
            host: HostLogits::new(config.vocab, plan.world, rows, heads.len() < plan.world),
            heads,
        })
    }

    /// Logits of the given rows of the residual stream, on the device.
    pub(super) fn compute(&mut self, backend: &B, residual: &B::Buffer, rows: &[usize]) -> Result<(), BackendError> {
        backend.gather(residual, rows, &mut self.last)?;
        let (n, norm) = (rows.len(), (&self.norm, self.eps));
        for head in &mut self.heads {
            backend.norm_linear(&self.last, n, norm, &head.weight, None, &mut self.normed, &mut head.logits)?;
        }
        Ok(())
    }

    /// Draws from the logits computed last: with the other ranks, or on the device that has them all. Only a device that cannot draw
    /// brings its logits to the host.
    pub(super) fn draw(
        &mut self,
        backend: &B,
        draws: &[Draw],
        exchange: Option<&mut (dyn Exchange + 'static)>,
        tokens: &mut [u32],
    ) -> Result<(), ModelError> {
        let (head, mine) = (&self.heads[0], &mut self.host.mine);
        let Some(exchange) = exchange else {
            return Ok(backend.draw(&head.logits, draws, tokens)?);
        };
        if B::DRAWS {
            let part = LogitsPart { logits: &head.logits, first: head.vocab.start };
            return draw_among_ranks(&mut OnDevice { backend, part }, draws, exchange, tokens);
        }
        let logits = &mut mine[..draws.len() * head.vocab.len()];
        backend.download(&head.logits, 0, logits)?;
        draw_among_ranks(&mut OnHost { logits, vocab: &head.vocab }, draws, exchange, tokens)
    }

    /// Brings the `n` rows of logits to the host: all parts', and those of the other ranks.
    pub(super) fn bring(
        &mut self,
        backend: &B,
        n: usize,
        exchange: Option<&mut (dyn Exchange + 'static)>,
    ) -> Result<(), ModelError> {
        let Self { heads, host, .. } = self;
        match (&heads[..], exchange) {
            ([head], Some(exchange)) => {
                backend.download(&head.logits, 0, &mut host.mine[..n * head.vocab.len()])?;
                Ok(host.gather(n, exchange)?)
            }
            _ => {
                for (index, head) in heads.iter().enumerate() {
                    backend.download(&head.logits, 0, host.block(index, n))?;
                }
                Ok(())
            }
        }
    }

    /// Hands each of the `n` rows brought last to `each`: the logits of the whole vocabulary.
    pub(super) fn each_row(&mut self, n: usize, each: impl FnMut(usize, &mut [f32])) {
        self.host.each_row(n, each);
    }
}

/// Logits in blocks, one for every part or rank: a block has its tokens' logits of all rows, row by row.
struct HostLogits {
    vocab: usize,
    /// Blocks there are.
    world: usize,
    /// A block has so many values for every row, some of them unused where the vocabulary does not divide.
    stride: usize,
    blocks: Vec<f32>,
    /// This rank's block before it is exchanged.
    mine: Vec<f32>,
    /// A row put together; unused where there is one block.
    row: Vec<f32>,
}

impl HostLogits {
    fn new(vocab: usize, world: usize, rows: usize, exchanged: bool) -> Self {
        let stride = share(vocab, 0, world).len();
        Self {
            vocab,
            world,
            stride,
            blocks: vec![0.0; world * rows * stride],
            mine: vec![0.0; if exchanged { rows * stride } else { 0 }],
            row: vec![0.0; if world > 1 { vocab } else { 0 }],
        }
    }

    /// The used values of block `index` for `n` rows.
    fn block(&mut self, index: usize, n: usize) -> &mut [f32] {
        let width = share(self.vocab, index, self.world).len();
        &mut self.blocks[index * n * self.stride..][..n * width]
    }

    /// Fills all blocks from every rank's `mine`.
    fn gather(&mut self, n: usize, exchange: &mut dyn Exchange) -> Result<(), ExchangeError> {
        let each = n * self.stride;
        let all = &mut self.blocks[..self.world * each];
        exchange.all_gather(bytemuck::cast_slice(&self.mine[..each]), bytemuck::cast_slice_mut(all))
    }

    fn each_row(&mut self, n: usize, mut each: impl FnMut(usize, &mut [f32])) {
        if self.world == 1 {
            return self.blocks.chunks_exact_mut(self.vocab).take(n).enumerate().for_each(|(i, row)| each(i, row));
        }
        for i in 0..n {
            for index in 0..self.world {
                let vocab = share(self.vocab, index, self.world);
                let from = index * n * self.stride + i * vocab.len();
                self.row[vocab.clone()].copy_from_slice(&self.blocks[from..][..vocab.len()]);
            }
            each(i, &mut self.row);
        }
    }
}
