//! the durable record of every handle and object, and the pure recovery plan.
