//! One request on one connection over a unix socket: all that is needed of HTTP here.

use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::Failure;

/// Sends a request and gives the answer's body; an answer that is no success is a failure.
pub(crate) async fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    let mut stream = UnixStream::connect(socket).await?;
    let text = body.map_or_else(String::new, Value::to_string);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    let (head, length) = loop {
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>())
            });
            break (head, end + 4 + length.transpose()?.unwrap_or(0));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(format!("{method} {path}: the connection was closed").into());
        }
    };
    while answer.len() < length {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(format!("{method} {path}: the answer was cut off").into());
        }
    }
    let start = head.len() + 4;
    let text = String::from_utf8_lossy(&answer[start..length]).into_owned();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        return Err(format!("{method} {path}: {status} {text}").into());
    }
    Ok(if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text)?
    })
}
