//! Accepts what phones send, forwards what the live layer brings, serves the HTTP API.
