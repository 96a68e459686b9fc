//! The plan for any books: it can be made, carrying it out leaves nothing more to do, and it touches
//! nothing that a healthy sandbox uses.
