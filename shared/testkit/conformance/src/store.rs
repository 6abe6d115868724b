//! What a [`Store`] must keep: see the traits of [`crate::store`].

mod devices;
mod intake;
mod messages;
mod positions;
mod pushes;
mod rooms;

use super::{Of, given, reopened, together};
use naru_engines::store::Store;

crate::conformance_cases! { store => conformance_data [Store] }
