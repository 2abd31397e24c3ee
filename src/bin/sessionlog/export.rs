//! `sessionlog export`: a log as lines of JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use sessionlog::Options;
use sessionlog::transfer::{self, Complete, Export, Exported};
use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use crate::failure::{Failure, Result};
use crate::folder::check_is_log;
use crate::output::Output;
use crate::postgres;
use crate::progress::Progress;
use crate::text::count;

/// The end of the name of a file that is compressed with zstd.
const COMPRESSED: &str = "zst";

/// The level of compression: zstd's own default.
const LEVEL: i32 = 3;

/// Writes a log as lines of JSON, with everything that `import` needs to make it again bit for bit.
///
/// A server may have the log open: the export is as of one moment. If FILE is the beginning of an
/// export of the same log in a folder, the command goes on behind it. Removed events and the store
/// ID are not exported.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log, or URL of one on PostgreSQL
    dir: PathBuf,

    /// File to write, compressed with zstd if it ends in .zst; standard output by default
    file: Option<PathBuf>,

    /// Only this session, and those that it was forked from; may be repeated
    #[arg(long, value_name = "ID")]
    session: Vec<String>,

    /// Only sessions whose ID begins so, and those that they were forked from
    #[arg(long)]
    prefix: Option<String>,

    #[command(flatten)]
    postgres: postgres::Args,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<()> {
    if postgres::url(&args.dir).is_none() {
        check_is_log(&args.dir)?;
    }
    let mut what = Export::new();
    for session in &args.session {
        what = what.session(session.parse().map_err(Failure::from)?);
    }
    if let Some(prefix) = &args.prefix {
        what = what.prefix(prefix);
    }
    let Some(file) = args.file.as_ref().filter(|file| **file != Path::new("-")) else {
        let out = BufWriter::new(io::stdout());
        return to_stdout(args, out, &what);
    };
    let exported = to_file(args, file, what, output)?;
    if output.is_json() {
        let Exported {
            records,
            events,
            parts,
            ..
        } = exported;
        let json = json!({"file": file.to_string_lossy(), "records": records, "events": events,
            "parts": parts});
        return output.json(json.to_string());
    }
    let events = count(exported.events, "event");
    output.line(format!("{events} written to {}", file.display()))
}

/// Exports from where the log is.
fn export(
    args: &Args,
    out: impl Write,
    what: &Export,
    progress: impl FnMut(transfer::Progress),
) -> sessionlog::Result<Exported> {
    match postgres::url(&args.dir) {
        Some(url) => {
            let options = args.postgres.to(Options::new());
            options.export_from(url, out, what, progress)
        }
        None => transfer::export(&args.dir, out, what, progress),
    }
}

/// A reader that goes away ends the command without an error.
fn to_stdout(args: &Args, out: impl Write, what: &Export) -> Result<()> {
    match export(args, out, what, |_progress| ()) {
        Ok(_exported) => Ok(()),
        Err(sessionlog::Error::Io { source, path, .. }) if path == Path::new("the export") => {
            Err(Failure::of_output(&source))
        }
        Err(error) => Err(error.into()),
    }
}

fn to_file(args: &Args, path: &Path, mut what: Export, output: &Output) -> Result<Exported> {
    let of_file = |error: io::Error| Failure::of_file("write", path, &error);
    let is_compressed = path.extension().is_some_and(|end| end == COMPRESSED);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(of_file)?;
    let complete = if is_compressed {
        complete_frames(&file)
    } else {
        transfer::last_complete(BufReader::new(&file))
    };
    let complete = complete.map_err(of_file)?;
    let length = file.metadata().map_err(of_file)?.len();
    if let Some(after) = check_begun(&complete, length, args, path)? {
        what = what.after(after);
        output.note(format!("going on behind {after}"));
    }
    let kept = what_is_kept(&complete);
    file.set_len(kept).map_err(of_file)?;
    file.seek(SeekFrom::End(0)).map_err(of_file)?;
    let progress = Progress::of_events(output, "exporting");
    let show = |now: transfer::Progress| {
        progress.at(now.events, now.events_total.unwrap_or(now.events));
    };
    let exported = if is_compressed {
        export(args, Frames::new(&file), &what, show)
    } else {
        export(args, BufWriter::new(&file), &what, show)
    };
    drop(progress);
    let exported = exported?;
    file.sync_all().map_err(of_file)?;
    Ok(exported)
}

/// Returns how much of the file stays. Without a part it begins anew.
fn what_is_kept(complete: &Complete) -> u64 {
    complete.last_id.map_or(0, |_last| complete.bytes)
}

/// Returns where to go on if the file is the beginning of an export. Fails if it is something else.
fn check_begun(
    complete: &Complete,
    length: u64,
    args: &Args,
    path: &Path,
) -> Result<Option<sessionlog::EventId>> {
    let shown = path.display();
    let refused =
        |message: String, hint: &str| Err(Failure::new("exists", message).hint(hint.to_owned()));
    if length == 0 {
        return Ok(None);
    }
    if complete.is_whole {
        return refused(
            format!("{shown} is a whole export already"),
            "give another file",
        );
    }
    let Some(store) = &complete.store else {
        return refused(
            format!("{shown} is there, and is no export that was cut short"),
            "give another file, or remove this one",
        );
    };
    if postgres::url(&args.dir).is_some() {
        return refused(
            format!("{shown} is there, and an export from PostgreSQL does not go on"),
            "remove the file, and repeat the command",
        );
    }
    let selects = !args.session.is_empty() || args.prefix.is_some();
    if selects || complete.is_selected {
        return refused(
            format!("{shown} is there, and an export of some sessions does not go on"),
            "remove the file, and repeat the command",
        );
    }
    let log = crate::folder::open_to_read(&args.dir)?;
    if log.stats().store_id != *store {
        return refused(
            format!("{shown} is the beginning of an export of another log"),
            "give another file",
        );
    }
    Ok(complete.last_id)
}

/// Writes the first line and each part of an export as a frame of its own, so that an export can go
/// on behind one.
struct Frames<'a> {
    file: &'a File,
    frame: Option<Encoder<'static, Vec<u8>>>,
}

impl<'a> Frames<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, frame: None }
    }

    fn frame(&mut self) -> io::Result<&mut Encoder<'static, Vec<u8>>> {
        if self.frame.is_none() {
            let mut frame = Encoder::new(Vec::new(), LEVEL)?;
            frame.include_checksum(true)?;
            self.frame = Some(frame);
        }
        Ok(self.frame.as_mut().expect("it was just made"))
    }
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self.file;
        let frame = self.frame()?;
        frame.write_all(bytes)?;
        file.write_all(frame.get_ref())?;
        frame.get_mut().clear();
        Ok(bytes.len())
    }

    /// Ends the frame.
    fn flush(&mut self) -> io::Result<()> {
        let Some(frame) = self.frame.take() else {
            return Ok(());
        };
        let mut file = self.file;
        file.write_all(&frame.finish()?)
    }
}

/// Finds the complete frames at the beginning of a file. Each ends where a part does.
fn complete_frames(file: &File) -> io::Result<Complete> {
    let mut whole = transfer::last_complete(io::empty())?;
    let mut reader = Counted {
        inner: BufReader::new(file),
        count: 0,
    };
    loop {
        if reader.fill_buf()?.is_empty() {
            return Ok(whole);
        }
        let mut text = BufReader::new(Decoder::with_buffer(&mut reader)?.single_frame());
        let complete = match transfer::last_complete(&mut text) {
            Ok(complete) => complete,
            // It was cut within the frame.
            Err(error) if is_cut(&error) => return Ok(whole),
            Err(error) => return Err(error),
        };
        if text.read(&mut [0])? > 0 {
            return Ok(whole);
        }
        drop(text);
        whole.store = whole.store.or(complete.store);
        whole.last_id = complete.last_id.or(whole.last_id);
        whole.is_whole = complete.is_whole;
        whole.is_selected |= complete.is_selected;
        whole.bytes = reader.count;
    }
}

fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::Other | io::ErrorKind::InvalidData
    )
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.count += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.count += bytes as u64;
        self.inner.consume(bytes);
    }
}
