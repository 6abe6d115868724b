//! The IP address of the client: that of the connection's other end, or behind trusted proxies the one that they tell.
//!
//! A client can send any header. So a header counts only when a trusted proxy has sent it, and is read from its end: each
//! proxy appends the address that it was called from, so the last entry that is not a trusted proxy is the client.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use serde::Deserialize;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The header in which the trusted proxies tell the client's address. It is one header by configuration: most proxies set
/// one of the two, and pass on what the client has sent in the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyHeader {
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// A range of addresses, as `10.0.0.0/8` or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

/// Why a text is no network.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidNetwork(String);

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an IP address or a range like 10.0.0.0/8", self.0)
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let single = |_| text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(single).map(Self).map_err(|_| InvalidNetwork(text.to_owned()))
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The address of a request's client, in the extensions of each request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// The address of the client that sent these headers over a connection from `peer`.
pub(crate) fn client_address(
    peer: SocketAddr,
    headers: &HeaderMap,
    trusted: &[Network],
    header: ProxyHeader,
) -> ClientAddress {
    // `::ffff:10.0.0.1` is how a socket for both families shows 10.0.0.1.
    let mut client = peer.ip().to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|Network(network)| network.contains(&address));
    if !is_trusted(client) {
        return ClientAddress(client);
    }
    let name = match header {
        ProxyHeader::XForwardedFor => X_FORWARDED_FOR,
        ProxyHeader::Forwarded => FORWARDED,
    };
    let lines: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("")).collect();
    for entry in lines.join(",").rsplit(',') {
        let node = match header {
            ProxyHeader::XForwardedFor => Some(entry),
            ProxyHeader::Forwarded => forwarded_for(entry),
        };
        // An entry that is no address ("unknown") hides those before it: the last proxy stands for all behind it.
        let Some(told) = node.and_then(address) else { break };
        client = told;
        if !is_trusted(client) {
            break;
        }
    }
    ClientAddress(client)
}

/// The node of the parameter `for` in one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value)
    })
}

/// The address of a node, which may have a port, and is quoted in `Forwarded` when it holds a colon.
fn address(node: &str) -> Option<IpAddr> {
    let node = node.trim().trim_matches('"');
    let bare = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
    let with_port = || node.parse().ok().map(|address: SocketAddr| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use naru_runtime::{Program, Settings};

    use super::*;
    use crate::Config;

    fn client(peer: &str, header: ProxyHeader, lines: &[&'static str]) -> String {
        let trusted: Vec<Network> =
            ["10.0.0.0/8", "192.0.2.7", "fd00::/8"].map(|network| network.parse().unwrap()).into();
        let mut headers = HeaderMap::new();
        let name = if header == ProxyHeader::Forwarded { FORWARDED } else { X_FORWARDED_FOR };
        for line in lines {
            headers.append(name.clone(), HeaderValue::from_static(line));
        }
        client_address(peer.parse().unwrap(), &headers, &trusted, header).0.to_string()
    }

    #[test]
    fn a_header_counts_only_behind_trusted_proxies_and_from_its_end() {
        let told = |peer: &str, lines: &[&'static str]| client(peer, ProxyHeader::XForwardedFor, lines);
        for (peer, lines, wanted) in [
            ("203.0.113.9:5000", &["198.51.100.1"][..], "203.0.113.9"),
            ("10.1.2.3:5000", &[], "10.1.2.3"),
            ("10.1.2.3:5000", &["198.51.100.1"], "198.51.100.1"),
            ("[::ffff:10.1.2.3]:5000", &["198.51.100.1"], "198.51.100.1"),
            ("[fd00::1]:5000", &["2001:db8::7"], "2001:db8::7"),
            // What the client wrote itself comes before what the first proxy has appended.
            ("10.1.2.3:5000", &["127.0.0.1, 198.51.100.1"], "198.51.100.1"),
            ("10.1.2.3:5000", &["6.6.6.6", "198.51.100.1, 192.0.2.7"], "198.51.100.1"),
            ("10.1.2.3:5000", &["198.51.100.1, 6.6.6.6, 10.9.9.9"], "6.6.6.6"),
            // All are proxies: the first of them is as far as is known.
            ("10.1.2.3:5000", &["10.7.7.7, 10.9.9.9"], "10.7.7.7"),
            ("10.1.2.3:5000", &["198.51.100.1, unknown"], "10.1.2.3"),
            ("10.1.2.3:5000", &["198.51.100.1, unknown, 10.9.9.9"], "10.9.9.9"),
            ("10.1.2.3:5000", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.1.2.3:5000", &["[2001:db8::7]:4711"], "2001:db8::7"),
            ("10.1.2.3:5000", &["198.51.100.1,"], "10.1.2.3"),
            ("192.0.2.8:5000", &["198.51.100.1"], "192.0.2.8"),
        ] {
            assert_eq!(told(peer, lines), wanted, "{peer} {lines:?}");
        }
        let both = [(X_FORWARDED_FOR, "198.51.100.1"), (FORWARDED, "for=6.6.6.6")];
        let both = both.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let peer = "10.1.2.3:5000".parse().unwrap();
        let told = client_address(peer, &both, &trusted, ProxyHeader::XForwardedFor);
        assert_eq!(told.0.to_string(), "198.51.100.1");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let told = |line: &'static str| client("10.1.2.3:5000", ProxyHeader::Forwarded, &[line]);
        for (line, wanted) in [
            ("for=198.51.100.1", "198.51.100.1"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=6.6.6.6, for=198.51.100.1;proto=https;by=203.0.113.43", "198.51.100.1"),
            ("proto=https; for=198.51.100.1, for=10.9.9.9", "198.51.100.1"),
            ("for=198.51.100.1, for=_hidden", "10.1.2.3"),
            ("by=198.51.100.1", "10.1.2.3"),
        ] {
            assert_eq!(told(line), wanted, "{line}");
        }
    }

    #[test]
    fn the_keys_are_those_of_the_schema() {
        const PROGRAM: Program = Program { name: "gateway", about: "", overrides: &[] };
        let configured = |environment: &[(&str, &str)]| {
            let matches = Settings::command(&PROGRAM).get_matches_from(["gateway"]);
            let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            Settings::load(&PROGRAM, &matches, environment).and_then(|settings| settings.pick::<Config>())
        };
        let plain = configured(&[]).unwrap();
        assert_eq!((plain.trusted_proxies, plain.proxy_header), (Vec::new(), ProxyHeader::XForwardedFor));
        let proxies = ("NARU_TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.7");
        let behind = configured(&[proxies, ("NARU_PROXY_HEADER", "forwarded")]).unwrap();
        assert_eq!(behind.trusted_proxies, ["10.0.0.0/8", "192.0.2.7"].map(|text| text.parse().unwrap()));
        assert_eq!(behind.proxy_header, ProxyHeader::Forwarded);
        let refused = configured(&[("NARU_TRUSTED_PROXIES", "10.0.0.0/33")]).unwrap_err().to_string();
        assert!(refused.contains("trusted_proxies"), "{refused}");
        assert!(configured(&[("NARU_PROXY_HEADER", "x-real-ip")]).is_err());
    }

    #[test]
    fn a_network_is_an_address_or_a_range() {
        let contains = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().0.contains(&address.parse::<IpAddr>().unwrap())
        };
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("192.0.2.128/25", "192.0.2.255", "192.0.2.127"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("::/0", "2001:db8::1", "203.0.113.9"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ] {
            assert!(contains(network, inside), "{network} {inside}");
            assert!(!contains(network, outside), "{network} {outside}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "::/129", "localhost", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
