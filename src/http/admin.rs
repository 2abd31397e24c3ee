//! What those want who run a server: is it in service, what does it do, what does it offer, and a
//! page to look at it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{OpenApi as Openapi, RefOr};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::http::error::{ApiError, ErrorBody};
use crate::http::service::Service;

/// What the document says beside the calls, which come from their handlers.
#[derive(OpenApi)]
#[openapi(
    info(title = "sessionlog", description = "The durable, ordered event log of agent sessions."),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
pub(super) struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Openapi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", scheme);
    }
}

/// The document as it is answered.
pub(super) fn document(mut document: Openapi) -> ([(HeaderName, &'static str); 1], Bytes) {
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            for parameter in operation.parameters.iter_mut().flatten() {
                not_null(parameter);
            }
        }
    }
    let json = document.to_json().expect("the document has a JSON form");
    ([(CONTENT_TYPE, "application/json")], Bytes::from(json))
}

/// What may be left out is `null` to the types, and there is no `null` in a query or a header.
fn not_null(parameter: &mut RefOr<Parameter>) {
    if let RefOr::T(Parameter {
        schema: Some(RefOr::T(Schema::Object(object))),
        ..
    }) = parameter
        && let SchemaType::Array(types) = &object.schema_type
        && let [of, Type::Null] = types.as_slice()
    {
        object.schema_type = SchemaType::Type(of.clone());
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Say whether the log is in service
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "health",
    security(()),
    responses(
        (status = 200, description = "It is", body = Health),
        (
            status = 503,
            description = "A write has failed, or it is about to stop",
            body = ErrorBody,
        ),
    ),
)]
pub(super) async fn healthz(State(service): State<Arc<Service>>) -> Result<Json<Health>, ApiError> {
    service.log.health()?;
    Ok(Json(Health { status: "ok" }))
}

/// Show figures
///
/// In the text form of Prometheus. No session is named in it.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    security(()),
    responses((
        status = 200,
        description = "The figures",
        body = String,
        content_type = "application/openmetrics-text",
    )),
)]
pub(super) async fn metrics(
    State(service): State<Arc<Service>>,
) -> Result<impl IntoResponse, ApiError> {
    let text = service.metrics.encode();
    let text = text.map_err(|_error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the figures have no text form",
        )
    })?;
    Ok((
        [(
            CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    ))
}

/// The page. It is one file, and asks nobody but this server.
pub(super) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, policy),
        ],
        include_str!("page.html"),
    )
}
