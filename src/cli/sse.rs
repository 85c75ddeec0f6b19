//! Cuts a stream of server-sent events into events.

/// One event; comments and lone fields make none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

/// Longer than any event of the daemon's.
const MAX_BYTES: usize = 16 << 20;

/// The stream is not one of events.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MAX_BYTES} bytes")]
pub(super) struct TooLong;

#[derive(Debug, Default)]
pub(super) struct Parser {
    buffer: Vec<u8>,
    event: Event,
    has_data: bool,
    /// What `Last-Event-ID` goes on from.
    pub(super) last_id: Option<String>,
}

impl Parser {
    /// A parser of a connection that goes on from `last_id`.
    pub(super) fn after(last_id: Option<String>) -> Self {
        Self { last_id, ..Self::default() }
    }

    /// Adds bytes as they arrive, and gives the events that are whole.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut taken = 0;
        while let Some((line, next)) = self.line(taken) {
            taken = next;
            if let Some(event) = self.field(&line) {
                events.push(event);
            }
        }
        self.buffer.drain(..taken);
        if self.buffer.len() + self.event.data.len() > MAX_BYTES { Err(TooLong) } else { Ok(events) }
    }

    /// The line that begins at `from`, and where the next begins.
    fn line(&self, from: usize) -> Option<(String, usize)> {
        let rest = self.buffer.get(from..)?;
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
        let ending = match (rest.get(end), rest.get(end + 1)) {
            (Some(b'\r'), Some(b'\n')) => 2,
            // The other half may still be on its way.
            (Some(b'\r'), None) => return None,
            _ => 1,
        };
        Some((String::from_utf8_lossy(&rest[..end]).into_owned(), from + end + ending))
    }

    fn field(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 2000\nid: 6\n\n: keep-alive\n\nid: 7\nevent: job.updated\ndata: {\"a\":\r\ndata: \"é\"}\r\n\r\n\
                          event: job.progress\rdata:x\r\rdata: unfinished";

    #[test]
    fn events_survive_any_cutting_of_the_stream() {
        let expected = [
            Event { name: "job.updated".into(), data: "{\"a\":\n\"é\"}".into() },
            Event { name: "job.progress".into(), data: "x".into() },
        ];
        for chunk in [1, 2, 3, 7, 4096] {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for bytes in STREAM.as_bytes().chunks(chunk) {
                events.extend(parser.push(bytes).expect("short"));
            }
            assert_eq!(events, expected, "in pieces of {chunk}");
            assert_eq!(parser.last_id.as_deref(), Some("7"));
        }
    }

    #[test]
    fn a_number_without_an_event_is_remembered() {
        let mut parser = Parser::after(Some("3".into()));
        assert_eq!(parser.push(b": hello\n\n"), Ok(vec![]));
        assert_eq!(parser.last_id.as_deref(), Some("3"));
        assert_eq!(parser.push(b"id: 4\n\n"), Ok(vec![]));
        assert_eq!(parser.last_id.as_deref(), Some("4"));
    }

    #[test]
    fn a_stream_without_an_end_is_cut_off() {
        let mut parser = Parser::default();
        let mut result = Ok(vec![]);
        for _ in 0..=(MAX_BYTES >> 20) {
            result = parser.push(&vec![b'x'; 1 << 20]);
        }
        assert_eq!(result, Err(TooLong));
    }
}
