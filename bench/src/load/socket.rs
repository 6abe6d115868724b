//! A connection with its buffers: it blocks while a session is opened, and never afterwards.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// How long each step of opening a session may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes read at a time while a session is opened.
const OPENING_READ: usize = 4096;

#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    /// Bytes read and not taken yet: part of a frame at most, between reads.
    pub input: Vec<u8>,
    /// Bytes to be written.
    pub output: Vec<u8>,
}

impl Socket {
    /// Connects to `HOST:PORT`, from this address of the machine if one is given: each address has its own ports.
    pub fn connect(authority: &str, source: Option<IpAddr>) -> anyhow::Result<Self> {
        let target = authority.to_socket_addrs()?.next().context("the host has no address")?;
        let tcp = match source {
            None => TcpStream::connect(target),
            Some(source) => connect_from(source, target),
        };
        let tcp = tcp.with_context(|| format!("no TCP connection to {authority}"))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(STEP_TIMEOUT))?;
        tcp.set_write_timeout(Some(STEP_TIMEOUT))?;
        Ok(Self { tcp, input: Vec::new(), output: Vec::new() })
    }

    /// Waits until more bytes have come.
    pub fn read_more(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; OPENING_READ];
        let count = self.tcp.read(&mut buffer).context("nothing came in time")?;
        anyhow::ensure!(count > 0, "the connection ended while a session was opened");
        self.input.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// Waits until all of this is written.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tcp.write_all(bytes)
    }

    /// From now on no call blocks, and the input buffer takes no spare space.
    pub fn opened(&mut self) -> io::Result<()> {
        self.input.shrink_to_fit();
        self.tcp.set_nonblocking(true)
    }

    /// Reads available bytes: `None` if there are none, 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        would_block(self.tcp.read(buffer))
    }

    /// Writes as much as the system takes now; true if nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match would_block(self.tcp.write(&self.output))? {
                None => return Ok(false),
                Some(0) => return Err(ErrorKind::WriteZero.into()),
                Some(count) if count == self.output.len() => self.output.clear(),
                Some(count) => drop(self.output.drain(..count)),
            }
        }
        Ok(true)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

fn connect_from(source: IpAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket(family, SocketType::STREAM, None)?;
    bind(&fd, &SocketAddr::new(source, 0))?;
    connect(&fd, &target)?;
    Ok(fd.into())
}
