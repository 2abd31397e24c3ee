//! The functions that the fuzz targets call, so that a plain test can call the same. None returns
//! anything: a panic is a finding.

#[cfg(not(fuzzing))]
compile_error!(
    "build this package from its own folder, whose .cargo/config.toml sets `--cfg fuzzing`"
);

#[path = "../../tests/it/model.rs"]
mod model;

/// Decodes arbitrary bytes as each structure that the log reads from its files.
///
/// They are refused or read, without a panic and within a limit on memory.
#[cfg(fuzzing)]
pub fn decoder(bytes: &[u8]) {
    sessionlog::fuzz::decode(bytes);
}

/// Reads arbitrary bytes as the JSON in an event: they are refused or read, without a panic.
#[cfg(fuzzing)]
pub fn json(bytes: &[u8]) {
    sessionlog::fuzz::read_json(bytes);
}

/// Runs arbitrary bytes as operations on a log, which must do what plain maps do.
pub fn operations(bytes: &[u8]) {
    model::run(&model::decode(bytes));
}
