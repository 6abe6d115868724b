//! The rules for a [`Store`]: see the traits of [`naru_engines::store`].

mod devices;
mod epochs;
mod intake;
mod messages;
mod positions;
mod pushes;
mod rooms;
mod users;

use super::{Of, fixtures, reopened, together};
use naru_engines::store::Store;

crate::conformance_cases! { store => conformance_data [Store] }
