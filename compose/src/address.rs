//! The address of a Naru on this machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The address to call from this machine to reach a server at `listen`: "all addresses" can't be called.
pub fn from_here(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => {
            (Ipv4Addr::LOCALHOST, address.port()).into()
        }
        SocketAddr::V6(address) if address.ip().is_unspecified() => {
            (Ipv6Addr::LOCALHOST, address.port()).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_called_by_loopback() {
        for (listen, called) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[fe80::1]:80", "[fe80::1]:80"),
        ] {
            assert_eq!(from_here(listen.parse().unwrap()).to_string(), called);
        }
    }
}
