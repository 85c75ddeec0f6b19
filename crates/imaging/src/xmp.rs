//! XMP packets: correcting the few properties that an output must not repeat, and removing positions.
//!
//! A packet is edited as text: what is not touched stays byte for byte. The reader knows just enough XML to find tags
//! and attributes; a packet with anything stranger than that is given up.

use std::ops::Range;

use crate::exif::Edit;

const EXIF: &str = "http://ns.adobe.com/exif/1.0/";
const TIFF: &str = "http://ns.adobe.com/tiff/1.0/";
const XMP: &str = "http://ns.adobe.com/xap/1.0/";
const XMP_NOTE: &str = "http://ns.adobe.com/xmp/note/";
const IPTC_EXT: &str = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/";
const RDF: &str = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";
const WGS84: &str = "http://www.w3.org/2003/01/geo/wgs84_pos#";
/// Namespaces of what belongs to the source's own pixels or to a second picture behind it: depth maps, gain maps,
/// motion photos.
const OF_THE_SOURCE: [&str; 6] = [
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/1.0/panorama/",
    "http://ns.google.com/photos/1.0/camera/",
];

/// The packet as an output may carry it; `None` when it cannot be changed safely.
pub(crate) fn edit(packet: &[u8], edit: Edit) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(packet).ok()?;
    let edited = apply(text, &changes(text, edit)?);
    // What is hidden where this reader does not look, in a comment or an escape, must not slip through.
    (!edit.strip_gps || !mentions_position(&edited)).then(|| edited.into_bytes())
}

/// What the packet says of the picture's origin.
pub(crate) fn digital_source(packet: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(packet).ok()?;
    let tokens = tokens(text)?;
    let is_it = origin(text, &tokens);
    for (index, token) in tokens.iter().enumerate() {
        let Markup::Start { name, attributes, empty } = &token.markup else { continue };
        if let Some(attribute) = attributes.iter().find(|attribute| is_it(attribute.name)) {
            return Some(text[attribute.value.clone()].to_owned());
        }
        if is_it(name) {
            let by_reference = attributes.iter().find(|attribute| attribute.name.ends_with(":resource"));
            let content = || Some(text.get(token.range.end..tokens.get(index + 1)?.range.start)?.trim().to_owned());
            return match by_reference {
                Some(attribute) => Some(text[attribute.value.clone()].to_owned()),
                None if *empty => None,
                None => content(),
            };
        }
    }
    None
}

/// The packet with this origin in the place of any other, and whether it had to be begun anew.
pub(crate) fn with_digital_source(packet: Option<&[u8]>, uri: &str) -> (Vec<u8>, bool) {
    let added = format!(
        "<rdf:Description xmlns:rdf=\"{RDF}\" rdf:about=\"\" xmlns:Iptc4xmpExt=\"{IPTC_EXT}\">\
         <Iptc4xmpExt:DigitalSourceType>{uri}</Iptc4xmpExt:DigitalSourceType></rdf:Description>"
    );
    if let Some(text) = packet.and_then(|packet| std::str::from_utf8(packet).ok())
        && let Some(changes) = origin_changes(text, &added)
    {
        return (apply(text, &changes).into_bytes(), false);
    }
    let packet = format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\
         <rdf:RDF xmlns:rdf=\"{RDF}\">{added}</rdf:RDF></x:xmpmeta>\n<?xpacket end=\"w\"?>"
    );
    (packet.into_bytes(), true)
}

/// Whether a name is that of the property.
fn origin<'a>(text: &'a str, all: &[Token<'a>]) -> impl Fn(&str) -> bool + use<'a> {
    let prefixes: Vec<(&str, &str)> = all.iter().flat_map(|token| namespaces(text, token)).collect();
    move |name| {
        name.split_once(':').is_some_and(|(prefix, local)| {
            local == "DigitalSourceType" && prefixes.iter().any(|(known, uri)| *known == prefix && *uri == IPTC_EXT)
        })
    }
}

/// Takes every origin out and puts `added` at the end of the description; `None` where that has no end.
fn origin_changes(text: &str, added: &str) -> Option<Vec<Change>> {
    let tokens = tokens(text)?;
    let is_it = origin(text, &tokens);
    let mut changes = Vec::new();
    let mut removing = None;
    let mut end = None;
    for token in &tokens {
        match &token.markup {
            Markup::Start { name, empty, .. } if is_it(name) && removing.is_none() => {
                if *empty {
                    changes.push(Change { range: token.range.clone(), text: String::new() });
                } else {
                    removing = Some(token.range.start);
                }
            }
            Markup::Start { attributes, .. } => {
                let ours = attributes.iter().filter(|attribute| removing.is_none() && is_it(attribute.name));
                changes.extend(ours.map(|attribute| Change { range: attribute.whole.clone(), text: String::new() }));
            }
            Markup::End { name } if is_it(name) => {
                changes.push(Change { range: removing.take()?..token.range.end, text: String::new() });
            }
            Markup::End { name } if name.ends_with(":RDF") => end = Some(token.range.start),
            Markup::End { .. } | Markup::Other => {}
        }
    }
    if removing.is_some() {
        return None;
    }
    let end = end?;
    changes.push(Change { range: end..end, text: added.to_owned() });
    changes.sort_by_key(|change| change.range.start);
    Some(changes)
}

fn mentions_position(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    ["gpslatitude", "gpslongitude", "gpsposition"].iter().any(|name| lower.contains(name))
}

enum Rule {
    Keep,
    Remove,
    Set(String),
}

struct Change {
    range: Range<usize>,
    text: String,
}

fn apply(text: &str, changes: &[Change]) -> String {
    let mut edited = String::with_capacity(text.len());
    let mut at = 0;
    for Change { range, text: new } in changes {
        edited.push_str(&text[at..range.start]);
        edited.push_str(new);
        at = range.end;
    }
    edited.push_str(&text[at..]);
    edited
}

struct Attribute<'a> {
    name: &'a str,
    /// With the white space before it.
    whole: Range<usize>,
    value: Range<usize>,
}

enum Markup<'a> {
    Start {
        name: &'a str,
        attributes: Vec<Attribute<'a>>,
        empty: bool,
    },
    End {
        name: &'a str,
    },
    /// A comment, a processing instruction or a CDATA section.
    Other,
}

struct Token<'a> {
    markup: Markup<'a>,
    range: Range<usize>,
}

fn changes(text: &str, edit: Edit) -> Option<Vec<Change>> {
    let tokens = tokens(text)?;
    let prefixes: Vec<(&str, &str)> = tokens.iter().flat_map(|token| namespaces(text, token)).collect();
    let rule = |name: &str| rule(name, &prefixes, edit);
    let mut changes = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    // The depth at which a removed element began, and where.
    let mut removing: Option<(usize, usize)> = None;
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        index += 1;
        match &token.markup {
            Markup::Other => {}
            Markup::End { name } => {
                if open.pop() != Some(name) {
                    return None;
                }
                if let Some((depth, start)) = removing.filter(|(depth, _)| *depth == open.len()) {
                    debug_assert_eq!(depth, open.len());
                    changes.push(Change { range: start..token.range.end, text: String::new() });
                    removing = None;
                }
            }
            Markup::Start { name, attributes, empty } => {
                if removing.is_none() {
                    match rule(name) {
                        Rule::Remove if *empty => {
                            changes.push(Change { range: token.range.clone(), text: String::new() });
                            continue;
                        }
                        Rule::Remove => removing = Some((open.len(), token.range.start)),
                        Rule::Set(value) if !empty => {
                            // Only a plain value: text up to the element's own end.
                            let next = tokens.get(index)?;
                            if matches!(next.markup, Markup::End { .. }) {
                                changes.push(Change { range: token.range.end..next.range.start, text: value });
                            }
                        }
                        Rule::Set(_) | Rule::Keep => {}
                    }
                }
                if removing.is_none() {
                    for attribute in attributes {
                        match rule(attribute.name) {
                            Rule::Keep => {}
                            Rule::Remove => {
                                changes.push(Change { range: attribute.whole.clone(), text: String::new() });
                            }
                            Rule::Set(value) => changes.push(Change { range: attribute.value.clone(), text: value }),
                        }
                    }
                }
                if !empty {
                    open.push(name);
                }
            }
        }
    }
    if !open.is_empty() {
        return None;
    }
    changes.sort_by_key(|change| change.range.start);
    Some(changes)
}

fn namespaces<'a>(text: &'a str, token: &Token<'a>) -> Vec<(&'a str, &'a str)> {
    let Markup::Start { attributes, .. } = &token.markup else { return Vec::new() };
    attributes
        .iter()
        .filter_map(|attribute| Some((attribute.name.strip_prefix("xmlns:")?, &text[attribute.value.clone()])))
        .collect()
}

fn rule(name: &str, prefixes: &[(&str, &str)], edit: Edit) -> Rule {
    let (prefix, local) = name.split_once(':').unwrap_or(("", name));
    if prefix == "xmlns" {
        return Rule::Keep;
    }
    let is_in = |namespace: &str| prefixes.iter().any(|(known, uri)| *known == prefix && *uri == namespace);
    let lower = local.to_ascii_lowercase();
    let says_position = ["gps", "latitude", "longitude", "longtitude"].iter().any(|part| lower.contains(part))
        || (is_in(WGS84) && matches!(local, "lat" | "long" | "alt" | "lat_long"));
    match local {
        _ if edit.strip_gps && says_position => Rule::Remove,
        "Orientation" if is_in(TIFF) => Rule::Set("1".into()),
        "ImageWidth" if is_in(TIFF) => Rule::Set(edit.width.to_string()),
        "ImageLength" if is_in(TIFF) => Rule::Set(edit.height.to_string()),
        "PixelXDimension" if is_in(EXIF) => Rule::Set(edit.width.to_string()),
        "PixelYDimension" if is_in(EXIF) => Rule::Set(edit.height.to_string()),
        "Thumbnails" if is_in(XMP) => Rule::Remove,
        "HasExtendedXMP" if is_in(XMP_NOTE) => Rule::Remove,
        _ if OF_THE_SOURCE.iter().any(|namespace| is_in(namespace)) => Rule::Remove,
        _ => Rule::Keep,
    }
}

/// All markup of the text; `None` when it is not well formed enough, or brings a document type along.
fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find('<').map(|found| at + found) {
        let rest = &text[start..];
        let (markup, length) = if rest.starts_with("<!--") {
            (Markup::Other, rest.find("-->")? + 3)
        } else if rest.starts_with("<![CDATA[") {
            (Markup::Other, rest.find("]]>")? + 3)
        } else if rest.starts_with("<?") {
            (Markup::Other, rest.find("?>")? + 2)
        } else if rest.starts_with("<!") {
            return None;
        } else if let Some(end) = rest.strip_prefix("</") {
            let length = end.find('>')?;
            (Markup::End { name: end[..length].trim_end() }, length + 3)
        } else {
            start_tag(text, start)?
        };
        at = start + length;
        tokens.push(Token { markup, range: start..at });
    }
    Some(tokens)
}

/// The start tag at `start`, and how long it is.
fn start_tag(text: &str, start: usize) -> Option<(Markup<'_>, usize)> {
    let blank = |c: char| c.is_ascii_whitespace();
    let mut at = start + 1;
    let name_length = text[at..].find(|c| blank(c) || c == '/' || c == '>')?;
    let name = &text[at..at + name_length];
    if name.is_empty() {
        return None;
    }
    at += name_length;
    let mut attributes = Vec::new();
    loop {
        let whole_start = at;
        at += text[at..].find(|c| !blank(c))?;
        let rest = &text[at..];
        if rest.starts_with('>') {
            return Some((Markup::Start { name, attributes, empty: false }, at + 1 - start));
        }
        if rest.starts_with("/>") {
            return Some((Markup::Start { name, attributes, empty: true }, at + 2 - start));
        }
        let equals = rest.find('=')?;
        let attribute_name = rest[..equals].trim_end();
        if attribute_name.is_empty() || attribute_name.contains(|c| blank(c) || "<>\"'/".contains(c)) {
            return None;
        }
        at += equals + 1;
        at += text[at..].find(|c| !blank(c))?;
        let quote = text[at..].chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let length = text[at + 1..].find(quote)?;
        let value = at + 1..at + 1 + length;
        at = value.end + 1;
        attributes.push(Attribute { name: attribute_name, whole: whole_start..at, value });
    }
}
