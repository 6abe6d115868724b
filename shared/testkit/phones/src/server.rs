//! A provider's listener: which clients may connect, and for how long.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::behaviour::Behaviour;
use crate::connection;
use crate::error::StartError;
use crate::provider::Provider;
use crate::state::State;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1_024;
/// How long to wait before the system is asked again for a port or a file descriptor.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// A change of a provider's behaviour, and the caller that waits for it to be in force.
pub(crate) struct Command {
    pub(crate) behaviour: Behaviour,
    pub(crate) done: oneshot::Sender<()>,
}

/// A running listener. Dropping it closes it and its connections.
pub(crate) struct Server {
    pub(crate) commands: mpsc::Sender<Command>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    /// Accepts connections on this port.
    pub(crate) fn start(provider: Provider, port: Port, tls: TlsAcceptor, state: Arc<State>) -> Self {
        let (commands, received) = mpsc::channel(1);
        let (behaviour, connections) = (watch::Sender::default(), JoinSet::new());
        let task = Task { provider, port, tls, state, behaviour, connections };
        Self { commands, _task: AbortOnDropHandle::new(tokio::spawn(task.run(received))) }
    }
}

struct Task {
    provider: Provider,
    port: Port,
    tls: TlsAcceptor,
    state: Arc<State>,
    behaviour: watch::Sender<Behaviour>,
    connections: JoinSet<()>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => {
                    let Some(Command { behaviour, done }) = command else { return };
                    self.change(behaviour).await;
                    let _the_caller_is_gone = done.send(());
                }
                accepted = self.port.accept() => match accepted {
                    Ok(stream) => self.serve(stream),
                    Err(_) => sleep(PAUSE).await,
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    fn serve(&mut self, stream: TcpStream) {
        if *self.behaviour.borrow() != Behaviour::Closed {
            let (tls, behaviour, state) = (self.tls.clone(), self.behaviour.subscribe(), self.state.clone());
            self.connections.spawn(connection::serve(self.provider, stream, tls, behaviour, state));
        }
    }

    /// Returns when the behaviour is in force.
    async fn change(&mut self, behaviour: Behaviour) {
        if behaviour == Behaviour::Refuse {
            self.port.refuse();
        }
        self.behaviour.send_replace(behaviour);
        if matches!(behaviour, Behaviour::Refuse | Behaviour::Closed) {
            self.connections.shutdown().await;
        }
        if behaviour != Behaviour::Refuse {
            self.port.listen().await;
        }
    }
}

/// A port of this process, with a listener or without: then connections are refused.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    listener: Option<TcpListener>,
    /// Keeps the port while there is no listener, so that no other process gets it.
    reserved: Option<TcpSocket>,
}

impl Port {
    /// Listens on this address; port 0 stands for any.
    pub(crate) fn open(address: SocketAddr) -> Result<Self, StartError> {
        let attempt = || {
            let listener = bind(address)?.listen(BACKLOG)?;
            Ok(Self { address: listener.local_addr()?, listener: Some(listener), reserved: None })
        };
        attempt().map_err(|source| StartError::Listen { address, source })
    }

    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        match &self.listener {
            Some(listener) => Ok(listener.accept().await?.0),
            None => pending().await,
        }
    }

    fn refuse(&mut self) {
        // The listener is dropped first, or the port could not be bound.
        if self.listener.take().is_some() {
            self.reserved = bind(self.address).ok();
        }
    }

    /// Returns when it listens: at once, unless another process took the port at the moment the listener was dropped.
    async fn listen(&mut self) {
        while self.listener.is_none() {
            let socket = self.reserved.take().map_or_else(|| bind(self.address), Ok);
            match socket.and_then(|socket| socket.listen(BACKLOG)) {
                Ok(listener) => self.listener = Some(listener),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of an earlier listener may still exist.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
