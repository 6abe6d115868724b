//! All of Naru in one process.
