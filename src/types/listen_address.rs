//! An address to listen on, as Go programs and Prometheus write it.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use anyhow::{Context, Error, Result, anyhow};

/// An address and port to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    text: String,
    /// The first one that can be bound is used: without IPv6 there is no `::`.
    pub candidates: Vec<SocketAddr>,
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads `ADDRESS:PORT`, `:PORT` for all addresses, and `localhost:PORT`.
impl FromStr for ListenAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let candidates = candidates(text);
        let candidates = candidates.context("expected ADDRESS:PORT, :PORT or localhost:PORT")?;
        Ok(Self {
            text: text.to_owned(),
            candidates,
        })
    }
}

fn candidates(text: &str) -> Result<Vec<SocketAddr>> {
    let (host, port) = text.rsplit_once(':').context("there is no port")?;
    let port = || port.parse::<u16>().map_err(|_| anyhow!("invalid port"));
    Ok(match host {
        "" => vec![
            (Ipv6Addr::UNSPECIFIED, port()?).into(),
            (Ipv4Addr::UNSPECIFIED, port()?).into(),
        ],
        "localhost" => vec![(Ipv4Addr::LOCALHOST, port()?).into()],
        _ => match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            // Go allows brackets around any address: manifests can put them around a node's.
            Some(address) => vec![SocketAddr::new(address.parse()?, port()?)],
            None => vec![text.parse()?],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, expected) in [
            (":9403", "[::]:9403 0.0.0.0:9403"),
            ("localhost:9403", "127.0.0.1:9403"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:9403", "[::1]:9403"),
            ("[192.0.2.1]:9403", "192.0.2.1:9403"),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            let candidates = address.candidates.iter().map(SocketAddr::to_string);
            assert_eq!(candidates.collect::<Vec<_>>().join(" "), expected);
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "9403",
            ":",
            ":x",
            ":65536",
            "::1:9403",
            "[]:1",
            "[::1]",
            "example.com:1",
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(format!("{error:#}").contains(":PORT"), "{text}: {error:#}");
        }
    }
}
