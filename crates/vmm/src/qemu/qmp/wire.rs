//! The wire format: one JSON object a line. What comes from the monitor is bounded and checked here.
//!
//! Format: QEMU, `docs/interop/qmp-spec.rst`.

use serde::Deserialize;
use serde_json::{Value, json};

/// The longest line taken, in bytes. The longest honest answer (every block node of a deep chain) is
/// far below; a monitor that was taken over by its guest must not fill the engine's memory.
pub(super) const LINE_MAX: usize = 4 << 20;

/// Something that happened in the monitor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its name, in capitals.
    pub(crate) name: String,
    /// What it tells; null where it tells nothing.
    pub(crate) data: Value,
}

/// One line from the monitor.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Greeting,
    Event(Event),
    Return {
        id: u64,
        value: Value,
    },
    Error {
        id: Option<u64>,
        class: String,
        description: String,
    },
}

/// A line that is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a line of over {LINE_MAX} bytes")]
    TooLong,
    #[error("a line that is no QMP message: {0}")]
    Malformed(String),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    class: String,
    desc: String,
}

pub(super) fn parse(line: &[u8]) -> Result<Message, WireError> {
    let malformed = |why: String| {
        let start: String = String::from_utf8_lossy(line).chars().take(80).collect();
        WireError::Malformed(format!("{why} in {start:?}"))
    };
    let raw: Raw = serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    if let Some(name) = raw.event {
        return Ok(Message::Event(Event {
            name,
            data: raw.data,
        }));
    }
    if let Some(error) = raw.error {
        return Ok(Message::Error {
            id: raw.id,
            class: error.class,
            description: error.desc,
        });
    }
    match (raw.value, raw.id, raw.greeting) {
        (Some(value), Some(id), _) => Ok(Message::Return { id, value }),
        (None, _, Some(_)) => Ok(Message::Greeting),
        _ => Err(malformed("neither event, answer nor greeting".to_owned())),
    }
}

pub(super) fn command(name: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let mut message = json!({ "execute": name, "id": id });
    if let (Some(object), Value::Object(given)) = (message.as_object_mut(), arguments)
        && !given.is_empty()
    {
        object.insert("arguments".to_owned(), arguments.clone());
    }
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// No newline lies before this offset: a long line is searched once, not once a read.
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let found = self
            .buffer
            .iter()
            .skip(self.searched)
            .position(|&byte| byte == b'\n');
        let Some(offset) = found else {
            self.searched = self.buffer.len();
            return if self.buffer.len() > LINE_MAX {
                Err(WireError::TooLong)
            } else {
                Ok(None)
            };
        };
        let end = self.searched + offset;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        self.searched = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(
            parse(br#"{"QMP": {"version": {}, "capabilities": []}}"#),
            Ok(Message::Greeting)
        );
        assert_eq!(
            parse(br#"{"return": {}, "id": 7}"#),
            Ok(Message::Return {
                id: 7,
                value: json!({})
            })
        );
        assert_eq!(
            parse(br#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#),
            Ok(Message::Event(Event {
                name: "STOP".to_owned(),
                data: Value::Null
            }))
        );
        assert_eq!(
            parse(br#"{"error": {"class": "GenericError", "desc": "no"}, "id": 8}"#),
            Ok(Message::Error {
                id: Some(8),
                class: "GenericError".to_owned(),
                description: "no".to_owned()
            })
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [
            &b""[..],
            b"{",
            b"[]",
            b"{}",
            b"\"x\"",
            b"{\"return\": 1}",
            b"\xff\xfe",
            b"{\"id\": 3}",
        ] {
            assert!(
                parse(bad).is_err(),
                "{:?} was taken for a message",
                String::from_utf8_lossy(bad)
            );
        }
    }

    #[test]
    fn lines_may_come_in_any_pieces() {
        let mut lines = Lines::default();
        for byte in b"ab\r\n\ncd\ne" {
            lines.push(&[*byte]);
        }
        assert_eq!(lines.next(), Ok(Some(b"ab".to_vec())));
        assert_eq!(lines.next(), Ok(Some(Vec::new())));
        assert_eq!(lines.next(), Ok(Some(b"cd".to_vec())));
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"f\n");
        assert_eq!(lines.next(), Ok(Some(b"ef".to_vec())));
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let mut lines = Lines::default();
        let piece = vec![b' '; 1 << 20];
        for _ in 0..4 {
            lines.push(&piece);
            assert_eq!(lines.next(), Ok(None));
        }
        lines.push(b" ");
        assert_eq!(lines.next(), Err(WireError::TooLong));
    }

    #[test]
    fn commands_carry_arguments_only_where_there_are_some() {
        assert_eq!(
            command("stop", &json!({}), 1),
            b"{\"execute\":\"stop\",\"id\":1}\n"
        );
        let line = command("getfd", &json!({"fdname": "a\nb"}), 2);
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
}
