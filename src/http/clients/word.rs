//! What of a job is no file.

use serde_json::Value;

/// The text of a caption.
pub(crate) fn caption(result: &Value) -> Option<String> {
    let text = ["text", "caption"].iter().find_map(|name| result.get(name)).unwrap_or(result);
    text.as_str().map(str::to_owned)
}
