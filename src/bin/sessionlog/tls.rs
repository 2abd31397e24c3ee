//! TLS of the command's own calls.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring::default_provider;
use ureq::tls::{RootCerts, TlsConfig};

/// Trusts the certificates that the system trusts.
pub(crate) fn config() -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
        .build()
}
