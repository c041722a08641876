//! `tandem serve`: a model behind the HTTP edge.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use tandem_api::{ApiSettings, ApiState, ModelInfo, ReadyFlag};
use tandem_engine::Engine;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::load::{self, Loaded, Progress};
use crate::settings::{ModelArgs, ServeArgs};

/// Threads for connections; the model's own threads do the work.
const EDGE_THREADS: usize = 2;
/// How often the engine is asked whether it still runs.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// How long the engine may take to end after the last connection is closed.
const ENGINE_SHUTDOWN: Duration = Duration::from_secs(5);

/// Serves until interrupted. An error before that, or a lost engine, ends it with that error.
pub fn run(args: &ServeArgs) -> Result<()> {
    let runtime = edge_runtime()?;
    let result = runtime.block_on(serve(args));
    // A load that was interrupted still holds a thread; the process does not wait for it.
    runtime.shutdown_background();
    result
}

async fn serve(args: &ServeArgs) -> Result<()> {
    let at = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind(&at).await.with_context(|| format!("listening on {at}"))?;
    let address = listener.local_addr()?;
    warn_if_exposed(address.ip());
    info!("listening on http://{address} while the model loads");
    let (state, ready) = ApiState::new(api_settings(args));
    let (ended, lost) = oneshot::channel();
    let model_args = args.model.clone();
    let loading = tokio::task::spawn_blocking(move || load::load(&model_args, Progress::Log));
    let watching = tokio::spawn(announce_and_watch(loading, ready, address, ended));
    let mut failure = None;
    let shutdown = async {
        tokio::select! {
            () = interrupted() => info!("ending: open requests may finish (interrupt again to end at once)"),
            Ok(error) = lost => failure = Some(error),
        }
        tokio::spawn(async {
            interrupted().await;
            std::process::exit(130);
        });
    };
    let served = tandem_api::serve(listener, state, shutdown).await;
    watching.abort();
    served.context("serving HTTP")?;
    failure.map_or(Ok(()), Err)
}

/// Makes the model available when it is loaded, then watches over the engine. Sends the error that should end it all.
async fn announce_and_watch(
    loading: tokio::task::JoinHandle<Result<Loaded>>,
    ready: ReadyFlag,
    address: SocketAddr,
    ended: oneshot::Sender<anyhow::Error>,
) {
    let error = match loading.await {
        Ok(Ok(loaded)) => {
            let engine = loaded.engine.clone();
            announce(loaded, &ready, address);
            watch(engine).await
        }
        Ok(Err(error)) => error,
        Err(error) => anyhow!("loading the model: {error}"),
    };
    // Nobody listens only when the server is ending anyway.
    let _ = ended.send(error);
}

fn announce(loaded: Loaded, ready: &ReadyFlag, address: SocketAddr) {
    if let Some(notice) = loaded.notice {
        warn!("{notice}");
    }
    ready.ready(loaded.engine.clone(), model_info(&loaded));
    info!("ready: {} at http://{address} (OpenAI clients: http://{address}/v1)", loaded.name);
}

/// Ends with the reason why the engine no longer runs.
async fn watch(engine: Engine) -> anyhow::Error {
    loop {
        tokio::time::sleep(HEALTH_INTERVAL).await;
        if let Some(trouble) = engine.trouble() {
            error!("the engine stopped: {trouble}");
            return anyhow!("the engine stopped: {trouble}");
        }
    }
}

/// SIGINT or SIGTERM.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn warn_if_exposed(ip: IpAddr) {
    if !ip.is_loopback() {
        warn!("listening on {ip}: everybody who can reach this address can use the model, without a key");
    }
}

fn api_settings(args: &ServeArgs) -> ApiSettings {
    let mut names = args.served_model_name.iter().cloned();
    ApiSettings {
        served_model_name: names.next(),
        model_aliases: names.collect(),
        body_bytes_max: args.max_body as usize,
        request_timeout: args.request_timeout,
        ..ApiSettings::default()
    }
}

fn model_info(loaded: &Loaded) -> ModelInfo {
    let capacity = loaded.engine.capacity();
    ModelInfo {
        id: loaded.name.clone(),
        aliases: Vec::new(),
        vocab: capacity.vocab,
        context: capacity.context,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        notice: loaded.notice.map(str::to_owned),
    }
}

fn edge_runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(EDGE_THREADS).thread_name("edge").enable_all().build().context("starting the edge")
}

/// A server on a free loopback port inside this process; it ends when dropped.
pub struct LocalServer {
    address: SocketAddr,
    notice: Option<&'static str>,
    engine: Engine,
    /// Ends the server when it is sent or dropped.
    end: Option<oneshot::Sender<()>>,
    runtime: Option<Runtime>,
}

/// Loads the model and serves it to this process alone.
pub fn start_local(model: &ModelArgs) -> Result<LocalServer> {
    let loaded = load::load(model, Progress::from_terminal())?;
    let runtime = edge_runtime()?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let (state, ready) = ApiState::new(ApiSettings::default());
    ready.ready(loaded.engine.clone(), model_info(&loaded));
    let (end, ended) = oneshot::channel();
    runtime.spawn(tandem_api::serve(listener, state, async {
        // Sent or dropped: both mean the end.
        let _ = ended.await;
    }));
    Ok(LocalServer { address, notice: loaded.notice, engine: loaded.engine, end: Some(end), runtime: Some(runtime) })
}

impl LocalServer {
    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What whoever talks to the model should know.
    pub fn notice(&self) -> Option<&'static str> {
        self.notice
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.end.take();
        self.engine.shutdown(ENGINE_SHUTDOWN);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
