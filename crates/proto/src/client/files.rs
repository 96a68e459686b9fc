//! Files in the guest. Contents are streamed, so their size has no bound.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{AgentClient, CallError};
use crate::limits::CHUNK_BYTES;
use crate::pb;

/// How to write a file that may not exist yet.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Permission bits of a new file; 0 means `0644`. An existing file keeps its own.
    pub mode: u32,
    /// Owner of a new file, as in [`ExecStart`](super::ExecStart). Default: root.
    pub user: Option<String>,
    /// Add to the end instead of replacing.
    pub append: bool,
    /// Make missing parent directories.
    pub parents: bool,
}

/// The contents of a file or an archive, piece by piece.
#[derive(Debug)]
pub struct Chunks {
    stream: Streaming<pb::FileChunk>,
    op: &'static str,
    _client: AgentClient,
}

impl Chunks {
    /// The next piece; `None` at the end. An error means that what came before is not the whole.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        match self.stream.message().await {
            Ok(chunk) => Ok(chunk.map(|c| c.data)),
            Err(status) => Err(CallError::from_status(self.op, &status)),
        }
    }
}

/// Changes below a directory.
#[derive(Debug)]
pub struct Watch {
    stream: Streaming<pb::WatchEvent>,
    _client: AgentClient,
}

impl Watch {
    /// The next change.
    ///
    /// # Errors
    /// [`CallError`], also when the watched directory itself goes away.
    pub async fn next(&mut self) -> Result<Option<pb::WatchEvent>, CallError> {
        self.stream
            .message()
            .await
            .map_err(|s| CallError::from_status("watch", &s))
    }
}

impl AgentClient {
    /// Reads a regular file from `offset`; a `length` of 0 means to its end.
    ///
    /// # Errors
    /// [`CallError::NotFound`], [`CallError::Refused`] when it is no regular file.
    pub async fn read_file(
        &self,
        path: &Path,
        offset: u64,
        length: u64,
    ) -> Result<Chunks, CallError> {
        const OP: &str = "read file";
        let mut grpc = self.grpc();
        let request = Request::new(pb::ReadFileRequest {
            path: raw(path),
            offset,
            length,
        });
        let stream = self.within(OP, grpc.read_file(request)).await?.into_inner();
        Ok(Chunks {
            stream,
            op: OP,
            _client: self.clone(),
        })
    }

    /// Writes a file from a stream; gives back the number of bytes written. When the stream
    /// yields an error, or the future is dropped, the file may have been written in part.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn write_file<S>(
        &self,
        path: &Path,
        options: WriteOptions,
        content: S,
    ) -> Result<u64, CallError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send,
    {
        let header = pb::WriteFileHeader {
            path: raw(path),
            mode: options.mode,
            user: options.user.unwrap_or_default(),
            append: options.append,
            parents: options.parents,
        };
        let head = pb::WriteFileChunk {
            header: Some(header),
            data: Bytes::new(),
        };
        let chunk = |data| pb::WriteFileChunk { header: None, data };
        let mut grpc = self.grpc();
        let reply = upload("write file", head, chunk, content, |s| async move {
            grpc.write_file(s).await
        });
        Ok(reply.await?.bytes)
    }

    /// A file or a directory tree as a tar archive. Its top entry is called `name`, or if that is
    /// `None` as the last component of the path.
    ///
    /// # Errors
    /// [`CallError::NotFound`]; errors on the way end the archive with an error.
    pub async fn read_tar(
        &self,
        path: &Path,
        name: Option<&Path>,
        follow: bool,
    ) -> Result<Chunks, CallError> {
        const OP: &str = "read archive";
        let mut grpc = self.grpc();
        let name = name.map(raw).unwrap_or_default();
        let request = Request::new(pb::ReadTarRequest {
            path: raw(path),
            name,
            follow,
        });
        let stream = self.within(OP, grpc.read_tar(request)).await?.into_inner();
        Ok(Chunks {
            stream,
            op: OP,
            _client: self.clone(),
        })
    }

    /// Unpacks a tar archive into an existing directory; gives back the number of entries. With
    /// `user` everything belongs to it, else owners are as the archive says.
    ///
    /// # Errors
    /// [`CallError`]; what was unpacked before the error stays.
    pub async fn write_tar<S>(
        &self,
        directory: &Path,
        user: Option<&str>,
        archive: S,
    ) -> Result<u64, CallError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send,
    {
        let header = pb::WriteTarHeader {
            path: raw(directory),
            user: user.unwrap_or_default().to_owned(),
        };
        let head = pb::WriteTarChunk {
            header: Some(header),
            data: Bytes::new(),
        };
        let chunk = |data| pb::WriteTarChunk { header: None, data };
        let mut grpc = self.grpc();
        let reply = upload("write archive", head, chunk, archive, |s| async move {
            grpc.write_tar(s).await
        });
        Ok(reply.await?.entries)
    }

    /// Kind, size, mode, owner and time of a file.
    ///
    /// # Errors
    /// [`CallError::NotFound`].
    pub async fn stat(&self, path: &Path, follow: bool) -> Result<pb::FileInfo, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::StatRequest {
            path: raw(path),
            follow,
        });
        let reply = self.within("stat", grpc.stat(request)).await?.into_inner();
        Ok(reply.file.unwrap_or_default())
    }

    /// The entries of a directory, without `.` and `..`, in no order.
    ///
    /// # Errors
    /// [`CallError::NotFound`]; refused when there are more than `limit`.
    pub async fn list(&self, path: &Path, limit: usize) -> Result<Vec<pb::FileInfo>, CallError> {
        const OP: &str = "list";
        let mut grpc = self.grpc();
        let request = Request::new(pb::ListRequest { path: raw(path) });
        let mut stream = self.within(OP, grpc.list(request)).await?.into_inner();
        let mut files = Vec::new();
        while let Some(reply) = self.within(OP, stream.message()).await? {
            files.extend(reply.files);
            if files.len() > limit {
                return Err(CallError::Refused {
                    op: OP,
                    code: tonic::Code::ResourceExhausted,
                    message: format!("\"{}\" has more than {limit} entries", path.display()),
                });
            }
        }
        Ok(files)
    }

    /// Makes a directory. With `parents`, missing parents too, and one that exists is no error.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn make_dir(
        &self,
        path: &Path,
        parents: bool,
        mode: u32,
        user: Option<&str>,
    ) -> Result<(), CallError> {
        let mut grpc = self.grpc();
        let user = user.unwrap_or_default().to_owned();
        let request = Request::new(pb::MakeDirRequest {
            path: raw(path),
            parents,
            mode,
            user,
        });
        self.within("make directory", grpc.make_dir(request))
            .await
            .map(|_| ())
    }

    /// Renames within one file system.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn rename(&self, from: &Path, to: &Path) -> Result<(), CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::MoveRequest {
            from: raw(from),
            to: raw(to),
        });
        self.within("move", grpc.r#move(request)).await.map(|_| ())
    }

    /// Removes a file, or with `recursive` a whole tree.
    ///
    /// # Errors
    /// [`CallError::NotFound`]; refused for a directory without `recursive`.
    pub async fn remove(&self, path: &Path, recursive: bool) -> Result<(), CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::RemoveRequest {
            path: raw(path),
            recursive,
        });
        self.within("remove", grpc.remove(request))
            .await
            .map(|_| ())
    }

    /// Reports changes below a directory. Returns when the watch is in place.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn watch(&self, path: &Path, recursive: bool) -> Result<Watch, CallError> {
        let mut grpc = self.grpc();
        let request = Request::new(pb::WatchRequest {
            path: raw(path),
            recursive,
        });
        let stream = self
            .within("watch", async {
                let mut stream = grpc.watch(request).await?.into_inner();
                stream.message().await?;
                Ok(stream)
            })
            .await?;
        Ok(Watch {
            stream,
            _client: self.clone(),
        })
    }
}

fn raw(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// Streams `content` up. When the content fails, the call is cancelled rather than ended, so that
/// the agent never takes a part for the whole.
async fn upload<M, R, S, F>(
    op: &'static str,
    head: M,
    chunk: impl Fn(Bytes) -> M,
    content: S,
    send: impl FnOnce(ReceiverStream<M>) -> F,
) -> Result<R, CallError>
where
    S: Stream<Item = io::Result<Bytes>>,
    F: Future<Output = Result<Response<R>, Status>>,
{
    let (messages, receiver) = mpsc::channel(4);
    let feed = async {
        let mut content = pin!(content);
        // That the agent takes no more is not said here: its reply says why.
        let mut open = messages.send(head).await.is_ok();
        while open && let Some(mut piece) = content.try_next().await? {
            while open && !piece.is_empty() {
                let part = piece.split_to(piece.len().min(CHUNK_BYTES));
                open = messages.send(chunk(part)).await.is_ok();
            }
        }
        Ok(())
    };
    let mut call = pin!(send(ReceiverStream::new(receiver)));
    let reply = tokio::select! {
        reply = &mut call => reply,
        fed = feed => {
            fed.map_err(|source| CallError::Source { op, source })?;
            drop(messages);
            call.await
        }
    };
    reply
        .map(Response::into_inner)
        .map_err(|s| CallError::from_status(op, &s))
}
