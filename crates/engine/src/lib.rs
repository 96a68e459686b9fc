//! one file a verb: create, checkpoint, fork, pause, remove, recover.
