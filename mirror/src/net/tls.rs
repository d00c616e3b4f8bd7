//! Who this process is to others, and whom it takes for what they say they are: TLS 1.3 with a certificate on either side.
//!
//! No authority vouches for anybody: each side has the other's certificate in a folder, put there by somebody who knows
//! where it came from, and takes that one and no other. So names and dates in certificates count for nothing; to trust
//! somebody no more is to remove the file, which holds for every connection that is made afterwards. Must never let a
//! connection pass whose other end has not shown that it has the key of a certificate that is known.
//!
//! A folder has `key.pem`, `cert.pem` and others' certificates in `peers/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    ServerConfig, SignatureScheme, version,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};

/// The file of this side's private key in an identity's folder.
pub const KEY_FILE: &str = "key.pem";
/// That of its certificate.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// The folder in it with the certificates of others.
pub const PEERS: &str = "peers";
/// What is spoken inside, so that no other service of the same key is mistaken for this one.
const PROTOCOL: &[u8] = b"diskferry-mirror";

/// This side's key and certificate, and where the certificates lie that are trusted.
#[derive(Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    folder: PathBuf,
    /// How many others were trusted at the start.
    peers: usize,
}

impl Identity {
    /// What lies in `folder`. Blocks. The certificates of others are looked at again for each connection.
    ///
    /// Fails with [`ErrorKind::Io`] when something is missing or cannot be read, [`ErrorKind::InvalidArgument`] when it is
    /// no key or certificate.
    pub fn load(folder: &Path) -> Result<Self> {
        let key_path = folder.join(KEY_FILE);
        let certificate = certificate(&folder.join(CERTIFICATE_FILE))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|e| bad(&key_path, &format!("is no private key: {e}")))?;
        let peers: Result<Vec<_>> = peers(&folder.join(PEERS))?.into_iter().collect();
        let identity = Self {
            certificate,
            key,
            folder: folder.to_owned(),
            peers: peers?.len(),
        };
        identity.client(&[])?;
        identity.server(&[])?;
        Ok(identity)
    }

    /// How many others were trusted when it was loaded.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers
    }

    /// Who is trusted now: what is no certificate, or none yet, is nobody. Blocks.
    fn known(&self) -> Result<Arc<Known>> {
        let mut known = Vec::new();
        for found in peers(&self.folder.join(PEERS))? {
            match found {
                Ok(certificate) => known.push(certificate),
                Err(error) if error.kind() == ErrorKind::InvalidArgument => {
                    tracing::warn!("nobody is trusted by it: {error}");
                }
                // It may be somebody's who is trusted.
                Err(error) => return Err(error),
            }
        }
        Ok(Arc::new(Known {
            peers: known,
            algorithms: ring::default_provider().signature_verification_algorithms,
        }))
    }

    /// How to be a client of who is trusted now, for the protocols of `alpn`, or for one that says itself what it is.
    fn client(&self, alpn: &[&[u8]]) -> Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let own = (self.certificate.clone(), self.key.clone_key());
        let mut config = client_config(&provider, &self.known()?, own)
            .map_err(|e| bad(&self.folder, &format!("is no identity: {e}")))?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// The same for a server.
    fn server(&self, alpn: &[&[u8]]) -> Result<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let own = (self.certificate.clone(), self.key.clone_key());
        let mut config = server_config(&provider, &self.known()?, own)
            .map_err(|e| bad(&self.folder, &format!("is no identity: {e}")))?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

/// From now on this process is `identity` to others. To be said once, before it meets anybody; said again it has no effect.
pub fn introduce(identity: Identity) {
    let _ = IDENTITY.set(identity);
}

static IDENTITY: OnceLock<Identity> = OnceLock::new();

/// Whether this process can be told apart by others.
#[must_use]
pub fn is_introduced() -> bool {
    IDENTITY.get().is_some()
}

/// What this process is to others; fails when nobody said.
pub(super) fn identity() -> io::Result<&'static Identity> {
    IDENTITY.get().ok_or_else(|| {
        let what = "this process has no identity for encrypted connections (--identity)";
        io::Error::new(io::ErrorKind::NotFound, what)
    })
}

/// Encrypt a connection that was made to another site.
pub(super) async fn to_target(stream: TcpStream) -> io::Result<Stream> {
    let stream = connect(&[PROTOCOL], stream).await?;
    of_this_protocol(stream.get_ref().1.alpn_protocol())?;
    Ok(Stream::Sealed(Box::new(stream.into())))
}

/// Encrypt a connection that came from another site.
pub(super) async fn from_source(stream: TcpStream) -> io::Result<Stream> {
    let stream = accept(&[PROTOCOL], stream).await?;
    of_this_protocol(stream.get_ref().1.alpn_protocol())?;
    Ok(Stream::Sealed(Box::new(stream.into())))
}

/// Whoever is in between may have joined it to another service of the same key, which names no protocol.
fn of_this_protocol(name: Option<&[u8]>) -> io::Result<()> {
    if name == Some(PROTOCOL) {
        return Ok(());
    }
    let what = "the other end of the encrypted connection does not move disks";
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

type Alpn = &'static [&'static [u8]];

/// Files are read for it: not in the way of other connections.
async fn looked_up<T: Send + 'static>(
    look_up: impl FnOnce(&Identity) -> Result<T> + Send + 'static,
) -> io::Result<T> {
    let identity = identity()?;
    let found = tokio::task::spawn_blocking(move || look_up(identity)).await;
    found.map_err(io::Error::other)?.map_err(io::Error::other)
}

async fn connect(
    alpn: Alpn,
    stream: TcpStream,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = looked_up(move |identity| identity.client(alpn)).await?;
    // Nobody looks at it.
    let name = ServerName::try_from("diskferry").map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn accept(
    alpn: Alpn,
    stream: TcpStream,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let config = looked_up(move |identity| identity.server(alpn)).await?;
    TlsAcceptor::from(Arc::new(config)).accept(stream).await
}

/// A connection of another protocol than this one's, encrypted: one that has said itself that TLS follows.
pub trait Sealed: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Sealed for T {}

/// Encrypt a connection that was made to a server of another protocol.
///
/// Fails when the other side has not shown that it is trusted; [`explain`] has words for that.
pub async fn seal_to_server(stream: TcpStream) -> io::Result<impl Sealed> {
    connect(&[], stream).await
}

/// Encrypt a connection that a client of another protocol made; fails as [`seal_to_server`].
pub async fn seal_from_client(stream: TcpStream) -> io::Result<impl Sealed> {
    accept(&[], stream).await
}

/// What a connection failed of, in words that say what to do about certificates.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    let unknown = CertificateError::ApplicationVerificationFailure;
    match inner {
        Some(rustls::Error::AlertReceived(
            AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateRequired,
        )) => "the other site does not know this one's certificate: `diskferry pair trust` there"
            .into(),
        Some(rustls::Error::InvalidCertificate(why)) if *why == unknown => {
            "the other site's certificate is not known here: `diskferry pair trust`".into()
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "the other site does not encrypt, or is none of ours".into()
        }
        _ => error.to_string(),
    }
}

/// What people compare to see that they speak of the same certificate: BLAKE3 of its bytes, in groups.
///
/// Fails as [`Identity::load`].
pub fn fingerprint(path: &Path) -> Result<String> {
    let hash = blake3::hash(&certificate(path)?).to_hex();
    let groups: Vec<&str> = (0..hash.len())
        .step_by(4)
        .filter_map(|at| hash.get(at..at + 4))
        .collect();
    Ok(groups.join(" "))
}

fn bad(path: &Path, what: &str) -> Error {
    let what = format!("{} {what}", path.display());
    Error::new(ErrorKind::InvalidArgument, what)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::io(ErrorKind::Io, format!("cannot read {}", path.display()), e);
    fs::read(path).map_err(failed)
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    let read = CertificateDer::from_pem_slice(&read(path)?);
    read.map_err(|e| bad(path, &format!("is no certificate: {e}")))
}

/// The certificates in a folder, which need not exist, or why one of them is none; their names end with `.pem`.
fn peers(folder: &Path) -> Result<Vec<Result<CertificateDer<'static>>>> {
    let failed = |e| {
        Error::io(
            ErrorKind::Io,
            format!("cannot list {}", folder.display()),
            e,
        )
    };
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let is_pem = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "pem");
    let paths = paths.map_err(failed)?;
    let all = paths.iter().filter(is_pem).map(|path| certificate(path));
    Ok(all.collect())
}

type Own = (CertificateDer<'static>, PrivateKeyDer<'static>);
type Made<T> = std::result::Result<T, rustls::Error>;

fn client_config(
    provider: &Arc<CryptoProvider>,
    known: &Arc<Known>,
    (own, key): Own,
) -> Made<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Known>::clone(known))
        .with_client_auth_cert(vec![own], key)?;
    config.enable_sni = false;
    // Each connection shows its keys anew: who is trusted no more has no ticket left.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    known: &Arc<Known>,
    (own, key): Own,
) -> Made<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::<Known>::clone(known))
        .with_single_cert(vec![own], key)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificates that are trusted, and no authority.
#[derive(Debug)]
struct Known {
    peers: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Known {
    fn check(&self, shown: &CertificateDer<'_>) -> Made<()> {
        if self.peers.iter().any(|peer| peer == shown) {
            return Ok(());
        }
        let unknown = CertificateError::ApplicationVerificationFailure;
        Err(rustls::Error::InvalidCertificate(unknown))
    }

    /// The other side has the key of the certificate that it shows.
    fn has_key(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Made<HandshakeSignatureValid> {
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }
}

/// Version 1.2 is not spoken.
fn too_old() -> Made<HandshakeSignatureValid> {
    let incompatible = rustls::PeerIncompatible::Tls12NotOffered;
    Err(rustls::Error::PeerIncompatible(incompatible))
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Made<ServerCertVerified> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Made<HandshakeSignatureValid> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Made<HandshakeSignatureValid> {
        self.has_key(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Known {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Made<ClientCertVerified> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Made<HandshakeSignatureValid> {
        too_old()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Made<HandshakeSignatureValid> {
        self.has_key(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
