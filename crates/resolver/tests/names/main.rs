//! The resolver of a sandbox on loopback sockets, with name servers that a test writes.

mod answers;
mod hostile;
mod rebinding;
mod sandbox;
mod servers;
mod site;
mod times;
