//! Answers that come piece by piece: lines of JSON, and plain bytes.

use std::marker::PhantomData;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::body::{self, Body};
use super::request::unreadable;
use super::{Client, Path, Upload};
use crate::exit::Failure;

/// The longest line that is believed, in bytes.
const LINE_MAX: usize = 4 << 20;

/// An answer's bytes.
#[derive(Debug)]
pub(crate) struct Octets {
    body: Incoming,
    client: Client,
}

impl Octets {
    /// The next piece; `None` at the proper end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| self.client.broken(error))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// An answer's lines, each a value of type `T`.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    octets: Octets,
    pending: BytesMut,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn new(octets: Octets) -> Self {
        Self {
            octets,
            pending: BytesMut::new(),
            of: PhantomData,
        }
    }

    /// The next value; `None` at the proper end.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line = self.pending.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| unreadable(&error));
            }
            if self.pending.len() > LINE_MAX {
                return Err(self.octets.client.broken("a line of its answer has no end"));
            }
            match self.octets.next().await? {
                Some(piece) => self.pending.extend_from_slice(&piece),
                None if self.pending.is_empty() => return Ok(None),
                None => return Err(self.octets.client.broken("its answer ends in mid-line")),
            }
        }
    }
}

impl Client {
    /// The bytes at `path`.
    pub(crate) async fn octets(&self, path: Path) -> Result<Octets, Failure> {
        let answer = self.send(Method::GET, &path, body::empty()).await?;
        Ok(Octets {
            body: answer.into_body(),
            client: self.clone(),
        })
    }

    /// The lines at `path`.
    pub(crate) async fn lines<T: DeserializeOwned>(&self, path: Path) -> Result<Lines<T>, Failure> {
        self.octets(path).await.map(Lines::new)
    }

    /// Posts `request` and gives back the lines of the answer.
    pub(crate) async fn post_lines<T: DeserializeOwned>(
        &self,
        path: Path,
        request: &impl Serialize,
    ) -> Result<Lines<T>, Failure> {
        self.upload_lines(path, body::json(request)?).await
    }

    /// Posts a stream and gives back the lines of the answer, which come while it is being sent.
    pub(crate) async fn post_stream<T: DeserializeOwned>(
        &self,
        path: Path,
        upload: Upload,
    ) -> Result<Lines<T>, Failure> {
        self.upload_lines(path, upload.into()).await
    }

    /// Puts a stream.
    pub(crate) async fn put_stream(&self, path: Path, upload: Upload) -> Result<(), Failure> {
        self.send(Method::PUT, &path, upload.into()).await.map(drop)
    }

    async fn upload_lines<T: DeserializeOwned>(
        &self,
        path: Path,
        body: Body,
    ) -> Result<Lines<T>, Failure> {
        let answer = self.send(Method::POST, &path, body).await?;
        Ok(Lines::new(Octets {
            body: answer.into_body(),
            client: self.clone(),
        }))
    }
}
