//! Turns offline events into pushes and keeps at it until a provider has taken them.
