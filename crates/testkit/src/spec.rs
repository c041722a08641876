use serde_json::{Value, json};

/// Shape and seed of a random checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// Key of the generator.
    pub seed: u64,
    /// Layers; even ones slide.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts chosen per token.
    pub top_k: usize,
    /// Width of the residual stream, a multiple of 32.
    pub hidden: usize,
    /// Units of an expert, a multiple of 32.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Sliding window in tokens.
    pub window: usize,
    /// Positions that YaRN starts from; the model's context is 32 times as long.
    pub original_context: usize,
}

impl CheckpointSpec {
    /// The checkpoint behind `golden("a")`.
    pub const A: CheckpointSpec = CheckpointSpec {
        seed: 1,
        layers: 4,
        experts: 8,
        top_k: 4,
        hidden: 256,
        intermediate: 192,
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        vocab: 512,
        window: 16,
        original_context: 256,
    };

    /// The checkpoint behind `golden("b")`: five groups of 32 between the expert matrices, an odd number of layers.
    pub const B: CheckpointSpec = CheckpointSpec {
        seed: 2,
        layers: 3,
        experts: 16,
        hidden: 320,
        intermediate: 160,
        heads: 16,
        vocab: 777,
        window: 32,
        ..CheckpointSpec::A
    };

    /// The smallest shape that has everything and can be cut in two: for tests of readers and processes, not of numbers.
    pub const SMALL: CheckpointSpec = CheckpointSpec {
        seed: 3,
        layers: 2,
        experts: 4,
        top_k: 2,
        hidden: 64,
        intermediate: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 96,
        window: 8,
        original_context: 64,
    };

    /// Its `config.json`, with the keys of the hub's.
    pub fn hub_config(&self) -> Value {
        let kind = |layer| if layer % 2 == 0 { "sliding_attention" } else { "full_attention" };
        let layer_types: Vec<&str> = (0..self.layers).map(kind).collect();
        json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": true,
            "eos_token_id": 200_002.min(self.vocab - 1),
            "pad_token_id": 199_999.min(self.vocab - 1),
            "num_hidden_layers": self.layers,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "experts_per_token": self.top_k,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "hidden_act": "silu",
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "sliding_window": self.window,
            "layer_types": layer_types,
            "initial_context_length": self.original_context,
            "max_position_embeddings": 32 * self.original_context,
            "rms_norm_eps": 1e-5,
            "swiglu_limit": 7.0,
            "rope_theta": 150_000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": self.original_context,
                "truncate": false,
            },
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
                ],
            },
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
        })
    }

    /// Its `original/config.json`, which has keys of its own.
    pub fn original_config(&self) -> Value {
        json!({
            "num_hidden_layers": self.layers,
            "num_experts": self.experts,
            "experts_per_token": self.top_k,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "swiglu_limit": 7.0,
            "head_dim": self.head_dim,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "sliding_window": self.window,
            "initial_context_length": self.original_context,
            "rope_theta": 150_000,
            "rope_scaling_factor": 32.0,
            "rope_ntk_alpha": 1,
            "rope_ntk_beta": 32,
        })
    }
}
