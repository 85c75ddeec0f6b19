//! Programs that were written for other servers: each finds its own routes here, in its own words.
//!
//! A client's request is translated into the job that the native API would be sent, and takes the same way from there
//! on: the same checks and limits, the same durable queue. A client that waits for its answer waits on that job, and
//! finds it again when it comes back ([`super::coalesce`]). Leaving calls nothing off.
//!
//! One folder per kind of client. [`door`] is the way in, [`reply`] the way out, [`read`] reads their values, [`pick`]
//! chooses what does the work. None of them knows how a job is run.

pub(crate) mod dialect;
mod door;
mod mask;
mod models;
pub(crate) mod openai;
mod pick;
mod preview;
mod read;
pub(crate) mod replicate;
mod reply;
pub(crate) mod sdapi;
pub(crate) mod studio;

use std::{collections::BTreeMap, sync::Arc};

use utoipa::{
    IntoResponses,
    openapi::{Ref, RefOr, Response, ResponseBuilder, content::ContentBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Http;

/// The errors of a route whose clients read `application/problem+json`.
pub(crate) struct Problems;

/// The errors of a route whose clients read OpenAI's error body.
pub(crate) struct OpenAiErrors;

/// The errors of a route whose clients read A1111's error body.
pub(crate) struct SdapiErrors;

fn errors(schema: &str, content_type: &str) -> BTreeMap<String, RefOr<Response>> {
    let of = |description: &str| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
        ResponseBuilder::new().description(description).content(content_type, content).build().into()
    };
    BTreeMap::from([("4XX".to_owned(), of("Not taken")), ("5XX".to_owned(), of("Failed"))])
}

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors("Problem", "application/problem+json")
    }
}

impl IntoResponses for OpenAiErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors("OpenAiError", "application/json")
    }
}

impl IntoResponses for SdapiErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors("SdapiError", "application/json")
    }
}

/// Answers that are there at once.
pub(super) fn quick_routes() -> OpenApiRouter<Arc<Http>> {
    OpenApiRouter::new()
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(models::show_owned))
        .routes(routes!(models::show_version))
        .routes(routes!(replicate::files::list))
        .routes(routes!(replicate::files::show))
        .routes(routes!(replicate::files::delete))
        .routes(routes!(replicate::predictions::list))
        .routes(routes!(sdapi::progress::show))
        .routes(routes!(sdapi::progress::interrupt))
        .routes(routes!(sdapi::progress::skip))
        .routes(routes!(sdapi::options::show, sdapi::options::set))
        .routes(routes!(sdapi::lists::list))
        .routes(routes!(sdapi::lists::controlnet_version))
        .routes(routes!(sdapi::lists::controlnet_models))
        .routes(routes!(sdapi::lists::controlnet_modules))
        .routes(routes!(sdapi::info::memory))
        .routes(routes!(sdapi::info::reload))
        .routes(routes!(studio::editor::list))
        .routes(routes!(studio::editor::show, studio::editor::delete))
        .routes(routes!(studio::editor::status))
        .routes(routes!(studio::editor::cancel))
        .routes(routes!(studio::dashboard::status))
        .routes(routes!(studio::dashboard::results))
        .routes(routes!(studio::dashboard::metrics))
        .routes(routes!(studio::dashboard::logs, studio::dashboard::clear_logs))
        .routes(routes!(studio::dashboard::post_clear_logs))
        .routes(routes!(studio::dashboard::settings, studio::dashboard::save_settings))
        .routes(routes!(studio::status::models))
        .routes(routes!(studio::status::tts))
        .routes(routes!(studio::status::comfyui))
}

/// Answers that take as long as the job, or the sending.
pub(super) fn long_routes() -> OpenApiRouter<Arc<Http>> {
    OpenApiRouter::new()
        .routes(routes!(openai::images::generate))
        .routes(routes!(openai::images::edit))
        .routes(routes!(replicate::files::create))
        .routes(routes!(replicate::predictions::create))
        .routes(routes!(replicate::predictions::create_with_model))
        .routes(routes!(replicate::predictions::show))
        .routes(routes!(replicate::predictions::cancel))
        .routes(routes!(sdapi::generate::txt2img))
        .routes(routes!(sdapi::generate::img2img))
        .routes(routes!(sdapi::extras::single))
        .routes(routes!(sdapi::extras::batch))
        .routes(routes!(sdapi::info::png_info))
        .routes(routes!(sdapi::info::interrogate))
        .routes(routes!(sdapi::info::unload))
        .routes(routes!(sdapi::lists::refresh))
        .routes(routes!(sdapi::lists::refresh_loras))
        .routes(routes!(studio::service::generate))
        .routes(routes!(studio::service::caption))
        .routes(routes!(studio::service::controlnet))
        .routes(routes!(studio::service::video))
        .routes(routes!(studio::service::talking_head))
        .routes(routes!(studio::service::unload))
        .routes(routes!(studio::service::unload_all))
        .routes(routes!(studio::service::download))
        .routes(routes!(studio::editor::submit))
        .routes(routes!(studio::editor::download))
        .routes(routes!(studio::socket::watch))
}
