//! Gives every accepted message its place in the room, saves it and confirms the saved id.
