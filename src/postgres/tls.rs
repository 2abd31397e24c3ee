//! TLS of the connections to the server.
//!
//! A URL asks for it with `sslmode=require`. Then it is never less than everything: the certificate
//! has to be one for the host of the URL, and signed by one that is trusted. These are the ones in
//! the file that `sslrootcert` names, or else those that the system trusts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::model::{Error, Result, in_one_line};

/// The protocol inside, which a server asks for that is connected to without a word in the clear.
const ALPN: &[u8] = b"postgresql";

/// The value of `sslrootcert` that means the certificates which the system trusts.
const OF_THE_SYSTEM: &str = "system";

/// Returns what a URL says, and what makes its connections secure if it asks for that.
pub(super) fn read_url(url: &str) -> Result<(Config, MakeRustlsConnect)> {
    let (url, root) = without_root(url)?;
    let mut config: Config = url
        .parse()
        .map_err(|error: tokio_postgres::Error| Error::invalid("URL", in_one_line(&error)))?;
    let tls = if config.get_ssl_mode() == SslMode::Require {
        client(root.as_deref())?
    } else if root.is_some() {
        let why = "`sslrootcert` needs `sslmode=require`";
        return Err(Error::invalid("URL", why));
    } else {
        // Encrypted only if the server likes to, and to any server that answers, is not secure.
        config.ssl_mode(SslMode::Disable);
        with_roots(RootCertStore::empty())?
    };
    Ok((config, MakeRustlsConnect::new(tls)))
}

/// Takes the parameter `sslrootcert` out of a URL, which the client crate does not know, and names
/// the mode by the one name that it does know.
fn without_root(url: &str) -> Result<(String, Option<PathBuf>)> {
    let Some((before, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), None));
    };
    let (mut kept, mut root) = (Vec::new(), None);
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("sslrootcert", path)) => {
                let path = percent_decode_str(path).decode_utf8();
                let path = path.map_err(|error| Error::invalid("URL", error.to_string()))?;
                root = Some(PathBuf::from(path.into_owned()));
            }
            Some(("sslmode", "verify-full")) => kept.push("sslmode=require"),
            _ => kept.push(pair),
        }
    }
    let separator = if kept.is_empty() { "" } else { "?" };
    Ok((format!("{before}{separator}{}", kept.join("&")), root))
}

/// Returns a client that trusts the certificates in a file, or those of the system.
fn client(root: Option<&Path>) -> Result<ClientConfig> {
    if let Some(file) = root.filter(|root| *root != Path::new(OF_THE_SYSTEM)) {
        return with_roots(roots_in(file)?);
    }
    let builder = builder()?.with_platform_verifier().map_err(|error| {
        let why = format!("the system has no certificates to trust: {error}");
        Error::invalid("URL", why)
    })?;
    Ok(with_protocol(builder.with_no_client_auth()))
}

fn with_roots(roots: RootCertStore) -> Result<ClientConfig> {
    let builder = builder()?.with_root_certificates(roots);
    Ok(with_protocol(builder.with_no_client_auth()))
}

fn with_protocol(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::invalid("URL", error.to_string()))
}

fn roots_in(file: &Path) -> Result<RootCertStore> {
    let refused = |why: String| {
        let why = format!("`sslrootcert`: {}: {why}", file.display());
        Error::invalid("URL", why)
    };
    let failed = |error: pem::Error| match error {
        pem::Error::Io(source) => Error::Io {
            doing: "read",
            path: file.to_path_buf(),
            source: Arc::new(source),
        },
        error => refused(error.to_string()),
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(failed)? {
        let added = roots.add(certificate.map_err(failed)?);
        added.map_err(|error| refused(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(refused("it has no certificate".to_owned()));
    }
    Ok(roots)
}

/// Whether an error is about the certificate of the server. Another attempt finds the same one.
pub(super) fn is_untrusted(error: &tokio_postgres::Error) -> bool {
    let first: &dyn std::error::Error = error;
    let mut causes = std::iter::successors(first.source(), |error| error.source());
    causes.any(|cause| {
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let error = inner.and_then(|inner| inner.downcast_ref());
        matches!(error, Some(rustls::Error::InvalidCertificate(_)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parameter_of_the_certificates_is_taken_out_of_a_url() {
        let taken = |url| without_root(url).unwrap();
        for url in [
            "postgres://a:b@c/d",
            "postgres://c/d?sslmode=require&connect_timeout=3",
            "host=c dbname=d",
        ] {
            assert_eq!(taken(url), (url.to_owned(), None));
        }
        let root = Some(PathBuf::from("/a b/c.pem"));
        let url = "postgres://c/d?sslrootcert=/a%20b/c.pem";
        assert_eq!(taken(url), ("postgres://c/d".to_owned(), root.clone()));
        let url = "postgres://c/d?sslmode=verify-full&sslrootcert=/a%20b/c.pem&options=-c";
        let rest = "postgres://c/d?sslmode=require&options=-c";
        assert_eq!(taken(url), (rest.to_owned(), root));
    }
}
