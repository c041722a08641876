use tandem_backend::{AttentionContext, AttentionKind, Backend, BackendError, Batch, Rope};
use tandem_step::Pool;

use super::ModelError;
use crate::Config;
use crate::shard::{Exchange, Shard};

/// One layer: what every rank has, and the parts held here.
pub(super) struct Layer<B: Backend> {
    pub(super) kind: AttentionKind,
    /// Index among the layers of its kind, which is its place in the KV pool.
    pub(super) kv_layer: usize,
    pub(super) input_norm: B::Vector,
    pub(super) post_norm: B::Vector,
    pub(super) router: B::Matrix,
    pub(super) router_bias: B::Vector,
    pub(super) parts: Vec<Part<B>>,
}

/// One shard of a layer.
pub(super) struct Part<B: Backend> {
    /// Query heads.
    pub(super) heads: usize,
    pub(super) qkv: B::Matrix,
    pub(super) qkv_bias: B::Vector,
    pub(super) sinks: B::Vector,
    pub(super) out: B::Matrix,
    pub(super) out_bias: B::Vector,
    pub(super) experts: B::Experts,
}

/// Keys and values of one part.
pub(super) struct Pools<B: Backend> {
    pub(super) full: B::Kv,
    pub(super) sliding: B::Kv,
}

impl<B: Backend> Pools<B> {
    pub(super) fn of(&mut self, pool: Pool) -> &mut B::Kv {
        match pool {
            Pool::Full => &mut self.full,
            Pool::Sliding => &mut self.sliding,
        }
    }
}

/// Activations within a layer, allocated once.
pub(super) struct Scratch<B: Backend> {
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    update: B::Buffer,
    /// What a part after the first adds to `update`; without rows where there is one part.
    partial: B::Buffer,
    routing: B::Routing,
}

impl<B: Backend> Scratch<B> {
    /// All shards have heads of the same number.
    pub(super) fn new(backend: &B, config: &Config, shards: &[Shard], rows: usize) -> Result<Self, BackendError> {
        let (first, several) = (&shards[0], shards.len() > 1);
        Ok(Self {
            normed: backend.buffer(rows, config.hidden)?,
            qkv: backend.buffer(rows, first.qkv_width(config))?,
            attended: backend.buffer(rows, first.q_width(config))?,
            update: backend.buffer(rows, config.hidden)?,
            partial: backend.buffer(if several { rows } else { 1 }, config.hidden)?,
            routing: backend.routing(rows, config.top_k)?,
        })
    }
}

impl<B: Backend> Layer<B> {
    /// `x += attention(norm(x)); x += experts(norm(x))`, x being the residual stream.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_, B>,
        pools: &mut [Pools<B>],
        ranks: Ranks<'_>,
        x: &mut B::Buffer,
        s: &mut Scratch<B>,
    ) -> Result<(), ModelError> {
        match (&self.parts[..], &mut *pools, ranks) {
            ([part], [pools], Ranks::Alone) => self.undivided(pass, part, pools, x, s),
            (_, pools, ranks) => self.divided(pass, pools, ranks, x, s),
        }
    }

    fn undivided(
        &self,
        pass: &Pass<'_, B>,
        part: &Part<B>,
        pools: &mut Pools<B>,
        x: &mut B::Buffer,
        s: &mut Scratch<B>,
    ) -> Result<(), ModelError> {
        let (backend, n) = (pass.backend, pass.batch.tokens.len());
        self.attend(pass, part, pools, x, s)?;
        backend.linear_add(&s.attended, n, &part.out, Some(&part.out_bias), &mut s.update, x)?;
        self.route(pass, x, s)?;
        backend.moe_add(&s.normed, n, &s.routing, &part.experts, &mut s.update, x)?;
        Ok(())
    }

    /// The same with partial sums: those of the parts in their order, then those of the ranks in theirs, then the sum to
    /// the residual stream.
    fn divided(
        &self,
        pass: &Pass<'_, B>,
        pools: &mut [Pools<B>],
        mut ranks: Ranks<'_>,
        x: &mut B::Buffer,
        s: &mut Scratch<B>,
    ) -> Result<(), ModelError> {
        let (backend, n) = (pass.backend, pass.batch.tokens.len());
        for (index, (part, pools)) in self.parts.iter().zip(pools).enumerate() {
            self.attend(pass, part, pools, x, s)?;
            let out = if index == 0 { &mut s.update } else { &mut s.partial };
            backend.linear(&s.attended, n, &part.out, Some(&part.out_bias), out)?;
            s.add_partial(backend, n, index)?;
        }
        s.add_update(pass, ranks.reborrow(), x)?;
        self.route(pass, x, s)?;
        for (index, part) in self.parts.iter().enumerate() {
            let out = if index == 0 { &mut s.update } else { &mut s.partial };
            backend.moe(&s.normed, n, &s.routing, &part.experts, out)?;
            s.add_partial(backend, n, index)?;
        }
        s.add_update(pass, ranks, x)
    }

    /// Attention of a part's heads, up to the output projection.
    fn attend(
        &self,
        pass: &Pass<'_, B>,
        part: &Part<B>,
        pools: &mut Pools<B>,
        x: &B::Buffer,
        s: &mut Scratch<B>,
    ) -> Result<(), ModelError> {
        let Pass { backend, config, rope, batch } = *pass;
        let (n, norm) = (batch.tokens.len(), (&self.input_norm, config.rms_eps));
        let context = AttentionContext { batch, kind: self.kind, layer: self.kv_layer, heads: part.heads };
        let kv = match self.kind {
            AttentionKind::Full => &mut pools.full,
            AttentionKind::Sliding { .. } => &mut pools.sliding,
        };
        backend.norm_linear(x, n, norm, &part.qkv, Some(&part.qkv_bias), &mut s.normed, &mut s.qkv)?;
        backend.rope_attention(&mut s.qkv, rope, &part.sinks, &context, kv, &mut s.attended)?;
        Ok(())
    }

    fn route(&self, pass: &Pass<'_, B>, x: &B::Buffer, s: &mut Scratch<B>) -> Result<(), ModelError> {
        let (n, norm) = (pass.batch.tokens.len(), (&self.post_norm, pass.config.rms_eps));
        let (router, bias) = (&self.router, &self.router_bias);
        pass.backend.norm_route(x, n, norm, router, bias, &mut s.normed, &mut s.routing)?;
        Ok(())
    }
}

/// How partial sums of several ranks come together.
pub(super) enum Ranks<'a> {
    /// There is one.
    Alone,
    /// The device adds them up.
    OnDevice,
    /// By way of the host.
    OnHost(&'a mut (dyn Exchange + 'static)),
}

impl Ranks<'_> {
    pub(super) fn reborrow(&mut self) -> Ranks<'_> {
        match self {
            Ranks::Alone => Ranks::Alone,
            Ranks::OnDevice => Ranks::OnDevice,
            Ranks::OnHost(exchange) => Ranks::OnHost(&mut **exchange),
        }
    }
}

/// What all layers of a pass share.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) config: &'a Config,
    pub(super) rope: &'a Rope,
    pub(super) batch: &'a Batch<'a>,
}

impl<B: Backend> Scratch<B> {
    /// `update += partial`, after any part but the first.
    fn add_partial(&mut self, backend: &B, n: usize, index: usize) -> Result<(), BackendError> {
        if index == 0 { Ok(()) } else { backend.add(&mut self.update, n, &self.partial) }
    }

    /// `x += update`, summed over all ranks.
    fn add_update(&mut self, pass: &Pass<'_, B>, ranks: Ranks<'_>, x: &mut B::Buffer) -> Result<(), ModelError> {
        let (backend, n) = (pass.backend, pass.batch.tokens.len());
        match ranks {
            Ranks::Alone => {}
            Ranks::OnDevice => return Ok(backend.exchange_add(&self.update, n, x)?),
            Ranks::OnHost(exchange) => {
                let values = n * pass.config.hidden;
                backend.on_host::<ModelError>(&mut self.update, values, &mut |host| Ok(exchange.all_reduce(host)?))?;
            }
        }
        Ok(backend.add(x, n, &self.update)?)
    }
}
