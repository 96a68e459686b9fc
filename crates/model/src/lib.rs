//! ids, names, states, sizes and public types of cowslip; no I/O.
