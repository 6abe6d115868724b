//! The store on MongoDB: what must last, on a replica set's majority.
