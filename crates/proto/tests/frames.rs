//! The decoder finds a handshake again whatever came before it.

use bytes::BytesMut;
use cowslip_proto::link::{Decoded, Decoder, Frame, Kind, MAX_PAYLOAD, SLED, encode};
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Syn,
        Kind::SynAck,
        Kind::Data,
        Kind::Credit,
        Kind::Fin,
        Kind::Reset,
    ])
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        // Full frames, and contents that look like sleds and frames.
        (any::<u8>(), 0..=MAX_PAYLOAD).prop_map(|(b, n)| vec![b; n]),
        Just(vec![0; MAX_PAYLOAD]),
        Just([vec![0; 100], vec![3; 100]].concat()),
    ]
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    (kind(), any::<u64>(), payload()).prop_map(|(kind, session, payload)| {
        let mut out = BytesMut::new();
        encode(kind, session, &payload, &mut out);
        out.to_vec()
    })
}

/// Something that a stream may hold when a new host comes.
fn remains() -> impl Strategy<Value = Vec<u8>> {
    let cut = (frame(), any::<prop::sample::Index>()).prop_map(|(frame, at)| {
        let at = at.index(frame.len());
        frame[..at].to_vec()
    });
    let tail = (frame(), any::<prop::sample::Index>()).prop_map(|(frame, at)| {
        let at = at.index(frame.len());
        frame[at..].to_vec()
    });
    let garbage = prop::collection::vec(any::<u8>(), 0..512);
    // The beginning of a frame that claims to be longer than what follows.
    let claim = (1u8..=6, any::<u64>(), any::<u16>()).prop_map(|(kind, session, length)| {
        [&[kind][..], &session.to_be_bytes(), &length.to_be_bytes()].concat()
    });
    let piece = prop_oneof![frame(), cut, tail, garbage, claim];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// Pushes in pieces of the given sizes and decodes everything.
fn decode(stream: &[u8], sizes: &[usize]) -> Vec<Frame> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().copied().cycle();
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(1).clamp(1, rest.len());
        decoder.push(&rest[..size]);
        rest = &rest[size..];
        while let Some(decoded) = decoder.next_frame() {
            if let Decoded::Frame(frame) = decoded {
                frames.push(frame);
            }
        }
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_handshake_is_seen_after_anything(
        before in remains(),
        nonce in any::<u64>(),
        sizes in prop::collection::vec(1usize..9000, 1..8),
    ) {
        let mut stream = BytesMut::from(&before[..]);
        stream.resize(stream.len() + SLED, 0);
        encode(Kind::Syn, nonce, b"", &mut stream);
        encode(Kind::Data, nonce, b"hello", &mut stream);
        let frames = decode(&stream, &sizes);
        let [.., syn, data] = frames.as_slice() else {
            return Err(TestCaseError::fail("no handshake was seen"));
        };
        prop_assert_eq!((syn.kind, syn.session), (Kind::Syn, nonce));
        prop_assert_eq!((data.kind, &data.payload[..]), (Kind::Data, &b"hello"[..]));
    }

    #[test]
    fn what_was_cut_is_never_delivered(
        whole in frame(),
        at in any::<prop::sample::Index>(),
    ) {
        let cut = &whole[..at.index(whole.len())];
        let stream = [cut, &vec![0; SLED]].concat();
        // Padding completes the frame's length, but not its checksum.
        prop_assert_eq!(decode(&stream, &[4096]), vec![]);
    }

    #[test]
    fn frames_come_out_as_they_went_in(
        all in prop::collection::vec((kind(), any::<u64>(), payload(), 0usize..80), 0..6),
        sizes in prop::collection::vec(1usize..9000, 1..8),
    ) {
        let mut stream = BytesMut::new();
        for (kind, session, payload, padding) in &all {
            encode(*kind, *session, payload, &mut stream);
            stream.resize(stream.len() + padding, 0);
        }
        let frames = decode(&stream, &sizes);
        prop_assert_eq!(frames.len(), all.len());
        for (frame, (kind, session, payload, _)) in frames.iter().zip(&all) {
            prop_assert_eq!((frame.kind, frame.session), (*kind, *session));
            prop_assert_eq!(&frame.payload[..], &payload[..]);
        }
    }
}
