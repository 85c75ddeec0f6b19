//! Pictures that a job names by address: `image_urls`, where `limits.remote_images` allows it.
//!
//! Each is fetched once, from the public internet only, within the bounds of an upload, and lies in the spool from
//! then on like any other picture.

use std::{sync::Arc, time::Duration};

use atelier_domain::ErrorCode;
use reqwest::Url;
use serde_json::{Map, Value};

use super::{Http, intake::Received, problem::Problem};
use crate::{
    config::Config,
    egress::{self, Egress, Reach},
};

/// For one picture, from the name to the last byte.
const PATIENCE: Duration = Duration::from_mins(2);

/// Takes `image_urls` out of the job's JSON and fetches them behind the pictures that came with it.
pub(crate) async fn fetch_all(
    http: &Arc<Http>,
    config: &Config,
    job: &mut Map<String, Value>,
    images: &mut Vec<Received>,
) -> Result<(), Problem> {
    let Some(urls) = job.remove("image_urls").filter(|urls| !urls.is_null()) else { return Ok(()) };
    let wrong = |what: &str| Problem::new(ErrorCode::InvalidRequest, what.to_owned());
    let Value::Array(urls) = urls else { return Err(wrong("image_urls is a list of addresses")) };
    if !config.limits.remote_images {
        return Err(Problem::new(ErrorCode::Forbidden, "this server fetches no pictures by address")
            .with_hint("send the pictures themselves; limits.remote_images would allow addresses"));
    }
    if images.len() + urls.len() > config.limits.images {
        let most = config.limits.images;
        return Err(Problem::new(ErrorCode::InvalidRequest, format!("a job has at most {most} pictures")));
    }
    let reach = http.settings.remote_reach;
    let mut checked = Vec::with_capacity(urls.len());
    for (index, url) in urls.iter().enumerate() {
        let text = url.as_str().ok_or_else(|| wrong("image_urls is a list of addresses"))?;
        let url = egress::check(text, reach)
            .map_err(|error| wrong(&format!("image_urls[{index}] is not fetched: {error}")))?;
        checked.push(url);
    }
    let egress = http.egress()?;
    for (index, url) in checked.into_iter().enumerate() {
        let place = format!("image_urls[{index}]");
        let fetched = tokio::time::timeout(PATIENCE, fetch(http, &egress, reach, config.limits.upload, url)).await;
        let fetched = fetched.map_err(|_| failed("it took too long"));
        images.push(fetched.and_then(|fetched| fetched).map_err(|problem| problem.within(&place))?);
    }
    Ok(())
}

fn failed(why: impl std::fmt::Display) -> Problem {
    Problem::new(ErrorCode::InvalidRequest, format!("the picture could not be fetched: {why}"))
        .with_hint("redirects are not followed, and only addresses of the public internet are asked")
}

async fn fetch(http: &Http, egress: &Egress, reach: Reach, max_bytes: u64, url: Url) -> Result<Received, Problem> {
    let name = url.path_segments().and_then(|mut parts| parts.next_back().map(str::to_owned));
    let mut response = egress.client(reach).get(url).send().await.map_err(|error| failed(egress::reason(&error)))?;
    if !response.status().is_success() || response.status().as_u16() == 204 {
        return Err(failed(format_args!("the answer was {}", response.status().as_u16())));
    }
    let mut upload = http.spool.create(name.as_deref(), max_bytes)?;
    while let Some(bytes) = response.chunk().await.map_err(|error| failed(egress::reason(&error)))? {
        upload.write(&bytes).await?;
    }
    upload.finish().await
}
