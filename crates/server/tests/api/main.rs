//! The API over a real engine on a simulated host, through a real socket.

mod document;
mod ending;
mod objects;
mod refusals;
mod sessions;
mod support;
