//! Whatever bytes a client sends as a chat completion or completion request, it becomes token ids that the model has, or
//! an error of the client's.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tandem_api::{ApiError, ApiSettings, ModelInfo, RequestReader};

const VOCAB: u32 = 201_088;
const CONTEXT: u32 = 4096;

static READER: LazyLock<RequestReader> = LazyLock::new(|| {
    let model = ModelInfo { id: "m".into(), vocab: VOCAB, context: CONTEXT, ..ModelInfo::default() };
    RequestReader::new(ApiSettings { date: Some("2025-06-28".into()), ..ApiSettings::default() }, model)
});

fuzz_target!(|body: &[u8]| {
    check(READER.chat(body).map(|prompt| vec![prompt]));
    check(READER.completion(body));
});

fn check(read: Result<Vec<Vec<u32>>, ApiError>) {
    match read {
        Ok(prompts) => {
            for prompt in prompts {
                assert!((1..CONTEXT as usize).contains(&prompt.len()));
                assert!(prompt.iter().all(|&token| token < VOCAB));
            }
        }
        Err(error) => assert!(error.status().is_client_error(), "{error}"),
    }
}
