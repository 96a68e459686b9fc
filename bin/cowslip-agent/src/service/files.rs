//! Calls about files: between the network's streams and the blocking work of `files`.

use std::io;

use bytes::Bytes;
use cowslip_proto::pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::bytes_io::{DEPTH, FromHost, ToHost};
use crate::files::{archive, blocking, content, tree, watch::Watcher};

type Chunks = ReceiverStream<Result<pb::FileChunk, Status>>;

pub(super) async fn read_file(request: pb::ReadFileRequest) -> Result<Chunks, Status> {
    let file = blocking(move || content::open_to_read(&request)).await?;
    Ok(download(|to| content::send(file, to)))
}

pub(super) async fn read_tar(request: pb::ReadTarRequest) -> Result<Chunks, Status> {
    let source = blocking(move || archive::open(&request)).await?;
    Ok(download(move |to| {
        match archive::pack(&source, ToHost::new(to.clone())) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Status::unknown(format!("cannot read on: {e}")))
            }
            _ => Ok(()),
        }
    }))
}

pub(super) fn list(request: pb::ListRequest) -> ReceiverStream<Result<pb::ListReply, Status>> {
    download(move |to| tree::list(&request, to))
}

pub(super) async fn stat(request: pb::StatRequest) -> Result<pb::StatReply, Status> {
    let file = blocking(move || tree::stat(&request)).await?;
    Ok(pb::StatReply { file: Some(file) })
}

pub(super) async fn make_dir(request: pb::MakeDirRequest) -> Result<pb::MakeDirReply, Status> {
    blocking(move || tree::make_dir(&request))
        .await
        .map(|()| pb::MakeDirReply {})
}

pub(super) async fn rename(request: pb::MoveRequest) -> Result<pb::MoveReply, Status> {
    blocking(move || tree::rename(&request))
        .await
        .map(|()| pb::MoveReply {})
}

pub(super) async fn remove(request: pb::RemoveRequest) -> Result<pb::RemoveReply, Status> {
    blocking(move || tree::remove(&request))
        .await
        .map(|()| pb::RemoveReply {})
}

pub(super) fn watch(
    request: pb::WatchRequest,
) -> Result<ReceiverStream<Result<pb::WatchEvent, Status>>, Status> {
    let watcher = Watcher::new(&request)?;
    let (to, events) = mpsc::channel(DEPTH);
    tokio::spawn(watcher.run(to));
    Ok(ReceiverStream::new(events))
}

pub(super) async fn write_file(
    mut chunks: Streaming<pb::WriteFileChunk>,
) -> Result<pb::WriteFileReply, Status> {
    let first = chunks.message().await?.ok_or_else(no_header)?;
    let header = first.header.ok_or_else(no_header)?;
    let work = move |from| content::write(&header, from);
    let bytes = upload(first.data, chunks, |c| c.data, work).await?;
    Ok(pb::WriteFileReply { bytes })
}

pub(super) async fn write_tar(
    mut chunks: Streaming<pb::WriteTarChunk>,
) -> Result<pb::WriteTarReply, Status> {
    let first = chunks.message().await?.ok_or_else(no_header)?;
    let header = first.header.ok_or_else(no_header)?;
    let work = move |from| archive::unpack(&header, from);
    let entries = upload(first.data, chunks, |c| c.data, work).await?;
    Ok(pb::WriteTarReply { entries })
}

fn no_header() -> Status {
    Status::invalid_argument("the first message has no header")
}

/// Runs work that produces messages; its error is the stream's last item.
fn download<T: Send + 'static>(
    work: impl FnOnce(&mpsc::Sender<Result<T, Status>>) -> Result<(), Status> + Send + 'static,
) -> ReceiverStream<Result<T, Status>> {
    let (to, messages) = mpsc::channel(DEPTH);
    tokio::task::spawn_blocking(move || {
        if let Err(status) = work(&to) {
            // Nobody listening is the usual reason to be here.
            let _ = to.blocking_send(Err(status));
        }
    });
    ReceiverStream::new(messages)
}

/// Runs work that consumes a stream. A stream that breaks off is an error to the work, never the
/// end of the file.
async fn upload<M, T: Send + 'static>(
    first: Bytes,
    mut chunks: Streaming<M>,
    data: impl Fn(M) -> Bytes,
    work: impl FnOnce(FromHost) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let (to, from) = FromHost::new();
    let feed = async move {
        let mut next = Ok(Some(first));
        loop {
            let message = match next {
                Ok(Some(data)) => Ok(data),
                Ok(None) => return,
                Err(status) => Err(io::Error::other(status)),
            };
            let over = message.is_err();
            // The work has ended early; its result says why.
            if to.send(message).await.is_err() || over {
                return;
            }
            next = chunks.message().await.map(|m| m.map(&data));
        }
    };
    let ((), result) = tokio::join!(feed, blocking(move || work(from)));
    result
}
