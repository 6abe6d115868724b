//! What the workers ask of a store, a bus and a live layer: traits, contracts and the suite that checks them.
