//! A job, told as a prediction, to whoever has asked.

use atelier_domain::Job;
use serde_json::Value;

use super::super::{super::Http, reply::Pictures};
use crate::{prediction, store::JobRecord};

/// The prediction, with its outputs by address.
pub(super) fn by_address(http: &Http, job: &Job, base_url: &str) -> Value {
    let outputs = job.outputs.iter().map(|output| format!("{base_url}{}", http.link(&output.url))).collect();
    prediction::prediction(job, base_url, outputs)
}

/// The prediction, with its outputs as data URIs: Replicate's packages take a file from these and from `https` alone.
pub(super) fn with_data(record: &JobRecord, base_url: &str, pictures: &mut Pictures) -> Value {
    let job = &record.job;
    let marks = pictures.outputs(record);
    let uris = job.outputs.iter().zip(marks).map(|(output, mark)| format!("data:{};base64,{mark}", output.media_type));
    prediction::prediction(job, base_url, uris.collect())
}
