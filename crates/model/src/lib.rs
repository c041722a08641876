//! Config, checkpoint reading, gpt-oss forward pass, KV cache, sampler.
