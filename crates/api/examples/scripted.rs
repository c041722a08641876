//! The HTTP edge with a script in place of a model: for tests of clients that no small model could satisfy.
//!
//!     scripted SCRIPT.json
//!
//! The script is a list of `{"seen": TEXT, "reply": HARMONY}`: to a prompt that holds the text, the model writes the
//! reply, where control tokens are spelt out. The first entry that fits counts. The server listens on a free loopback
//! port, prints its URL, and ends when its standard input does.

use std::error::Error;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Deserialize;
use tandem_api::{ApiSettings, ApiState, ModelInfo};
use tandem_engine::{Engine, EngineSettings};
use tandem_harmony::Tokenizer;
use tandem_step::Capacity;
use tokio::net::TcpListener;

#[path = "../tests/edge/worker.rs"]
#[allow(dead_code)]
mod worker;

use worker::{RecitingWorker, Script};

const CONTEXT: u32 = 131_072;

#[derive(Deserialize)]
struct Line {
    seen: String,
    reply: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("which script?")?.into();
    let lines: Vec<Line> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let script = Script::default();
    for Line { seen, reply } in lines {
        script.seen(&seen, &reply);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("http://{}", listener.local_addr()?);
    tandem_api::serve(listener, state(script)?, input_ended()).await?;
    Ok(())
}

fn state(script: Script) -> Result<ApiState, Box<dyn Error>> {
    let capacity = Capacity {
        block_tokens: 16,
        full_blocks: 4 * CONTEXT / 16,
        sliding_blocks: 4096,
        window: 128,
        context: CONTEXT,
        max_streams: 8,
        max_step_tokens: 2048,
        layers: 1,
        vocab: Tokenizer::VOCAB_SIZE as u32,
    };
    let worker = RecitingWorker::new(script, capacity);
    let engine = Engine::start(Box::new(worker), capacity, EngineSettings::default())?;
    let (state, ready) = ApiState::new(ApiSettings::default());
    let id = "gpt-oss-20b".to_string();
    ready.ready(engine, ModelInfo { id, vocab: capacity.vocab, context: CONTEXT, ..ModelInfo::default() });
    Ok(state)
}

/// Ends when whoever started this closes its standard input, or is gone.
async fn input_ended() {
    // A failure to wait is as good as the end.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
}
