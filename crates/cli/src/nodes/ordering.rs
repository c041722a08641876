//! What a group is to load.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};
use tandem_backend::{DenseFormat, KvFormat};
use tandem_cluster::{Experts, HostFacts, LoadOrder, ModelSource};
use tandem_model::memory::{MemoryPlan, MemoryRequest, plan_memory};
use tandem_model::{Config, ExpertSplit, ShardPlan};
use tandem_step::Capacity;
use tracing::{info, warn};

use super::word;
use crate::fingerprint::fingerprint;
use crate::load::{self, Numbers, Source};
use crate::settings::{Dense, Kv, LinkChoice, ModelArgs, ServeArgs};

/// Decides what each group loads. The first one's context is what clients are promised, so it stays; the pools are made to
/// fit whoever is there.
pub(super) struct Ordering {
    model: ModelArgs,
    /// The first rank's, which needs most, of a group of all nodes.
    shard: ShardPlan,
    chosen: LinkChoice,
    is_local: bool,
    config: Config,
    order: LoadOrder,
    /// Of the latest group.
    planned: Arc<Mutex<Option<MemoryPlan>>>,
}

impl Ordering {
    pub(super) fn new(args: &ServeArgs, source: &Source, numbers: &Numbers, shard: ShardPlan) -> Result<Self> {
        let order = LoadOrder {
            experts: experts(shard.experts),
            model: model_source(&args.model)?,
            fingerprint: fingerprint(source.store.as_ref())?,
            exact: args.model.exact,
            dense: dense_word(numbers.dense),
            kv: kv_word(numbers.kv),
            capacity: Capacity::default(),
            link: String::new(),
            eager: args.model.eager,
            prefill_activations: word(args.model.prefill_activations),
        };
        Ok(Self {
            model: args.model.clone(),
            shard,
            chosen: args.nodes.link.unwrap_or(LinkChoice::Auto),
            is_local: args.nodes.local_workers,
            config: source.store.config().clone(),
            order,
            planned: Arc::default(),
        })
    }

    /// The memory plan of the latest group, once there is one.
    pub(super) fn planned(&self) -> Arc<Mutex<Option<MemoryPlan>>> {
        self.planned.clone()
    }

    /// For these machines: all, or the first alone.
    pub(super) fn order(&self, hosts: &[HostFacts]) -> Result<LoadOrder> {
        let budget = hosts.iter().map(|host| host.memory_bytes).min().unwrap_or(0);
        let shard = if hosts.len() == self.shard.world { self.shard } else { ShardPlan::UNDIVIDED };
        let mut planned = self.planned.lock().map_err(|_| anyhow!("planning memory failed before"))?;
        let promised = planned.as_ref().map(|plan| plan.capacity.context);
        let request = load::memory_request_of(&self.model, shard, budget)?;
        let plan = plan_memory(&self.config, &MemoryRequest { context: promised.or(request.context), ..request })?;
        if planned.as_ref() != Some(&plan) {
            load::announce_plan(&plan);
        }
        let (capacity, link) = (plan.capacity, self.link(hosts)?);
        *planned = Some(plan);
        Ok(LoadOrder { capacity, link, experts: experts(shard.experts), ..self.order.clone() })
    }

    /// How activations travel: as was named, or by the best that all nodes have.
    fn link(&self, hosts: &[HostFacts]) -> Result<String> {
        if hosts.len() == 1 {
            return Ok(String::new());
        }
        Ok(match (self.chosen, self.is_local) {
            (LinkChoice::Auto, true) => {
                info!("--link auto takes shm: all nodes are processes of this machine");
                "shm".into()
            }
            (LinkChoice::Auto, false) => auto_link(hosts),
            (LinkChoice::Shm, false) => {
                bail!("--link shm: other machines share no memory with this one; leave --link out, or take tcp or rdma")
            }
            (named, _) => word(named),
        })
    }
}

fn experts(split: ExpertSplit) -> Experts {
    match split {
        ExpertSplit::Slice => Experts::Slice,
        ExpertSplit::Whole => Experts::Whole,
    }
}

fn model_source(model: &ModelArgs) -> Result<ModelSource> {
    Ok(match (&model.model, model.synthetic) {
        (_, Some(shape)) => ModelSource::Synthetic(word(shape)),
        (Some(folder), None) => {
            ModelSource::Path(folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?)
        }
        (None, None) => ModelSource::Demo,
    })
}

/// RDMA where every node has it.
fn auto_link(hosts: &[HostFacts]) -> String {
    match hosts.iter().find(|host| !host.rdma_trouble.is_empty()) {
        None => {
            info!("--link auto takes rdma: every node has a device for it");
            "rdma".into()
        }
        Some(host) => {
            warn!(
                "--link auto takes tcp, which is several times slower than rdma: on {}, {}",
                host.name, host.rdma_trouble
            );
            "tcp".into()
        }
    }
}

fn dense_word(dense: DenseFormat) -> String {
    word(match dense {
        DenseFormat::Q8 => Dense::Q8,
        DenseFormat::Bf16 => Dense::Bf16,
        DenseFormat::Mxfp4 => Dense::Mxfp4,
    })
}

fn kv_word(kv: KvFormat) -> String {
    word(match kv {
        KvFormat::Bf16 => Kv::Bf16,
        KvFormat::Fp8 => Kv::Fp8,
        KvFormat::F32 => Kv::F32,
    })
}
