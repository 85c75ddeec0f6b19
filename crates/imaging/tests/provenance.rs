//! What outputs say about their making, with `exiftool` as the judge. `sd-parsers` reads the same files in
//! `tests/clients`.

mod support;

use std::path::{Path, PathBuf};

use atelier_domain::{JobKind, OutputFormat, protocol::GpsPolicy};
use atelier_imaging::{Color, EncodeSpec, Generation, Limits, Metadata, Samples, decode, encode};
use support::{
    exif::Order,
    exiftool::{exiftool, problems, tag},
};

const FORMATS: [OutputFormat; 3] = [OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp];
const TRAINED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
const COMPOSITE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia";
const ENHANCED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced";

fn write(folder: &Path, format: OutputFormat, metadata: &Metadata) -> PathBuf {
    let path = folder.join(format!("output.{}", format.extension()));
    let samples: Vec<u8> = (0..16 * 8 * 3).map(|n| u8::try_from(n * 5 % 256).expect("is below 256")).collect();
    let spec = EncodeSpec { format, quality: 90, width: 16, height: 8, color: Color::Rgb, alpha: false, metadata };
    let encoded = encode(Samples::U8(&samples), &spec, &path).expect("encodes");
    assert_eq!(encoded.notes, Vec::<String>::new());
    assert_eq!(wrong(&path), Vec::<String>::new(), "{format:?}");
    path
}

/// What exiftool finds wrong, but for two things: what an EXIF block should also hold and that of no writer of this
/// text does, and the order of its bytes, which is the one that its readers expect in every block.
fn wrong(path: &Path) -> Vec<String> {
    let is_known = |line: &String| {
        line.contains(" Warning") || line.starts_with("Missing required") || line.contains("EXIF UserComment UNICODE")
    };
    problems(path).into_iter().filter(|line| !is_known(line)).collect()
}

fn generation(prompt: &str) -> String {
    Generation {
        prompt,
        negative_prompt: "rain",
        steps: Some(20),
        sampler: Some("Euler"),
        guidance_scale: Some(7.0),
        seed: Some(42),
        width: 16,
        height: 8,
        model: "tiny",
        model_sha256: Some("0123456789abcdef"),
        ..Generation::default()
    }
    .parameters()
}

/// The text where each format's readers look for it.
fn parameters(path: &Path, format: OutputFormat) -> String {
    tag(path, if format == OutputFormat::Png { "PNG:Parameters" } else { "ExifIFD:UserComment" })
}

#[test]
fn a_generated_picture_says_so_in_every_format() {
    let folder = support::folder();
    for prompt in ["a house", "ein Häuschen 你好 🎨"] {
        let text = generation(prompt);
        for format in FORMATS {
            let mut metadata = Metadata::default();
            assert_eq!(metadata.mark(JobKind::Generate, Some(text.clone())), Vec::<String>::new());
            let path = write(folder.path(), format, &metadata);
            assert_eq!(tag(&path, "XMP-iptcExt:DigitalSourceType"), TRAINED, "{format:?}");
            // exiftool shows line breaks as dots.
            assert_eq!(parameters(&path, format), text.replace('\n', "."), "{format:?}");
        }
    }
}

#[test]
fn the_text_is_carried_from_a_generated_picture_to_its_enlargement() {
    let folder = support::folder();
    let mut metadata = Metadata::default();
    metadata.mark(JobKind::Generate, Some(generation("a Häuschen")));
    let source = write(folder.path(), OutputFormat::Png, &metadata);
    let picture = decode(&source, &Limits::default()).expect("decodes");
    for format in FORMATS {
        let (mut output, _) = picture.metadata.for_output(16, 8, GpsPolicy::Keep, Color::Rgb);
        output.mark(JobKind::Upscale, None);
        let path = write(folder.path(), format, &output);
        assert_eq!(tag(&path, "XMP-iptcExt:DigitalSourceType"), TRAINED, "an enlargement is no photo");
        assert_eq!(parameters(&path, format), generation("a Häuschen").replace('\n', "."), "{format:?}");
    }
}

#[test]
fn a_photo_keeps_all_that_it_says_beside_the_origin() {
    let folder = support::folder();
    for (order, kind, expected) in [(Order::Big, JobKind::Upscale, ENHANCED), (Order::Little, JobKind::Edit, COMPOSITE)]
    {
        let path = folder.path().join("source.jpg");
        let camera = Metadata { exif: Some(support::exif::camera(order, 1)), ..Metadata::default() };
        std::fs::copy(write(folder.path(), OutputFormat::Jpeg, &camera), &path).expect("can be copied");
        let origin = "-XMP-iptcExt:DigitalSourceType=http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture";
        exiftool(["-overwrite_original", "-XMP-dc:Title=Meer", origin, &path.to_string_lossy()]);
        let make = tag(&path, "IFD0:Make");
        assert!(!make.is_empty());
        let picture = decode(&path, &Limits::default()).expect("decodes");
        for format in FORMATS {
            let (mut output, _) = picture.metadata.for_output(16, 8, GpsPolicy::Keep, Color::Rgb);
            let text = (kind == JobKind::Edit).then(|| generation("sunset"));
            assert_eq!(output.mark(kind, text.clone()), Vec::<String>::new());
            let path = write(folder.path(), format, &output);
            assert_eq!(tag(&path, "XMP-iptcExt:DigitalSourceType"), expected, "{format:?}");
            assert_eq!(tag(&path, "XMP-dc:Title"), "Meer", "{format:?}");
            assert_eq!(tag(&path, "IFD0:Make"), make, "{format:?}");
            if let Some(text) = text {
                assert_eq!(parameters(&path, format), text.replace('\n', "."), "{format:?}");
            }
        }
    }
}

#[test]
fn an_origin_is_replaced_however_it_is_written_and_a_broken_packet_is_begun_anew() {
    let ns = "xmlns:i=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\"";
    let rdf = "xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"";
    let capture = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture";
    for inner in [
        format!("<rdf:Description {ns} i:DigitalSourceType=\"{capture}\"/>"),
        format!("<rdf:Description {ns}><i:DigitalSourceType>{capture}</i:DigitalSourceType></rdf:Description>"),
        format!("<rdf:Description {ns}><i:DigitalSourceType rdf:resource=\"{capture}\"/></rdf:Description>"),
        "<rdf:Description/>".to_owned(),
    ] {
        let packet = format!("<rdf:RDF {rdf}>{inner}</rdf:RDF>");
        let mut metadata = Metadata { xmp: Some(packet.into_bytes()), ..Metadata::default() };
        let before = metadata.digital_source();
        assert_eq!(before.as_deref(), inner.contains(capture).then_some(capture), "{inner}");
        assert_eq!(metadata.mark(JobKind::Upscale, None), Vec::<String>::new(), "{inner}");
        assert_eq!(metadata.digital_source().as_deref(), Some(ENHANCED), "{inner}");
        let text = String::from_utf8(metadata.xmp.expect("is there")).expect("is text");
        assert!(!text.contains("digitalCapture"), "{text}");
    }
    let mut broken = Metadata { xmp: Some(b"<rdf:RDF".to_vec()), ..Metadata::default() };
    assert_eq!(broken.mark(JobKind::Generate, None).len(), 1);
    assert_eq!(broken.digital_source().as_deref(), Some(TRAINED));
}

/// The files that `sd-parsers` reads in `tests/clients`; made anew with UPDATE_FIXTURES=1.
#[test]
fn the_committed_samples_are_what_is_written() {
    let folder = support::folder();
    let mut metadata = Metadata::default();
    metadata.mark(JobKind::Generate, Some(generation("a house by the sea, ein Häuschen")));
    for format in FORMATS {
        let made = std::fs::read(write(folder.path(), format, &metadata)).expect("reads");
        let name = format!("tests/fixtures/provenance/generated.{}", format.extension());
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            std::fs::create_dir_all(committed.parent().expect("has a folder")).expect("can be made");
            std::fs::write(&committed, &made).expect("can be written");
        }
        assert_eq!(std::fs::read(&committed).expect("is committed"), made, "{name}");
    }
}
