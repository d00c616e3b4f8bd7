//! TLS towards etcd: its authority, and this side's certificate if it wants one, are the files that etcdctl is told of.

use std::env;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, ErrorKind, Result};

/// Names of the files: the authority's certificates, this side's, and its key.
const AUTHORITY: &str = "ETCDCTL_CACERT";
const CERTIFICATE: &str = "ETCDCTL_CERT";
const KEY: &str = "ETCDCTL_KEY";

fn bad(name: &str, path: &Path, what: &dyn std::fmt::Display) -> Error {
    let what = format!("{name} ({}): {what}", path.display());
    Error::new(ErrorKind::InvalidArgument, what)
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = all.map_err(|e| bad(name, path, &e))?;
    if all.is_empty() {
        return Err(bad(name, path, &"there is no certificate in it"));
    }
    Ok(all)
}

/// Who is trusted and who this is, by what `file` says of a name.
pub(super) fn connector(file: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<TlsConnector> {
    let path = file(AUTHORITY).ok_or_else(|| {
        let what = format!(
            "etcd:https needs {AUTHORITY} in the environment, the file of the authority that etcd's certificate is of, \
             and {CERTIFICATE} and {KEY} where etcd asks for one"
        );
        Error::new(ErrorKind::InvalidArgument, what)
    })?;
    let path = Path::new(&path);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(AUTHORITY, path)? {
        let added = roots.add(certificate);
        added.map_err(|e| bad(AUTHORITY, path, &e))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
        .with_root_certificates(roots);
    let config = match (file(CERTIFICATE), file(KEY)) {
        (None, None) => config.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let own = certificates(CERTIFICATE, Path::new(&certificate))?;
            let key_path = Path::new(&key);
            let key = PrivateKeyDer::from_pem_file(key_path).map_err(|e| bad(KEY, key_path, &e))?;
            let config = config.with_client_auth_cert(own, key);
            config.map_err(|e| bad(KEY, key_path, &e))?
        }
        _ => {
            let what = format!("of {CERTIFICATE} and {KEY} only one is in the environment");
            return Err(Error::new(ErrorKind::InvalidArgument, what));
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The same, by this process's environment.
pub(super) fn from_environment() -> Result<TlsConnector> {
    connector(|name| env::var_os(name))
}

/// Speak TLS to the member `HOST:PORT`.
pub(super) async fn greet(
    connector: &TlsConnector,
    member: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    connector.connect(name, stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_no_certificate_is_said_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (some, junk) = (folder.path().join("ca.pem"), folder.path().join("junk.pem"));
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["etcd".to_owned()]).unwrap();
        std::fs::write(&some, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&junk, "none").unwrap();
        let with = |files: &[(&str, &Path)]| {
            let path = |name: &str| {
                let found = files.iter().find(|(other, _)| *other == name);
                found.map(|(_, path)| path.as_os_str().to_owned())
            };
            connector(path).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(with(&[(AUTHORITY, &some)]), Ok(()));
        for (files, said) in [
            (vec![], AUTHORITY),
            (vec![(AUTHORITY, junk.as_path())], "no certificate"),
            (vec![(AUTHORITY, Path::new("/none"))], "/none"),
            (vec![(AUTHORITY, &*some), (CERTIFICATE, &*some)], "only one"),
            (
                vec![(AUTHORITY, &*some), (CERTIFICATE, &*some), (KEY, &*junk)],
                KEY,
            ),
        ] {
            let error = with(&files).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
