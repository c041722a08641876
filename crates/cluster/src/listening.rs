//! Where workers come in.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::Token;
use crate::doorkeeper::Doorkeeper;
use crate::member::{COMMANDS_MAX, Caller, Member, SharedLobby, Terms, keep, reports};
use crate::proto::cluster_server::{Cluster, ClusterServer};
use crate::proto::{Command, Report};

/// Connections at a time that have not joined yet; further ones are closed.
const STRANGERS_MAX: usize = 16;
/// Largest message from a worker: more than a result with twenty alternatives at each position of the largest step. Strangers can
/// make us hold as much, each once.
const REPORT_BYTES_MAX: usize = 8 << 20;
/// After failing to accept, which happens for want of file descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// A door and who may come in by it.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) terms: Arc<Terms>,
    pub(crate) token: Token,
    pub(crate) lobby: SharedLobby,
    pub(crate) doorkeeper: Arc<Doorkeeper>,
    /// Whether it is the one for children of this process.
    pub(crate) is_local: bool,
    /// With what connections are encrypted, if they are.
    pub(crate) tls: Option<Acceptors>,
}

/// Gives what accepts the next TLS connection: certificates may be replaced in between.
pub type Acceptors = Arc<dyn Fn() -> TlsAcceptor + Send + Sync>;

impl Door {
    /// Lets workers of this machine in until dropped.
    pub(crate) async fn open_unix(self, listener: UnixListener) {
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        let mut connections = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((io, _)) => {
                    if let Some(visit) = self.receive(None, &strangers, &mut connections) {
                        connections.spawn(visit.serve(io));
                    }
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Lets workers of other machines in until dropped.
    pub(crate) async fn open_tcp(self, listener: TcpListener) {
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        let mut connections = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((io, address)) => {
                    // Plans are small and urgent. Where this fails they are only slower.
                    let _ = io.set_nodelay(true);
                    let ours = io.local_addr().map_or(address.ip(), |ours| ours.ip());
                    if let Some(visit) = self.receive(Some((address.ip(), ours)), &strangers, &mut connections) {
                        connections.spawn(visit.serve_network(io));
                    }
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// A connection, unless there are too many. `addresses`: the caller's and ours.
    fn receive(
        &self,
        addresses: Option<(IpAddr, IpAddr)>,
        strangers: &Arc<Semaphore>,
        connections: &mut JoinSet<()>,
    ) -> Option<Visit> {
        let source = addresses.map_or("a process of this machine".into(), |(theirs, _)| theirs.to_string());
        while connections.try_join_next().is_some() {}
        let Ok(permit) = strangers.clone().try_acquire_owned() else {
            self.doorkeeper.refuse(&source, "too many connections have not joined yet");
            return None;
        };
        let permit = Arc::new(Some(permit).into());
        Some(Visit { door: self.clone(), source, addresses, has_joined: Arc::default(), permit })
    }
}

/// One connection.
#[derive(Clone)]
struct Visit {
    door: Door,
    source: String,
    addresses: Option<(IpAddr, IpAddr)>,
    has_joined: Arc<AtomicBool>,
    /// Given back when it has joined.
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Visit {
    /// Agrees on TLS first, where that is asked for.
    async fn serve_network(self, io: TcpStream) {
        let Some(acceptors) = &self.door.tls else { return self.serve(io).await };
        match timeout(self.door.terms.deadlines.handshake, acceptors().accept(io)).await {
            Ok(Ok(io)) => self.serve(io).await,
            Ok(Err(error)) => self.door.doorkeeper.refuse(
                &self.source,
                format_args!("no TLS with it ({error}); a worker needs --cluster-ca-certificate"),
            ),
            Err(_) => self.door.doorkeeper.refuse(&self.source, "it did not join in time"),
        }
    }

    async fn serve<I>(self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = ClusterServer::new(self.clone()).max_decoding_message_size(REPORT_BYTES_MAX);
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).max_concurrent_streams(1);
        let connection = http.serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
        let patience = async {
            sleep(self.door.terms.deadlines.handshake).await;
            if self.has_joined.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = connection => if let (Err(error), false) = (ended, self.has_joined.load(Ordering::Acquire)) {
                self.door.doorkeeper.refuse(&self.source, format_args!("it does not speak the protocol ({error})"));
            },
            () = patience => self.door.doorkeeper.refuse(&self.source, "it did not join in time"),
        }
    }

    /// From the first word to the last.
    async fn attend(self, mut reports_in: Streaming<Report>, commands: mpsc::Sender<Command>) {
        let Door { terms, token, lobby, doorkeeper, is_local, .. } = &self.door;
        let mut caller = Caller { terms, token, commands: &commands, reports: &mut reports_in };
        let host = match timeout(terms.deadlines.handshake, caller.handshake()).await {
            Ok(Ok(host)) => host,
            Ok(Err(reason)) => return doorkeeper.refuse(&self.source, reason),
            Err(_) => return doorkeeper.refuse(&self.source, "it did not join in time"),
        };
        if caller.accept().await.is_err() {
            return;
        }
        let (heard, reports) = reports();
        let (is_local, source, addresses) = (*is_local, self.source.clone(), self.addresses);
        let member = Member { host, is_local, source, addresses, commands: commands.clone(), reports };
        if !lobby.enter(member) {
            // The answer is lost only with the caller.
            let _: Result<(), String> = caller.refuse("no further worker is needed now".into(), true).await;
            return;
        }
        self.has_joined.store(true, Ordering::Release);
        // A permit that is not given back shuts the door a little; a poisoned lock does no harm.
        drop(self.permit.lock().map(|mut permit| permit.take()));
        keep(reports_in, commands, heard, terms.deadlines).await;
    }
}

#[tonic::async_trait]
impl Cluster for Visit {
    type AttendStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Command, Status>> + Send>>;

    async fn attend(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::AttendStream>, Status> {
        let (commands, said) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(self.clone().attend(request.into_inner(), commands));
        Ok(Response::new(Box::pin(ReceiverStream::new(said).map(Ok))))
    }
}
