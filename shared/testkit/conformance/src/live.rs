//! What a [`LiveLayer`] must reach and know: see [`crate::live`].

mod gateways;
mod leases;
mod presence;
mod proofs;

use super::{LiveLayer, Of, given, together};

crate::conformance_cases! { live => conformance_data [LiveLayer] }
