//! What the fuzz targets call, so that a plain test can call the same. No function returns
//! anything: a panic is a finding.

#[cfg(not(fuzzing))]
compile_error!(
    "build this package from its own folder, whose .cargo/config.toml sets `--cfg fuzzing`"
);

#[path = "../../tests/it/model.rs"]
mod model;

/// Arbitrary bytes as whatever the log reads from its files: refused or read, never a panic, never
/// more memory than a cap.
#[cfg(fuzzing)]
pub fn decoder(bytes: &[u8]) {
    sessionlog::fuzz::decode(bytes);
}

/// Arbitrary bytes as the JSON that an event holds: refused or read, never a panic.
#[cfg(fuzzing)]
pub fn json(bytes: &[u8]) {
    sessionlog::fuzz::read_json(bytes);
}

/// Arbitrary bytes as operations on a log, which must do what plain maps do.
pub fn operations(bytes: &[u8]) {
    model::run(&model::decode(bytes));
}
