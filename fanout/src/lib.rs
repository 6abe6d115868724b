//! Decides per recipient between live delivery and a push, emits the offline events, then publishes.
