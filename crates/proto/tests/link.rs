//! Hosts come, vanish and come back; the agent always hears the newest one.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use cowslip_proto::AgentClient;
use cowslip_proto::client::ConnectError;
use cowslip_proto::link::{
    Decoded, Decoder, HandshakeError, Kind, LinkStream, Listener, WINDOW, connect, encode, listen,
};
use proptest::prelude::*;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

/// Long enough for a loaded machine: only a failure ever waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One end of the virtual port. Hosts hold it in turn; the port itself never hangs up.
#[derive(Clone)]
struct Cable(Arc<Mutex<DuplexStream>>);

/// A host's hold on the cable, which breaks after so many more bytes were written.
struct Hold {
    cable: Cable,
    budget: Arc<Mutex<usize>>,
}

impl Cable {
    fn hold(&self, budget: usize) -> (Hold, Arc<Mutex<usize>>) {
        let budget = Arc::new(Mutex::new(budget));
        (
            Hold {
                cable: self.clone(),
                budget: budget.clone(),
            },
            budget,
        )
    }
}

impl AsyncRead for Hold {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if *self.budget.lock().unwrap() == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut *self.cable.0.lock().unwrap()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Hold {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut budget = self.budget.lock().unwrap();
        if *budget == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let most = buf.len().min(*budget);
        let mut cable = self.cable.0.lock().unwrap();
        let written = ready!(Pin::new(&mut *cable).poll_write(cx, &buf[..most]))?;
        *budget -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn agent(capacity: usize) -> (Cable, Listener) {
    let (host, guest) = duplex(capacity);
    let (listener, drive) = listen(guest);
    tokio::spawn(drive);
    (Cable(Arc::new(Mutex::new(host))), listener)
}

/// An agent that sends back whatever it gets, on every session.
fn echo(capacity: usize) -> Cable {
    let (cable, mut listener) = agent(capacity);
    tokio::spawn(async move {
        while let Some(stream) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    cable
}

async fn host(cable: &Cable) -> LinkStream {
    connect(cable.hold(usize::MAX).0, PATIENCE).await.unwrap()
}

async fn round_trip(stream: &mut LinkStream, message: &[u8]) {
    stream.write_all(message).await.unwrap();
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, message);
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.unwrap() });
}

#[test]
fn bytes_arrive_in_both_directions_through_a_narrow_port() {
    run(async {
        let stream = host(&echo(100)).await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        // More than every buffer on the way together.
        let sent = (0..4 * WINDOW).map(|i| (i % 251) as u8).collect::<Vec<_>>();
        let copy = sent.clone();
        tokio::spawn(async move {
            writer.write_all(&copy).await.unwrap();
            writer
        });
        let mut back = vec![0; sent.len()];
        reader.read_exact(&mut back).await.unwrap();
        assert!(back == sent);
    });
}

#[test]
fn the_end_of_a_stream_is_told_to_the_other_side() {
    run(async {
        let (cable, mut listener) = agent(1024);
        let mut ours = host(&cable).await;
        let mut theirs = listener.accept().await.unwrap();
        ours.write_all(b"last words").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"last words");

        let mut ours = host(&cable).await;
        drop(listener.accept().await.unwrap());
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert!(ours.write_all(b"x").await.is_err());
    });
}

#[test]
fn a_session_is_lost_when_another_host_begins_one() {
    run(async {
        let (cable, mut listener) = agent(1024);
        let (hold, budget) = cable.hold(usize::MAX);
        let _first = connect(hold, PATIENCE).await.unwrap();
        let mut old = listener.accept().await.unwrap();
        *budget.lock().unwrap() = 0;
        let mut second = host(&cable).await;
        let error = old.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(old.write_all(b"x").await.is_err());
        let mut new = listener.accept().await.unwrap();
        second.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        new.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    });
}

#[test]
fn an_agent_that_reads_nothing_still_hears_a_new_host() {
    run(async {
        let (cable, mut listener) = agent(4096);
        let (hold, budget) = cable.hold(usize::MAX);
        let mut first = connect(hold, PATIENCE).await.unwrap();
        let _wedged = listener.accept().await.unwrap();
        // As much as it takes without being read; then writing waits.
        let flood = vec![1; 4 * WINDOW];
        let blocked = tokio::time::timeout(Duration::from_millis(50), first.write_all(&flood));
        assert!(blocked.await.is_err());
        *budget.lock().unwrap() = 0;
        let mut second = host(&cable).await;
        let mut new = listener.accept().await.unwrap();
        new.write_all(b"hi").await.unwrap();
        let mut got = [0; 2];
        second.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hi");
    });
}

#[test]
fn an_agent_that_writes_to_nobody_still_hears_a_new_host() {
    run(async {
        let (cable, mut listener) = agent(4096);
        let (hold, budget) = cable.hold(usize::MAX);
        let _first = connect(hold, PATIENCE).await.unwrap();
        let mut old = listener.accept().await.unwrap();
        *budget.lock().unwrap() = 0;
        // The port is full: nobody reads it any more.
        let flood = vec![1; 4 * WINDOW];
        let blocked = tokio::time::timeout(Duration::from_millis(50), old.write_all(&flood));
        assert!(blocked.await.is_err());
        let mut second = host(&cable).await;
        let mut new = listener.accept().await.unwrap();
        second.write_all(b"hi").await.unwrap();
        let mut got = [0; 2];
        new.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hi");
    });
}

#[test]
fn a_peer_that_sends_more_than_it_may_is_cut_off() {
    run(async {
        let (host, guest) = duplex(64 * 1024);
        let (mut listener, drive) = listen(guest);
        tokio::spawn(drive);
        let (mut reader, mut writer) = tokio::io::split(host);
        let mut syn = BytesMut::new();
        encode(Kind::Syn, 7, b"", &mut syn);
        writer.write_all(&syn).await.unwrap();
        let mut stream = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut data = BytesMut::new();
            encode(Kind::Data, 7, &[1; 1024], &mut data);
            for _ in 0..=WINDOW / 1024 {
                writer.write_all(&data).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let mut decoder = Decoder::default();
        let mut buf = [0; 1024];
        let reset = loop {
            let length = reader.read(&mut buf).await.unwrap();
            decoder.push(&buf[..length]);
            match decoder.next_frame() {
                Some(Decoded::Frame(frame)) if frame.kind == Kind::Reset => break frame,
                _ => {}
            }
        };
        assert_eq!(reset.session, 7);
        let mut all = Vec::new();
        assert!(stream.read_to_end(&mut all).await.is_err());
        assert!(all.len() <= WINDOW);
    });
}

#[test]
fn data_for_a_session_that_the_agent_does_not_know_is_answered() {
    run(async {
        // The guest was reset under its host: it has forgotten the session.
        let (host_end, guest) = duplex(64 * 1024);
        let cable = Cable(Arc::new(Mutex::new(host_end)));
        let (mut old, drive) = listen(guest);
        let old_guest = tokio::spawn(drive);
        let mut stream = host(&cable).await;
        old.accept().await.unwrap();
        old_guest.abort();
        let (host_end, guest) = duplex(64 * 1024);
        *cable.0.lock().unwrap() = host_end;
        let (_new, drive) = listen(guest);
        tokio::spawn(drive);
        // It may take the first one without knowing better.
        while stream.write_all(b"still there?").await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(stream.read(&mut [0]).await.is_err());
    });
}

/// A port that seems to hang up once, when it is told to.
struct Flapping {
    port: DuplexStream,
    hang_up: Arc<Mutex<(bool, Option<Waker>)>>,
}

impl AsyncRead for Flapping {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut hang_up = self.hang_up.lock().unwrap();
        if std::mem::take(&mut hang_up.0) {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        hang_up.1 = Some(cx.waker().clone());
        drop(hang_up);
        Pin::new(&mut self.port).poll_read(cx, buf)
    }
}

impl AsyncWrite for Flapping {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.port).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_host_that_was_taken_for_gone_is_told_and_may_come_again() {
    run(async {
        let (host_end, port) = duplex(1024);
        let cable = Cable(Arc::new(Mutex::new(host_end)));
        let hang_up = Arc::new(Mutex::new((false, None::<Waker>)));
        let (mut listener, drive) = listen(Flapping {
            port,
            hang_up: hang_up.clone(),
        });
        tokio::spawn(drive);
        let mut ours = host(&cable).await;
        let mut theirs = listener.accept().await.unwrap();
        ours.write_all(b"a question").await.unwrap();
        theirs.read_exact(&mut [0; 10]).await.unwrap();
        {
            let mut hang_up = hang_up.lock().unwrap();
            hang_up.0 = true;
            hang_up.1.take().unwrap().wake();
        }
        // It waits for the answer, and says nothing more.
        assert!(ours.read(&mut [0]).await.is_err());
        let mut ours = host(&cable).await;
        let mut theirs = listener.accept().await.unwrap();
        ours.write_all(b"again").await.unwrap();
        theirs.read_exact(&mut [0; 5]).await.unwrap();
    });
}

// covers R53
#[test]
fn a_guest_that_does_not_answer_does_not_hold_the_host() {
    run(async {
        let (raw, _silent) = duplex(100);
        let error = connect(raw, Duration::from_millis(30)).await.unwrap_err();
        assert!(matches!(error, HandshakeError::Timeout { .. }), "{error}");

        let (raw, gone) = duplex(100);
        drop(gone);
        let error = connect(raw, PATIENCE).await.unwrap_err();
        assert!(
            matches!(error, HandshakeError::Ended | HandshakeError::Io(_)),
            "{error}"
        );

        // A session, but nobody who speaks HTTP/2.
        let (cable, _listener) = agent(64 * 1024);
        let raw = cable.hold(usize::MAX).0;
        let error = AgentClient::connect_serial(raw, Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");

        // Somebody who speaks something else.
        let raw = echo(64 * 1024).hold(usize::MAX).0;
        let error = AgentClient::connect_serial(raw, PATIENCE)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Http(_) | ConnectError::Hello(_)),
            "{error}"
        );
    });
}

#[test]
fn bytes_of_older_sessions_are_ignored_by_a_new_host() {
    run(async {
        let (mut guest, raw) = duplex(1 << 20);
        let mut old = BytesMut::new();
        // A frame of which an older host has read the beginning, and frames for somebody else.
        old.extend_from_slice(&[9; 5000]);
        encode(Kind::SynAck, 1, b"", &mut old);
        encode(Kind::Data, 1, b"old", &mut old);
        guest.write_all(&old).await.unwrap();
        let (mut listener, drive) = listen(guest);
        tokio::spawn(drive);
        let mut ours = connect(raw, PATIENCE).await.unwrap();
        listener
            .accept()
            .await
            .unwrap()
            .write_all(b"new")
            .await
            .unwrap();
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"new");
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Hosts are killed at any byte, and each that comes after finds a working agent.
    #[test]
    fn every_host_is_served_wherever_the_one_before_it_was_killed(
        capacity in prop_oneof![Just(64usize), Just(4096), Just(1 << 20)],
        cuts in prop::collection::vec(1usize..20_000, 1..5),
        junk in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        run(async {
            let cable = echo(capacity);
            for cut in cuts {
                let (hold, budget) = cable.hold(cut);
                if let Ok(mut stream) = connect(hold, PATIENCE).await {
                    let message = vec![5; 3000];
                    while stream.write_all(&message).await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                }
                *budget.lock().unwrap() = 0;
            }
            let mut last = cable.hold(usize::MAX).0;
            last.write_all(&junk).await.unwrap();
            let mut stream = connect(last, PATIENCE).await.unwrap();
            round_trip(&mut stream, b"are you there?").await;
            round_trip(&mut stream, &vec![7; 100_000]).await;
        });
    }
}
