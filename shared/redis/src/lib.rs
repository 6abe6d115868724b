//! The live layer on Redis: what reaches the connected, and who that is.
