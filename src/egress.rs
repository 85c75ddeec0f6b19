//! Requests that others make us send: webhooks, and pictures by address.
//!
//! Whoever names an address could mean a machine that only we can reach: a router, a cloud's metadata, a database on
//! loopback. So a name is resolved once, what it resolves to is judged, and the connection goes to that very address.
//! No redirect is followed and no proxy asked: both would connect where nobody has looked.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Who may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Addresses of the public internet.
    Public,
    Anywhere,
}

/// Why an address is not called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("it is no URL")]
    Unreadable,
    #[error("it begins with neither https:// nor http://")]
    Scheme,
    #[error("it holds a user name or a password")]
    Credentials,
    #[error("it names no host")]
    NoHost,
    #[error("{0} is not an address of the public internet")]
    Private(IpAddr),
}

/// Reads a URL and judges what can be judged without asking anybody.
///
/// # Errors
/// No URL of the web, or one whose host is written as a private address where only public ones are wanted.
pub fn check(text: &str, reach: Reach) -> Result<Url, AddressError> {
    let url = Url::parse(text).map_err(|_| AddressError::Unreadable)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(AddressError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(AddressError::Credentials);
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(AddressError::NoHost)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(address) if reach == Reach::Public && !is_public(address) => Err(AddressError::Private(address)),
        Ok(_) | Err(_) => Ok(url),
    }
}

/// Two clients, one for each reach. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Egress {
    public: Client,
    anywhere: Client,
}

impl Egress {
    /// # Errors
    /// TLS that cannot be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("Atelier/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                // Each request judges its own address.
                .pool_max_idle_per_host(0)
        };
        Ok(Self { public: builder().dns_resolver(Arc::new(PublicOnly)).build()?, anywhere: builder().build()? })
    }

    /// The client for `reach`; the URL is to be [`check`]ed first, for a literal address is never resolved.
    pub fn client(&self, reach: Reach) -> &Client {
        match reach {
            Reach::Public => &self.public,
            Reach::Anywhere => &self.anywhere,
        }
    }
}

/// The system's resolver, of which only public answers count.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<_> = found.into_iter().filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("{} has no address of the public internet", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// The innermost cause, without the URL.
pub fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause = std::error::Error::source(error);
    let mut innermost = "the request failed".to_owned();
    while let Some(inner) = cause {
        innermost = inner.to_string();
        cause = inner.source();
    }
    innermost
}

/// Whether an address belongs to the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// The blocks of IANA's registry of special addresses that are not reachable globally.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b)))
}

/// Global unicast without what is set apart in it; where an address carries an older one, that one counts.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match address.segments() {
        // Mapped, translated by NAT64, and 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            embedded(high, low)
        }
        // Protocols' own, among them Teredo; documentation.
        [0x2001, 0..0x200 | 0x0db8, ..] | [0x3fff, 0..0x1000, ..] => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_the_public_internet_is_known() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff:1::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().expect(private)), "{private}");
        }
        for public in [
            "1.1.1.1",
            "9.9.9.9",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert!(is_public(public.parse().expect(public)), "{public}");
        }
    }

    #[test]
    fn a_literal_address_is_judged_however_it_is_written() {
        for hidden in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://[::1]:8470/",
            "http://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest",
            "http://0/",
            "http://１２７.0.0.1/",
        ] {
            assert!(matches!(check(hidden, Reach::Public), Err(AddressError::Private(_))), "{hidden}");
            assert!(check(hidden, Reach::Anywhere).is_ok(), "{hidden}");
        }
        assert!(check("https://example.org:8443/a?b", Reach::Public).is_ok());
    }

    #[test]
    fn only_plain_addresses_of_the_web_are_taken() {
        let of = |text: &str| check(text, Reach::Anywhere).expect_err(text);
        assert_eq!(of("example.org/hook"), AddressError::Unreadable);
        assert_eq!(of(""), AddressError::Unreadable);
        assert_eq!(of("https://"), AddressError::Unreadable);
        assert_eq!(of("file:///etc/passwd"), AddressError::Scheme);
        assert_eq!(of("gopher://example.org/"), AddressError::Scheme);
        assert_eq!(of("https://me:secret@example.org/"), AddressError::Credentials);
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_called() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://localhost:{}/", listener.local_addr().expect("address").port());
        let url = check(&url, Reach::Public).expect("a name is judged when it is resolved");
        let egress = Egress::new().expect("clients");
        let error = egress.client(Reach::Public).get(url.clone()).send().await.expect_err("refused");
        assert!(format!("{error:?}").contains("public internet"), "{error:?}");
        let connected = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(connected.is_err(), "nobody has connected");
    }
}
