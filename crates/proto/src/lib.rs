//! the agent protocol and its link over a byte stream.
