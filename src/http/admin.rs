//! Calls for operators: health, metrics, the OpenAPI document and a web page.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Header, HeaderBuilder, ObjectBuilder, OpenApi as Openapi, RefOr};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::http::error::{ApiError, ErrorBody};
use crate::http::service::{Service, blocking};

/// The parts of the document other than the calls, which come from their handlers.
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

/// Returns the document as a response.
pub(super) fn document(mut document: Openapi) -> ([(HeaderName, &'static str); 1], Bytes) {
    for item in document.paths.paths.values_mut() {
        let calls = [
            &mut item.get,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in calls.into_iter().flatten() {
            for parameter in operation.parameters.iter_mut().flatten() {
                not_null(parameter);
            }
            for status in ["429", "503"] {
                if let Some(RefOr::T(answer)) = operation.responses.responses.get_mut(status) {
                    answer
                        .headers
                        .insert(RETRY_AFTER.to_string(), retry_after());
                }
            }
        }
    }
    let json = document.to_json().expect("the document has a JSON form");
    ([(CONTENT_TYPE, "application/json")], Bytes::from(json))
}

fn retry_after() -> RefOr<Header> {
    let seconds = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1));
    HeaderBuilder::new()
        .schema(Some(seconds))
        .description(Some("The seconds to wait before the call is repeated"))
        .build()
        .into()
}

/// Removes `null` from the type of an optional parameter: a query or a header has no `null`.
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

const OK: Json<Health> = Json(Health { status: "ok" });

/// Report whether the log is in service
///
/// The same as `/readyz`.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "health",
    security(()),
    responses(
        (status = 200, description = "It is", body = Health),
        (
            status = 503,
            description = "A write has failed, the disk is full, or it is about to stop",
            body = ErrorBody,
        ),
    ),
)]
pub(super) async fn healthz(State(service): State<Arc<Service>>) -> Result<Json<Health>, ApiError> {
    blocking(move || Ok(service.log.health()?)).await?;
    Ok(OK)
}

/// Report whether the log takes appends
///
/// While it does not, reads may still be answered.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "ready",
    security(()),
    responses(
        (status = 200, description = "It does", body = Health),
        (
            status = 503,
            description = "A write has failed, the disk is full, or it is about to stop",
            body = ErrorBody,
        ),
    ),
)]
pub(super) async fn readyz(state: State<Arc<Service>>) -> Result<Json<Health>, ApiError> {
    healthz(state).await
}

/// Report whether a restart would not help
///
/// A supervisor restarts the server when it does not answer 200. A full disk is no reason.
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "live",
    security(()),
    responses(
        (status = 200, description = "It would not: the server answers", body = Health),
        (
            status = 503,
            description = "Only a restart helps: a write has failed, the folder was moved, or the \
                           log is closed",
            body = ErrorBody,
        ),
    ),
)]
pub(super) async fn livez(State(service): State<Arc<Service>>) -> Result<Json<Health>, ApiError> {
    match service.log.check_usable() {
        Err(error) if error.needs_reopening() => Err(error.into()),
        _ => Ok(OK),
    }
}

/// Show metrics
///
/// In the text format of Prometheus. They name no session.
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
    let encode = move || {
        service.metrics.encode().map_err(|_error| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the figures have no text form",
            )
        })
    };
    let text = blocking(encode).await?;
    Ok((
        [(
            CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    ))
}

/// The web page. It is one file and calls only this server.
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
