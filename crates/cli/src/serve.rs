//! `tandem serve`: a model behind the HTTP edge.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use tandem_api::{
    ApiSettings, ApiState, Keyring, Listening, MemoryUse, ModelInfo, NodeReport, Origins, ReadyFlag, Tls,
};
use tandem_engine::Engine;
use tandem_model::memory::MemoryLine;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::load::{self, Formation, Loaded, Node, Progress};
use crate::nodes;
use crate::settings::{ModelArgs, ServeArgs};

/// Threads for connections; the model's own threads do the work.
const EDGE_THREADS: usize = 2;
/// How often the engine is asked whether it still runs.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// How long the engine may take to end after the last connection is closed.
const ENGINE_SHUTDOWN: Duration = Duration::from_secs(5);

/// Serves until interrupted. An error before that, or a lost engine, ends it with that error.
pub fn run(args: &ServeArgs, log: Option<&str>) -> Result<()> {
    let runtime = edge_runtime()?;
    let result = runtime.block_on(serve(args, log));
    // A load that was interrupted still holds a thread; the process does not wait for it.
    runtime.shutdown_background();
    result
}

async fn serve(args: &ServeArgs, log: Option<&str>) -> Result<()> {
    let workers = if nodes::are_asked_for(&args.nodes)? { Some(nodes::runtime_folder()?) } else { None };
    let settings = api_settings(args)?;
    let tls = open_tls(args)?;
    let at = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind(&at).await.with_context(|| format!("listening on {at}"))?;
    let address = listener.local_addr()?;
    let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
    warn_if_exposed(address.ip(), settings.keys.is_some(), tls.is_some());
    info!("listening on {url} while the model loads");
    let ollama = listen_as_ollama(args.ollama_port, address).await;
    let grpc = listen_for_grpc(args, tls.is_some()).await?;
    follow_files(settings.keys.as_ref(), tls.as_ref());
    let (state, ready) = ApiState::new(settings);
    let (ended, lost) = oneshot::channel();
    let loading = start_loading(args, log, workers.as_ref().map(TempDir::path));
    let running = Arc::new(OnceLock::new());
    let watching = tokio::spawn(announce_and_watch(loading, ready, url, running.clone(), ended));
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
    // All listeners end with the first one's shutdown.
    let (end, ending) = watch::channel(false);
    let main = async {
        let served =
            tandem_api::serve(listening(listener, tls.as_ref()), state.clone(), shutdown_then(shutdown, end)).await;
        served.context("serving HTTP")
    };
    let beside = async {
        let Some(ollama) = ollama else { return Ok(()) };
        let served = tandem_api::serve_ollama(ollama, state.clone(), raised(ending.clone())).await;
        served.context("serving HTTP at Ollama's port")
    };
    let calls = async {
        let Some(grpc) = grpc else { return Ok(()) };
        let grpc = listening(grpc, tls.as_ref());
        tandem_api::serve_grpc(grpc, state.clone(), raised(ending.clone())).await.context("serving gRPC")
    };
    let (main, beside, calls) = tokio::join!(main, beside, calls);
    watching.abort();
    if let (Some(_), Some(engine)) = (&workers, running.get().cloned()) {
        // So that the workers leave in order; if they take too long, they end with this process.
        let _ = tokio::task::spawn_blocking(move || Engine::shutdown(&engine, ENGINE_SHUTDOWN)).await;
    }
    main.and(beside).and(calls)?;
    failure.map_or(Ok(()), Err)
}

/// Loads the model in this process, or in workers that meet in a folder.
fn start_loading(args: &ServeArgs, log: Option<&str>, folder: Option<&Path>) -> JoinHandle<Result<Loaded>> {
    let (args, log, folder) = (args.clone(), log.map(str::to_owned), folder.map(Path::to_owned));
    tokio::task::spawn_blocking(move || match folder {
        Some(folder) => nodes::load(&args, log.as_deref(), &folder),
        None => load::load(&args.model, Progress::Log),
    })
}

/// Waits for `shutdown` and passes it on.
async fn shutdown_then(shutdown: impl Future<Output = ()>, end: watch::Sender<bool>) {
    shutdown.await;
    end.send_replace(true);
}

async fn raised(mut flag: watch::Receiver<bool>) {
    // Without a sender it is over, too.
    drop(flag.wait_for(|&raised| raised).await);
}

fn listening(listener: TcpListener, tls: Option<&Tls>) -> Listening {
    match tls {
        Some(tls) => Listening::with_tls(listener, tls.clone()),
        None => listener.into(),
    }
}

/// The port for gRPC, if one was asked for.
async fn listen_for_grpc(args: &ServeArgs, has_tls: bool) -> Result<Option<TcpListener>> {
    let Some(port) = args.grpc_port else { return Ok(None) };
    let at = format!("{}:{port}", args.host);
    let listener = TcpListener::bind(&at).await.with_context(|| format!("listening on {at} (--grpc-port)"))?;
    let scheme = if has_tls { "https" } else { "http" };
    info!("listening for gRPC on {scheme}://{}", listener.local_addr()?);
    Ok(Some(listener))
}

/// The port where Ollama's clients look first, if it is to be had: where it is not, Ollama itself may be running.
async fn listen_as_ollama(port: u16, main: SocketAddr) -> Option<TcpListener> {
    if port == 0 || port == main.port() {
        return None;
    }
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpListener::bind(at).await {
        Ok(listener) => {
            info!("listening on http://{at} as well, where Ollama's clients look (--ollama-port 0 turns this off)");
            Some(listener)
        }
        Err(error) => {
            info!("not listening on {at} for Ollama's clients: {error} (is Ollama running?)");
            None
        }
    }
}

/// Makes the model available when it is loaded, then watches over the engine. Sends the error that should end it all.
async fn announce_and_watch(
    loading: JoinHandle<Result<Loaded>>,
    ready: ReadyFlag,
    url: String,
    running: Arc<OnceLock<Engine>>,
    ended: oneshot::Sender<anyhow::Error>,
) {
    let error = match loading.await {
        Ok(Ok(loaded)) => {
            let engine = loaded.engine.clone();
            running.get_or_init(|| engine.clone());
            let info = model_info(&loaded);
            let changes = Changes { info: info.clone(), formats: loaded.formats.clone(), seen: loaded.changes.clone() };
            announce(loaded, info, &ready, &url);
            tokio::select! {
                error = watch(engine) => error,
                never = changes.follow(&ready) => match never {},
            }
        }
        Ok(Err(error)) => error,
        Err(error) => anyhow!("loading the model: {error}"),
    };
    // Nobody listens only when the server is ending anyway.
    let _ = ended.send(error);
}

fn announce(loaded: Loaded, info: ModelInfo, ready: &ReadyFlag, url: &str) {
    if let Some(notice) = loaded.notice {
        warn!("{notice}");
    }
    ready.ready(loaded.engine.clone(), info);
    info!("ready: {} at {url} (OpenAI clients: {url}/v1)", loaded.name);
}

/// Who computes, while that changes.
struct Changes {
    info: ModelInfo,
    formats: String,
    seen: Option<watch::Receiver<Option<Formation>>>,
}

impl Changes {
    /// Tells the edge, for ever.
    async fn follow(self, ready: &ReadyFlag) -> Infallible {
        if let Some(mut seen) = self.seen {
            while seen.changed().await.is_ok() {
                let Some(formation) = seen.borrow_and_update().clone() else { continue };
                ready.changed(computed_by(self.info.clone(), &self.formats, &formation));
            }
        }
        std::future::pending().await
    }
}

/// Ends with the reason why the engine no longer runs.
async fn watch(engine: Engine) -> anyhow::Error {
    loop {
        tokio::time::sleep(HEALTH_INTERVAL).await;
        if let Some(trouble) = engine.ended() {
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

fn warn_if_exposed(ip: IpAddr, has_keys: bool, has_tls: bool) {
    if ip.is_loopback() {
        return;
    }
    if !has_keys {
        warn!("listening on {ip}: everybody who can reach this address can use the model, without a key (--api-keys)");
    }
    if !has_tls {
        warn!("listening on {ip}: conversations and keys travel unencrypted (--tls-certificate)");
    }
}

fn open_tls(args: &ServeArgs) -> Result<Option<Tls>> {
    match (&args.tls_certificate, &args.tls_key) {
        (Some(certificate), Some(key)) => Ok(Some(Tls::open(certificate, key).context("--tls-certificate")?)),
        _ => Ok(None),
    }
}

/// Keeps an eye on files that may be replaced while the server runs.
fn follow_files(keys: Option<&Keyring>, tls: Option<&Tls>) {
    if let Some(keys) = keys {
        info!("{} API keys from {}", keys.count(), keys.path().display());
        tokio::spawn(keys.clone().follow());
    }
    if let Some(tls) = tls {
        tokio::spawn(tls.clone().follow());
    }
}

fn api_settings(args: &ServeArgs) -> Result<ApiSettings> {
    let mut names = args.served_model_name.iter().cloned();
    Ok(ApiSettings {
        served_model_name: names.next(),
        model_aliases: names.collect(),
        body_bytes_max: args.max_body as usize,
        request_timeout: args.request_timeout,
        connections_max: args.max_connections as usize,
        keys: args.api_keys.as_deref().map(Keyring::open).transpose().context("--api-keys")?,
        open_metrics: args.open_metrics,
        cors_origins: Origins::parse(&args.cors_origin).context("--cors-origin")?,
        effort_max: args.max_effort.into(),
        ..ApiSettings::default()
    })
}

fn model_info(loaded: &Loaded) -> ModelInfo {
    let capacity = loaded.engine.capacity();
    let info = ModelInfo {
        id: loaded.name.clone(),
        vocab: capacity.vocab,
        context: capacity.context,
        parameters: loaded.parameters,
        checkpoint_bytes: loaded.checkpoint_bytes,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        notice: loaded.notice.map(str::to_owned),
        computes_here: loaded.computes_here,
        ..ModelInfo::default()
    };
    computed_by(info, &loaded.formats, &loaded.formation)
}

/// The same model, computed by these.
fn computed_by(info: ModelInfo, formats: &str, formation: &Formation) -> ModelInfo {
    let line = |line: &MemoryLine| MemoryUse { purpose: line.what.into(), bytes: line.bytes, note: line.note.clone() };
    let report = |node: &Node| NodeReport {
        name: node.name.clone(),
        device: node.device.clone(),
        formats: formats.to_owned(),
        memory: formation.memory.lines.iter().map(line).collect(),
        budget_bytes: formation.memory.budget_bytes,
        resident_bytes: None,
    };
    ModelInfo {
        nodes: formation.nodes.iter().map(report).collect(),
        link: formation.link.clone(),
        degraded: formation.degraded.clone(),
        ..info
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
