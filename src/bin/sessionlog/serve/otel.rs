//! Export of the spans of requests to a collector of OpenTelemetry, by OTLP over HTTP. Feature
//! `otel`.
//!
//! The standard variables configure it: `OTEL_EXPORTER_OTLP_ENDPOINT`, `_HEADERS` and `_TIMEOUT`,
//! each also with `_TRACES`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_TRACES_SAMPLER` and `OTEL_BSP_*`. Without an endpoint nothing is exported.

use std::env;
use std::error::Error;
use std::pin::Pin;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// The name of the service where `OTEL_SERVICE_NAME` gives none.
const SERVICE: &str = "sessionlog";

/// How long one export may take where no variable says it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The spans that wait for their export. [`flush`](Self::flush) sends them.
pub(super) struct Export(SdkTracerProvider);

impl Export {
    /// Returns the export that the environment asks for.
    pub(super) fn of_environment() -> Result<Option<Self>, Box<dyn Error>> {
        let is = |name: &str, value: &str| {
            env::var(name).is_ok_and(|given| given.trim().eq_ignore_ascii_case(value))
        };
        let endpoints = [
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ];
        let has_endpoint = endpoints
            .iter()
            .any(|name| env::var_os(name).is_some_and(|given| !given.is_empty()));
        if !has_endpoint || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .build()
            .map_err(|error| format!("{error}: correct the variables OTEL_EXPORTER_OTLP_*"))?;
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        Ok(Some(Self(provider)))
    }

    /// The layer that hands the spans of requests over.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let requests = Targets::new().with_target("sessionlog::http", LevelFilter::DEBUG);
        OpenTelemetryLayer::<S, Tracer>::new(self.0.tracer(SERVICE)).with_filter(requests)
    }

    /// Sends what has not been sent. It blocks for as long as an export may take.
    pub(super) fn flush(self) {
        if let Err(error) = self.0.shutdown_with_timeout(timeout()) {
            tracing::warn!(%error, "the last spans were not exported: see the collector");
        }
    }
}

fn timeout() -> Duration {
    let names = [
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    ];
    let given = names
        .iter()
        .find_map(|name| env::var(name).ok()?.trim().parse().ok());
    given.map_or(TIMEOUT, Duration::from_millis)
}

/// The HTTP client of the other commands, which blocks: exports have a thread of their own.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout()))
            .tls_config(crate::tls::config())
            .http_status_as_error(false);
        Self(config.build().into())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, body.to_vec());
        let (head, mut body) = self.0.run(request)?.into_parts();
        let body = body.read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

impl HttpClient for Client {
    fn send_bytes<'this, 'sent>(
        &'this self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sent>>
    where
        'this: 'sent,
        Self: 'sent,
    {
        Box::pin(async move { self.send(request) })
    }
}
