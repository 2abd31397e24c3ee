//! The command `sessionlog`, run as a program.
