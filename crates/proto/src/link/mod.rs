//! A byte stream with sessions, over a virtio-serial port that has none.
//!
//! The port carries bytes and nothing else: a host may be killed in the middle of a frame and
//! another may come, and after a restore the guest meets a host that it has never seen, with
//! bytes of an older conversation still on the way in both directions. The link makes each host's
//! visit a *session* with a random nonce:
//!
//! ```text
//!   host                                            agent
//!    │── 00 00 … 00 (a sled, longer than a frame) ───►│  whatever it was reading is over
//!    │── SYN(n) ──────────────────────────────────────►│  the old session is lost, n begins
//!    │◄─ (bytes of older sessions, ignored) ───────────│
//!    │◄───────────────────────────────────── SYNACK(n) │
//!    │◄──────────── DATA(n), CREDIT(n) ───────────────►│
//!    │── FIN(n) ──────────────────────────────────────►│
//! ```
//!
//! Nothing here depends on a hang-up being seen, and no buffer grows without bound: a peer sends
//! only what it has credit for ([`WINDOW`]). The link knows nothing of what it carries.

mod agent;
mod driver;
mod frame;
mod host;
mod session;

pub use agent::{Listener, listen};
pub use frame::{Decoded, Decoder, Frame, Kind, MAX_FRAME, MAX_PAYLOAD, MIN_SLED, SLED, encode};
pub use host::{HandshakeError, connect};
pub use session::{LinkStream, WINDOW};
