//! Opening a session, in each of the ways the contract allows and some that it forbids.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, lookup_host},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        handshake::client::Request,
        http::{HeaderName, HeaderValue, Uri, header},
        protocol::WebSocketConfig,
    },
};

use crate::Client;

/// How to open a session.
#[derive(Debug, Clone)]
pub struct Connect {
    base_url: String,
    token: Option<String>,
    in_subprotocol: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
    source: Option<IpAddr>,
}

/// Why a session was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server answered the upgrade with another status than 101.
    #[error("refused with HTTP {status}: {body}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The body as text.
        body: String,
    },
    /// No TCP connection was made.
    #[error("no TCP connection to {authority}")]
    Unreachable {
        /// `host:port`.
        authority: String,
        /// The system's error.
        source: io::Error,
    },
    /// The answer is not a correct WebSocket handshake.
    #[error("the WebSocket handshake failed")]
    Handshake(#[source] Box<tungstenite::Error>),
}

impl ConnectError {
    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. } | Self::Handshake(_) => None,
        }
    }
}

impl Connect {
    /// Connects to `/ws` of the server at `base_url` (`http://host:port`), with `Authorization: Bearer <token>`.
    pub fn to(base_url: &str, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..Self::without_token(base_url) }
    }

    /// The same without any token.
    pub fn without_token(base_url: &str) -> Self {
        Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            token: None,
            in_subprotocol: false,
            headers: Vec::new(),
            source: None,
        }
    }

    /// Presents the token as browsers must: `Sec-WebSocket-Protocol: naru.v1, bearer.<token>`. An answer that does not
    /// choose one of the two is a [`ConnectError::Handshake`].
    pub fn as_browser(mut self) -> Self {
        self.in_subprotocol = true;
        self
    }

    /// Adds a header, such as `Origin`.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((HeaderName::from_static(name), value.parse().expect("a legal header value")));
        self
    }

    /// Connects from this address of the machine; each address has its own set of ports.
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Opens the session and reads it in the background.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        Client::open(self).await
    }

    /// Opens the session as a bare stream, for tools that count every allocation.
    pub async fn stream(&self) -> Result<WebSocketStream<TcpStream>, ConnectError> {
        self.handshake(self.tcp().await?).await
    }

    pub(crate) async fn tcp(&self) -> Result<TcpStream, ConnectError> {
        let uri = self.uri();
        let authority = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        let connect = async {
            let tcp = match self.source {
                None => TcpStream::connect(&authority).await?,
                Some(source) => {
                    let target = lookup_host(&authority).await?.next().ok_or(io::ErrorKind::NotFound)?;
                    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                    socket.bind(SocketAddr::new(source, 0))?;
                    socket.connect(target).await?
                }
            };
            tcp.set_nodelay(true)?;
            Ok(tcp)
        };
        connect.await.map_err(|source| ConnectError::Unreachable { authority, source })
    }

    pub(crate) async fn handshake<S>(&self, stream: S) -> Result<WebSocketStream<S>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match client_async_with_config(self.request(), stream, Some(small_buffers())).await {
            Ok((stream, _)) => Ok(stream),
            Err(tungstenite::Error::Http(response)) => Err(ConnectError::Refused {
                status: response.status().as_u16(),
                body: String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned(),
            }),
            Err(error) => Err(ConnectError::Handshake(Box::new(error))),
        }
    }

    fn uri(&self) -> Uri {
        let url = self.base_url.replacen("http", "ws", 1);
        format!("{url}/ws")
            .parse()
            .unwrap_or_else(|error| panic!("{} is not a base URL: {error}", self.base_url))
    }

    fn request(&self) -> Request {
        let mut request = self.uri().into_client_request().expect("a URL with a host");
        let headers = request.headers_mut();
        if let Some(token) = &self.token {
            let (name, value) = if self.in_subprotocol {
                (header::SEC_WEBSOCKET_PROTOCOL, format!("naru.v1, bearer.{token}"))
            } else {
                (header::AUTHORIZATION, format!("Bearer {token}"))
            };
            headers.insert(name, value.parse().expect("a token is legal in a header"));
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        request
    }
}

/// The library's default reserves 128 KiB per connection for reading: half a gigabyte for 4,000 idle connections.
pub(crate) fn small_buffers() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(4 * 1024)
}
