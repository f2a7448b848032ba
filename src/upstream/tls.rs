//! Whom we trust when a server shows its certificate, and how TLS towards it is set up.
//!
//! The certificate must be valid for the name that the configuration gives (RFC 8310's strict profile): there is no
//! way to ask a server that fails this, and none to ask without TLS instead. Sessions are resumed (a reconnect then
//! costs no certificate check); early data is not used, since a question in it could be replayed.
//!
//! Not here: padding (RFC 8467) and EDNS keepalive (RFC 7828). hickory offers neither, so over TLS we do without too:
//! the length of a question tells something of its name, and how long an idle connection lives is a fixed time.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::ring::default_provider,
    pki_types::{
        CertificateDer, ServerName, TrustAnchor,
        pem::{self, PemObject},
    },
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Certificate authorities of one's own, trusted beside those that browsers trust.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Authorities(Vec<TrustAnchor<'static>>);

/// Why a file has no certificate authorities.
#[derive(Debug, Error)]
pub enum InvalidAuthorities {
    /// It begins like PEM and goes on otherwise.
    #[error("it is no PEM text: {0}")]
    Pem(#[source] pem::Error),
    /// There is no certificate in it.
    #[error("there is no certificate in it (PEM, \"-----BEGIN CERTIFICATE-----\")")]
    Empty,
    /// One is damaged, or of a kind that is not known.
    #[error("certificate {number} cannot be used: {source}")]
    Certificate {
        /// Which, counted from 1.
        number: usize,
        /// What rustls says.
        source: rustls::Error,
    },
}

/// Sessions kept for one server. It may give several tickets for each connection.
const SESSIONS: usize = 32;

impl Authorities {
    /// Reads every certificate of a PEM text; what else is in it is passed over.
    ///
    /// # Errors
    /// [`InvalidAuthorities`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidAuthorities> {
        let mut store = RootCertStore::empty();
        for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let certificate = certificate.map_err(InvalidAuthorities::Pem)?;
            let damaged = |source| InvalidAuthorities::Certificate { number: index + 1, source };
            store.add(certificate).map_err(damaged)?;
        }
        if store.is_empty() { Err(InvalidAuthorities::Empty) } else { Ok(Self(store.roots)) }
    }

    /// Every authority that is trusted.
    pub(super) fn with_public(&self) -> Arc<RootCertStore> {
        let public = webpki_roots::TLS_SERVER_ROOTS.iter().cloned();
        Arc::new(public.chain(self.0.iter().cloned()).collect())
    }
}

/// TLS towards one server, with a memory of its sessions.
#[expect(clippy::expect_used, reason = "a property of the provider that is compiled in")]
pub(super) fn client_config(trusted: &Arc<RootCertStore>) -> ClientConfig {
    // The provider is named: what a process-wide default is depends on what else is linked.
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(Arc::clone(trusted))
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config
}

/// A connection, encrypted from here on, to the server that can prove this name. Takes as long as it takes.
pub(super) async fn connect(
    stream: TcpStream,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(config).connect(name, stream).await
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::{HandshakeKind, ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn the_second_connection_resumes_the_session_of_the_first() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["dns.example".into()]).unwrap().self_signed(&key).unwrap();
        let trusted = Authorities::from_pem(certificate.pem().as_bytes()).unwrap().with_public();
        let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(server));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        let config = Arc::new(client_config(&trusted));
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let name = ServerName::try_from("dns.example").unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = connect(stream, name, Arc::clone(&config)).await.unwrap();
            // The ticket comes after the handshake.
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
        }
        serving.abort();
    }

    #[test]
    fn authorities_are_read_from_pem_and_what_is_none_says_why() {
        let key = KeyPair::generate().unwrap();
        let pem = CertificateParams::default().self_signed(&key).unwrap().pem();
        let both = Authorities::from_pem(format!("# ours\n{pem}{}{pem}", key.serialize_pem()).as_bytes()).unwrap();
        assert_eq!(both.0.len(), 2);
        assert_eq!(both.with_public().len(), Authorities::default().with_public().len() + 2);
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        #[rustfmt::skip]
        let cases = [
            (String::new(),                       "there is no certificate in it"),
            (key.serialize_pem(),                 "there is no certificate in it"),
            (pem.replace("-----END", "-----NO"),  "it is no PEM text"),
            (format!("{pem}{damaged}"),           "certificate 2 cannot be used"),
        ];
        for (text, expected) in cases {
            let error = Authorities::from_pem(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
