//! The verbs, one file each.

mod archive;
mod boot;
mod broken_disk;
mod checkpoint;
mod create;
mod diff;
mod doctor;
mod events;
mod exec;
mod expire;
mod fallback;
mod flatten;
mod fork;
mod gc;
mod info;
mod kernel;
mod layers;
mod logs;
mod low_water;
mod memory;
mod merge;
mod open;
mod pause;
mod prepared;
mod rebuild;
pub mod recover;
mod remove;
mod remove_checkpoint;
mod resume;
mod run;
mod settle;
mod start;
mod stop;
mod template;
mod watch;

pub use logs::LogKind;
