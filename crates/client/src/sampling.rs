//! What all requests can be told of how tokens are chosen.

/// The methods that set fields of `self.request.sampling`, and the call's own settings.
macro_rules! request_methods {
    () => {
        /// Another of the server's models than the one it serves by default.
        pub fn model(mut self, name: impl Into<String>) -> Self {
            self.request.model = name.into();
            self
        }

        /// Most tokens to generate, reasoning included.
        pub fn max_tokens(mut self, tokens: u32) -> Self {
            self.sampling_mut().max_tokens = Some(tokens);
            self
        }

        /// Fewest tokens before the model may end.
        pub fn min_tokens(mut self, tokens: u32) -> Self {
            self.sampling_mut().min_tokens = Some(tokens);
            self
        }

        /// 0 for always the likeliest token, up to 2. Default: 1.
        pub fn temperature(mut self, temperature: f64) -> Self {
            self.sampling_mut().temperature = Some(temperature);
            self
        }

        /// Draws from the likeliest tokens that have this probability together.
        pub fn top_p(mut self, top_p: f64) -> Self {
            self.sampling_mut().top_p = Some(top_p);
            self
        }

        /// Draws from this many likeliest tokens.
        pub fn top_k(mut self, top_k: u32) -> Self {
            self.sampling_mut().top_k = Some(top_k);
            self
        }

        /// The same seed and request give the same draws.
        pub fn seed(mut self, seed: u64) -> Self {
            self.sampling_mut().seed = Some(seed);
            self
        }

        /// Goes on until the most tokens, whatever the model says: for measuring.
        pub fn ignore_eos(mut self) -> Self {
            self.sampling_mut().ignore_eos = true;
            self
        }

        /// Any other field of [`proto::Sampling`](crate::proto::Sampling).
        pub fn sampling(mut self, set: impl FnOnce(&mut crate::proto::Sampling)) -> Self {
            set(self.sampling_mut());
            self
        }

        /// Returns log-probabilities, each with so many alternatives (0 to 20).
        pub fn logprobs(mut self, alternatives: u32) -> Self {
            self.request.top_logprobs = Some(alternatives);
            self
        }

        /// The text is JSON that fits this schema, itself JSON text. `name` says what it describes.
        pub fn json_schema(self, name: impl Into<String>, schema: impl Into<String>) -> Self {
            let (name, schema_json) = (name.into(), schema.into());
            let schema = crate::proto::JsonSchema { name, description: String::new(), schema_json };
            self.format(crate::proto::format::Kind::JsonSchema(schema))
        }

        /// A regular expression matches the whole text.
        pub fn regex(self, regex: impl Into<String>) -> Self {
            self.format(crate::proto::format::Kind::Regex(regex.into()))
        }

        /// The text is one of these.
        pub fn choice(self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
            let texts = texts.into_iter().map(Into::into).collect();
            self.format(crate::proto::format::Kind::Choice(crate::proto::Choice { texts }))
        }

        /// The text has this form.
        pub fn format(mut self, kind: crate::proto::format::Kind) -> Self {
            self.request.format = Some(crate::proto::Format { kind: Some(kind) });
            self
        }

        /// Longest time that this call may take, all attempts and the whole stream included.
        pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
            self.timeout = Some(timeout);
            self
        }

        fn sampling_mut(&mut self) -> &mut crate::proto::Sampling {
            self.request.sampling.get_or_insert_default()
        }
    };
}

pub(crate) use request_methods;
