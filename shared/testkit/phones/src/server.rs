//! A provider's listener: which clients may connect, and for how long.

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

use crate::Shared;
use crate::conduct::Conduct;
use crate::connection;
use crate::error::StartError;
use crate::provider::Provider;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1_024;
/// How long to wait before the system is asked again for a port or a file descriptor.
const PAUSE: Duration = Duration::from_millis(10);

/// A change of a provider's conduct, and the caller that waits for it to be in force.
pub(crate) struct Command {
    pub(crate) conduct: Conduct,
    pub(crate) done: oneshot::Sender<()>,
}

/// A running listener. Dropping it closes it and its connections.
pub(crate) struct Server {
    pub(crate) commands: mpsc::Sender<Command>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    /// Accepts connections on the listener of [`listen`].
    pub(crate) fn start(
        provider: Provider,
        listener: TcpListener,
        address: SocketAddr,
        tls: TlsAcceptor,
        shared: Arc<Shared>,
    ) -> Self {
        let (commands, taken) = mpsc::channel(1);
        let door = Door::Open(listener);
        let conduct = watch::Sender::default();
        let task = Task { provider, address, tls, shared, conduct, door, connections: JoinSet::new() };
        Self { commands, _task: AbortOnDropHandle::new(tokio::spawn(task.run(taken))) }
    }
}

/// Listens on this address; returns it with the actual port where that was 0.
pub(crate) fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let attempt = || {
        let listener = bind(address)?.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    attempt().map_err(|source| StartError::Listen { address, source })
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections from before the port was shut may still exist.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

struct Task {
    provider: Provider,
    address: SocketAddr,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    conduct: watch::Sender<Conduct>,
    door: Door,
    connections: JoinSet<()>,
}

enum Door {
    Open(TcpListener),
    /// The port is kept, so that no other process gets it, without a listener: connections are refused.
    Shut(Option<TcpSocket>),
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => {
                    let Some(Command { conduct, done }) = command else { return };
                    self.change(conduct).await;
                    let _nobody_waits = done.send(());
                }
                accepted = self.door.accept() => match accepted {
                    Ok(stream) => self.greet(stream),
                    Err(_) => sleep(PAUSE).await,
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    fn greet(&mut self, stream: TcpStream) {
        if *self.conduct.borrow() == Conduct::Closed {
            return;
        }
        let conduct = self.conduct.subscribe();
        let (tls, shared) = (self.tls.clone(), self.shared.clone());
        self.connections.spawn(connection::serve(self.provider, stream, tls, conduct, shared));
    }

    /// Returns when the conduct is in force.
    async fn change(&mut self, conduct: Conduct) {
        let drops = matches!(conduct, Conduct::Refuse | Conduct::Closed);
        if conduct == Conduct::Refuse {
            self.door.shut(self.address);
        }
        self.conduct.send_replace(conduct.clone());
        if drops {
            self.connections.shutdown().await;
        }
        if conduct != Conduct::Refuse {
            self.door.open(self.address).await;
        }
    }
}

impl Door {
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Open(listener) => Ok(listener.accept().await?.0),
            Self::Shut(_) => std::future::pending().await,
        }
    }

    fn shut(&mut self, address: SocketAddr) {
        if matches!(self, Self::Open(_)) {
            // The listener is dropped first, or the port could not be bound.
            *self = Self::Shut(None);
            *self = Self::Shut(bind(address).ok());
        }
    }

    /// Returns when it is open: at once, unless another process took the port at the moment it was shut.
    async fn open(&mut self, address: SocketAddr) {
        while let Self::Shut(kept) = self {
            let socket = kept.take().map_or_else(|| bind(address), Ok);
            match socket.and_then(|socket| socket.listen(BACKLOG)) {
                Ok(listener) => *self = Self::Open(listener),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}
