//! TLS for [`serve`](crate::http::serve()): a certificate and its key. Both can be read again while
//! the server runs. Feature `tls`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::sync::RwLock;

/// The one protocol that the server speaks above TLS.
const ALPN: &[u8] = b"http/1.1";

/// A certificate and its key, for [`Config::tls`](crate::http::Config::tls).
///
/// Clones share them: [`reload`](Self::reload) on one of them is for the running server too. The
/// versions are TLS 1.2 and 1.3.
///
/// ```no_run
/// use sessionlog::http::{Config, Tls};
///
/// let tls = Tls::from_pem("cert.pem", "key.pem")?;
/// let config = Config::with_api_key("a secret").tls(tls.clone());
/// // After the files were renewed:
/// tls.reload()?;
/// # drop::<Config>(config);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Tls {
    files: Arc<Files>,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// Reads a certificate chain, the server's own certificate first, and its private key from PEM
    /// files.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is not PEM, or lacks what it is for, and when the key does not
    /// belong to the certificate. The message names the file.
    pub fn from_pem(cert: impl AsRef<Path>, key: impl AsRef<Path>) -> io::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let files = Files {
            cert: cert.as_ref().to_path_buf(),
            key: key.as_ref().to_path_buf(),
        };
        let current = Arc::new(Current(RwLock::new(files.read(&provider)?)));
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            files: Arc::new(files),
            current,
            config: Arc::new(config),
        })
    }

    /// Reads both files again. New connections get the new certificate, and open ones stay.
    ///
    /// # Errors
    ///
    /// As for [`from_pem`](Self::from_pem). The certificate in use stays in use then.
    pub fn reload(&self) -> io::Result<()> {
        let read = self.files.read(self.config.crypto_provider())?;
        *self.current.0.write() = read;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("cert", &self.files.cert)
            .field("key", &self.files.key)
            .finish_non_exhaustive()
    }
}

impl Files {
    fn read(&self, provider: &CryptoProvider) -> io::Result<Arc<CertifiedKey>> {
        let Self { cert, key } = self;
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| in_file(cert, error))?;
        if chain.is_empty() {
            return Err(in_file(cert, pem::Error::NoItemsFound));
        }
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, error))?;
        CertifiedKey::from_der(chain, secret, provider)
            .map(Arc::new)
            .map_err(|error| self.mismatched(&error))
    }

    fn mismatched(&self, error: &rustls::Error) -> io::Error {
        let (cert, key) = (self.cert.display(), self.key.display());
        invalid(format!(
            "the key in {key} and the first certificate in {cert} cannot be used together: {error}"
        ))
    }
}

fn in_file(path: &Path, error: pem::Error) -> io::Error {
    let path = path.display();
    match error {
        pem::Error::Io(error) => {
            io::Error::new(error.kind(), format!("cannot read {path}: {error}"))
        }
        pem::Error::NoItemsFound => invalid(format!(
            "{path} holds no certificate or no unencrypted private key in PEM form"
        )),
        error => invalid(format!("{path} is not in PEM form: {error}")),
    }
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// The certificate in use.
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}
