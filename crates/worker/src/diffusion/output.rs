//! From samples to the job's files.

use atelier_domain::protocol::{OutputFile, Run};
use atelier_imaging::{Color, EncodeSpec, Metadata, Picture, Pixels, Samples, encode};

use crate::{context::Context, durable, error::JobError, events::Phase};

/// What is to be written.
pub struct Made<'a> {
    pub width: u32,
    pub height: u32,
    pub color: Color,
    pub alpha: bool,
    pub pixels: &'a Pixels,
    /// Whose EXIF, ICC profile and XMP go along.
    pub source: Option<&'a Picture>,
}

/// Writes the job's output number `index`. It is durable once this returns. The second value is what was left out or
/// changed.
pub fn write(
    run: &Run,
    context: &Context<'_>,
    index: u32,
    made: &Made<'_>,
) -> Result<(OutputFile, Vec<String>), JobError> {
    let folder = run.work_dir.as_path();
    let (metadata, mut notes) = match made.source {
        None => (Metadata::default(), Vec::new()),
        Some(source) => source.metadata.for_output(made.width, made.height, run.output.gps, made.color),
    };
    let spec = EncodeSpec {
        format: run.output.format,
        quality: run.output.quality,
        width: made.width,
        height: made.height,
        color: made.color,
        alpha: made.alpha,
        metadata: &metadata,
    };
    let extension = run.output.format.extension();
    let file = format!("output-{index}.{extension}");
    let part = format!("{file}.part");
    let path = folder.join(&part);
    let (samples, bytes) = match made.pixels {
        Pixels::U8(samples) => (Samples::U8(samples), samples.len()),
        Pixels::U16(samples) => (Samples::U16(samples), samples.len() * 2),
    };
    context.reporter.progress(Phase::Encode, 0, 1);
    let encoded = context
        .reporter
        .while_growing(&path, bytes as u64, || encode(samples, &spec, &path))
        .map_err(|error| JobError::Image { name: file.clone(), error })?;
    durable::publish(folder, &part, &file).map_err(JobError::io(folder))?;
    notes.extend(encoded.notes);
    let output = OutputFile {
        file,
        media_type: run.output.format.media_type().into(),
        extension: extension.into(),
        bytes: encoded.bytes,
        width: made.width,
        height: made.height,
        sha256: encoded.sha256,
    };
    Ok((output, notes))
}
