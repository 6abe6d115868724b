//! The rules for a [`LiveLayer`]: see [`naru_engines::live`].

mod gateways;
mod leases;
mod presence;
mod proofs;

use super::{LiveLayer, Of, fixtures, together};

crate::conformance_cases! { live => conformance_data [LiveLayer] }
