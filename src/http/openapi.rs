//! The description of the API. Made from the handlers, so that it cannot say what they do not do.

use std::sync::OnceLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http as HttpScheme, HttpAuthScheme, SecurityScheme},
};

use super::{
    clients::{openai::OpenAiError, sdapi::SdapiError},
    problem::ProblemBody,
    routes, schema,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Atelier",
        description = "An image workshop in one box: upscale, edit, generate, caption and animate, from a durable queue.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(
        schema::Job,
        schema::JobProgress,
        schema::JobRemoved,
        ProblemBody<'static>,
        OpenAiError<'static>,
        SdapiError<'static>
    )),
    modifiers(&Bearer),
    security((), ("bearer" = [])),
    tags(
        (name = "jobs", description = "Work, from its submission to its outputs"),
        (name = "events", description = "What happens, as it happens"),
        (name = "models", description = "What is installed and loaded"),
        (name = "queue", description = "The queue as a whole"),
        (name = "openai", description = "For clients of OpenAI's Images API"),
        (name = "replicate", description = "For clients of Replicate's predictions"),
        (name = "sdapi", description = "For clients of stable-diffusion-webui (A1111)"),
        (name = "studio", description = "For clients of the two services that Atelier replaces"),
        (name = "operations", description = "For those who run the server"),
    )
)]
struct Document;

/// Needed where the server has tokens.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(HttpScheme::new(HttpAuthScheme::Bearer)));
    }
}

/// The document before the routes are in it.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The whole document as JSON.
pub(super) fn json() -> &'static str {
    static JSON: OnceLock<String> = OnceLock::new();
    JSON.get_or_init(|| {
        let (_router, document) = routes().split_for_parts();
        document.to_pretty_json().expect("the document is plain data")
    })
}

/// This description
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "show_openapi",
    tag = "operations",
    responses(
        (status = 200, description = "OpenAPI 3.1", body = Object),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json()).into_response()
}
