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
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

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

/// This side's key and certificate, and the certificates that are trusted.
#[derive(Clone, Debug)]
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    known: Arc<Known>,
}

impl Identity {
    /// What lies in `folder`. Blocks. The certificates of others are looked at again for each connection.
    ///
    /// Fails with [`ErrorKind::Io`] when something is missing or cannot be read, [`ErrorKind::InvalidArgument`] when it is
    /// no key or certificate.
    pub fn load(folder: &Path) -> Result<Self> {
        let own = certificate(&folder.join(CERTIFICATE_FILE))?;
        let key_path = folder.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|e| bad(&key_path, &format!("is no private key: {e}")))?;
        let folder_of_peers = folder.join(PEERS);
        let known = Arc::new(Known {
            peers: RwLock::new(
                peers(&folder_of_peers)?
                    .into_iter()
                    .collect::<Result<_>>()?,
            ),
            folder: folder_of_peers,
            algorithms: ring::default_provider().signature_verification_algorithms,
        });
        let failed = |e: rustls::Error| bad(folder, &format!("is no identity: {e}"));
        let provider = Arc::new(ring::default_provider());
        let client = client_config(&provider, &known, (own.clone(), key.clone_key()));
        let server = server_config(&provider, &known, (own, key));
        Ok(Self {
            client: Arc::new(client.map_err(failed)?),
            server: Arc::new(server.map_err(failed)?),
            known,
        })
    }

    /// How many others were trusted when they were last looked at.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.known.peers().len()
    }

    /// See who is trusted now.
    async fn look_again(&self) -> io::Result<()> {
        let known = Arc::clone(&self.known);
        let looked = tokio::task::spawn_blocking(move || known.look_again()).await;
        looked.map_err(io::Error::other)?.map_err(io::Error::other)
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
    let config = Arc::clone(&identity()?.client);
    let stream = connect(config, stream).await?;
    Ok(Stream::Sealed(Box::new(stream.into())))
}

/// Encrypt a connection that came from another site.
pub(super) async fn from_source(stream: TcpStream) -> io::Result<Stream> {
    let config = Arc::clone(&identity()?.server);
    let stream = accept(config, stream).await?;
    Ok(Stream::Sealed(Box::new(stream.into())))
}

async fn connect(
    config: Arc<ClientConfig>,
    stream: TcpStream,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    identity()?.look_again().await?;
    // Nobody looks at it.
    let name = ServerName::try_from("diskferry").map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}

async fn accept(
    config: Arc<ServerConfig>,
    stream: TcpStream,
) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    identity()?.look_again().await?;
    TlsAcceptor::from(config).accept(stream).await
}

/// A connection of another protocol than this one's, encrypted: one that has said itself that TLS follows.
pub trait Sealed: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Sealed for T {}

/// Encrypt a connection that was made to a server of another protocol.
///
/// Fails when the other side has not shown that it is trusted; [`explain`] has words for that.
pub async fn seal_to_server(stream: TcpStream) -> io::Result<impl Sealed> {
    let mut config = ClientConfig::clone(&identity()?.client);
    config.alpn_protocols.clear();
    connect(Arc::new(config), stream).await
}

/// Encrypt a connection that a client of another protocol made; fails as [`seal_to_server`].
pub async fn seal_from_client(stream: TcpStream) -> io::Result<impl Sealed> {
    let mut config = ServerConfig::clone(&identity()?.server);
    config.alpn_protocols.clear();
    accept(Arc::new(config), stream).await
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
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
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
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificates that are trusted, and no authority.
#[derive(Debug)]
struct Known {
    folder: PathBuf,
    /// As they were when the folder was last looked at.
    peers: RwLock<Vec<CertificateDer<'static>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Known {
    fn peers(&self) -> std::sync::RwLockReadGuard<'_, Vec<CertificateDer<'static>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// See who is trusted now; what is no certificate, or none yet, is nobody. Where it cannot be seen, nobody is trusted.
    /// Blocks.
    fn look_again(&self) -> Result<()> {
        let (found, looked) = match peers(&self.folder) {
            Ok(found) => (found, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let trusted = found.into_iter().filter_map(|one| {
            one.inspect_err(|error| tracing::warn!("nobody is trusted by it: {error}"))
                .ok()
        });
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = trusted.collect();
        looked
    }

    fn check(&self, shown: &CertificateDer<'_>) -> Made<()> {
        if self.peers().iter().any(|peer| peer == shown) {
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
