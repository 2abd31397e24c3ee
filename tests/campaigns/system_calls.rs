//! Reads the trace that `strace` wrote of a process: the calls that change a folder, as
//! [steps](Step), and the process's output.
//!
//! It knows nothing of the log: a file is what `openat` returned.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::support::crash_image::{Call, Cut, Names, Node, Step, Through, change_names};

/// The calls that change files and names or make them durable, and those that show which descriptor
/// is which file.
const CALLS: &str = "trace=open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,\
                     write,pwrite64,writev,pwritev,pwritev2,\
                     fsync,fdatasync,sync,syncfs,ftruncate,truncate,fallocate,\
                     rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,\
                     symlink,symlinkat,copy_file_range,sendfile,io_uring_setup,mmap";

/// Longer than any write.
const BYTES_MAX: &str = "67108864";

/// The path of the standard output, where a process reports.
const TOLD: &str = "what the process tells";

/// Returns why there are no traces on this machine, if so.
pub(crate) fn obstacle() -> Option<String> {
    let works = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    match works {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("strace does not work here: {status}")),
        Err(error) => Some(format!("strace is not there: {error}")),
    }
}

/// Returns `command` under `strace`, which writes to `output`.
pub(crate) fn under_strace(command: &Command, output: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace
        .args([
            "-f",
            "-q",
            "-xx",
            "-s",
            BYTES_MAX,
            "-e",
            CALLS,
            "-e",
            "signal=none",
            "-o",
        ])
        .arg(output)
        .arg("--");
    strace
        .arg(command.get_program())
        .args(command.get_args())
        .env("RUST_BACKTRACE", "0");
    strace
}

/// Returns the steps in the trace in `file`, of a process that began with `names` in `folder`.
pub(crate) fn read(file: &Path, folder: &Path, names: &Names, files: usize) -> Vec<Step> {
    let mut reader = Reader {
        folder,
        names: names.clone(),
        files,
        descriptors: HashMap::from([(1, Descriptor::new(PathBuf::from(TOLD)))]),
        under_way: HashMap::new(),
        steps: Vec::new(),
    };
    let mut lines = BufReader::new(std::fs::File::open(file).expect("the trace"));
    let mut line = String::new();
    while lines.read_line(&mut line).expect("a line of the trace") > 0 {
        reader.line(line.trim_end());
        line.clear();
    }
    reader.steps
}

struct Reader<'a> {
    folder: &'a Path,
    names: Names,
    /// The number of files.
    files: usize,
    descriptors: HashMap<i64, Descriptor>,
    /// By thread: the call that has not returned yet, and the step at which it began.
    under_way: HashMap<u32, UnderWay>,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Descriptor {
    path: PathBuf,
    /// `None` for a descriptor that is no file in the folder.
    file: Option<usize>,
    through: Through,
    position: u64,
}

impl Descriptor {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            through: Through::Cache,
            position: 0,
        }
    }
}

struct UnderWay {
    name: String,
    arguments: Vec<Argument>,
    begun: Option<usize>,
}

#[derive(Debug, Clone)]
enum Argument {
    Text(Vec<u8>),
    Word(String),
}

impl Argument {
    fn number(&self) -> Option<i64> {
        match self {
            Self::Word(word) => word.parse().ok(),
            Self::Text(_) => None,
        }
    }

    fn length(&self) -> u64 {
        self.number()
            .and_then(|number| u64::try_from(number).ok())
            .unwrap_or_else(|| panic!("no length: {self:?}"))
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Text(bytes) => {
                PathBuf::from(String::from_utf8(bytes.clone()).expect("a path in UTF-8"))
            }
            Self::Word(word) => panic!("no path: {word}"),
        }
    }
}

impl Reader<'_> {
    fn line(&mut self, line: &str) {
        let (thread, rest) = line.split_once(' ').expect("a line begins with its thread");
        let thread: u32 = thread.parse().expect("a thread's number");
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            return;
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let under_way = self
                .under_way
                .remove(&thread)
                .expect("a call is resumed after it began");
            return self.end(under_way, result_of(resumed));
        }
        let (name, tail) = rest.split_once('(').expect("a call has arguments");
        let (arguments, tail) = parse_arguments(tail);
        let mut under_way = UnderWay {
            name: name.to_owned(),
            arguments,
            begun: None,
        };
        under_way.begun = self.begin(&under_way);
        if tail.contains("<unfinished") {
            self.under_way.insert(thread, under_way);
        } else {
            self.end(under_way, result_of(tail));
        }
    }

    /// A write to a file of the folder. What is written to the process's output is something said.
    fn write(&mut self, arguments: &[Argument]) -> Option<Call> {
        let descriptor = self.descriptors.get(&arguments[0].number()?)?;
        let Argument::Text(bytes) = &arguments[1] else {
            panic!("a write without bytes")
        };
        if descriptor.path == Path::new(TOLD) {
            let text = String::from_utf8_lossy(bytes);
            self.steps
                .extend(text.lines().map(|line| Step::Said(line.to_owned())));
            return None;
        }
        let at = arguments
            .get(3)
            .map_or(descriptor.position, Argument::length);
        Some(Call::Write {
            file: descriptor.file?,
            at,
            bytes: Arc::from(&bytes[..]),
            through: descriptor.through,
        })
    }

    /// Lets a call begin that changes something in the folder, or says something.
    fn begin(&mut self, under_way: &UnderWay) -> Option<usize> {
        let UnderWay {
            name, arguments, ..
        } = under_way;
        let call = match name.as_str() {
            "write" | "pwrite64" => self.write(arguments)?,
            "fsync" | "fdatasync" => {
                let descriptor = self.descriptors.get(&arguments[0].number()?)?;
                let kind = name.clone();
                match descriptor.file {
                    Some(file) => Call::Sync { file, kind },
                    None => Call::SyncDir {
                        dir: self.inside(&descriptor.path)?,
                        kind,
                    },
                }
            }
            "ftruncate" => {
                let file = self.descriptors.get(&arguments[0].number()?)?.file?;
                Call::Resize {
                    file,
                    len: arguments[1].length(),
                    cut: Cut::Yes,
                }
            }
            "fallocate" => {
                let file = self.descriptors.get(&arguments[0].number()?)?.file?;
                assert_eq!(
                    arguments[1].number(),
                    Some(0),
                    "a kind of fallocate that is not known here"
                );
                Call::Resize {
                    file,
                    len: arguments[2].length() + arguments[3].length(),
                    cut: Cut::No,
                }
            }
            "close" => {
                // Before it has returned, another thread may be given the same descriptor.
                self.descriptors.remove(&arguments[0].number()?);
                return None;
            }
            "open" | "openat" | "creat" | "dup" | "dup2" | "dup3" | "fcntl" | "lseek" | "mmap" => {
                return None;
            }
            "rename" => self.rename(&arguments[0].path(), &arguments[1].path())?,
            "renameat" | "renameat2" => self.rename(
                &self.at(&arguments[0], &arguments[1]),
                &self.at(&arguments[2], &arguments[3]),
            )?,
            "unlink" | "rmdir" => Call::Remove(self.inside(&arguments[0].path())?),
            "unlinkat" => Call::Remove(self.inside(&self.at(&arguments[0], &arguments[1]))?),
            "mkdir" => Call::MakeDir(self.inside(&arguments[0].path())?),
            "mkdirat" => Call::MakeDir(self.inside(&self.at(&arguments[0], &arguments[1]))?),
            _ => panic!("a call that is not known here: {name}"),
        };
        self.steps.push(Step::Begin(call));
        Some(self.steps.len() - 1)
    }

    fn end(&mut self, under_way: UnderWay, result: Option<i64>) {
        let UnderWay {
            name,
            arguments,
            begun,
        } = under_way;
        let succeeded = result.is_some_and(|result| result >= 0);
        if let Some(begun) = begun {
            if succeeded {
                self.succeeded(begun);
            } else {
                self.failed(begun, &name);
            }
        }
        let Some(result) = result.filter(|_| succeeded) else {
            return;
        };
        let first = arguments.first().and_then(Argument::number);
        match name.as_str() {
            "open" => self.opened(result, arguments[0].path(), &arguments[1]),
            "openat" => self.opened(result, self.at(&arguments[0], &arguments[1]), &arguments[2]),
            "dup" | "dup2" | "dup3" => self.duplicated(first, result),
            "fcntl"
                if matches!(
                    &arguments[1], Argument::Word(word) if word.starts_with("F_DUPFD")
                ) =>
            {
                self.duplicated(first, result);
            }
            "write" | "lseek" => {
                if let Some(descriptor) = first.and_then(|first| self.descriptors.get_mut(&first)) {
                    let result = u64::try_from(result).expect("it succeeded");
                    descriptor.position = if name == "write" {
                        descriptor.position + result
                    } else {
                        result
                    };
                }
            }
            _ => {}
        }
    }

    fn succeeded(&mut self, begun: usize) {
        if let Step::Begin(call) = &self.steps[begun] {
            change_names(&mut self.names, call);
        }
        self.steps.push(Step::End(begun));
    }

    /// Names that could not be changed, such as a folder that was there. A failed write would be
    /// different.
    fn failed(&mut self, begun: usize, name: &str) {
        assert!(
            name.contains("mkdir") || name.contains("rename") || name.contains("unlink"),
            "a {name} failed"
        );
        self.steps[begun] = Step::Said(format!("a {name} that failed"));
    }

    fn opened(&mut self, descriptor: i64, path: PathBuf, flags: &Argument) {
        let Argument::Word(flags) = flags else {
            panic!("flags are words")
        };
        let has = |flag: &str| flags.split('|').any(|word| word == flag);
        let through = if has("O_DSYNC") || has("O_SYNC") {
            Through::Device
        } else {
            Through::Cache
        };
        let mut file = None;
        if let Some(inside) = self.inside(&path)
            && !has("O_DIRECTORY")
        {
            file = match self.names.get(&inside) {
                Some(Node::File(file)) => Some(*file),
                None if has("O_CREAT") => {
                    let file = self.files;
                    self.files += 1;
                    self.made(Call::Create { file, path: inside });
                    Some(file)
                }
                Some(Node::Dir) | None => None,
            };
            if let (Some(file), true) = (file, has("O_TRUNC")) {
                self.made(Call::Resize {
                    file,
                    len: 0,
                    cut: Cut::Yes,
                });
            }
        }
        self.descriptors.insert(
            descriptor,
            Descriptor {
                file,
                through,
                ..Descriptor::new(path)
            },
        );
    }

    /// Applies what a call did that is known only when it has returned.
    fn made(&mut self, call: Call) {
        change_names(&mut self.names, &call);
        self.steps.push(Step::Begin(call));
        self.steps.push(Step::End(self.steps.len() - 1));
    }

    fn duplicated(&mut self, from: Option<i64>, to: i64) {
        if let Some(descriptor) = from.and_then(|from| self.descriptors.get(&from)).cloned() {
            self.descriptors.insert(to, descriptor);
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Option<Call> {
        Some(Call::Rename {
            from: self.inside(from)?,
            to: self.inside(to)?,
        })
    }

    /// Returns a path relative to a descriptor.
    fn at(&self, dir: &Argument, path: &Argument) -> PathBuf {
        let base = dir
            .number()
            .and_then(|dir| self.descriptors.get(&dir))
            .map(|descriptor| descriptor.path.clone());
        base.unwrap_or_default().join(path.path())
    }

    /// Returns a path within the folder, relative to it.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let plain: PathBuf = path
            .components()
            .filter(|part| *part != Component::CurDir)
            .collect();
        plain.strip_prefix(self.folder).ok().map(Path::to_path_buf)
    }
}

/// Returns the arguments up to the closing bracket or to where the line breaks off, and the rest.
fn parse_arguments(mut text: &str) -> (Vec<Argument>, &str) {
    let mut arguments = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',']);
        if let Some(rest) = text.strip_prefix('"') {
            let (bytes, rest) = rest.split_once('"').expect("a text ends");
            assert!(!rest.starts_with("..."), "a text was cut short");
            arguments.push(Argument::Text(unescape(bytes)));
            text = rest;
        } else if text.starts_with(')') || text.starts_with('<') || text.is_empty() {
            return (arguments, text);
        } else {
            let end = argument_end(text);
            arguments.push(Argument::Word(text[..end].trim_end().to_owned()));
            text = &text[end..];
        }
    }
}

/// Returns where a word ends. A structure in braces or brackets is one word.
fn argument_end(text: &str) -> usize {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' => depth -= 1,
            ')' if depth > 0 => depth -= 1,
            ',' | ')' | '<' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

/// Reads `\x41\x42`: with `-xx` strace prints every byte so.
fn unescape(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => panic!("no hexadecimal digit"),
    };
    text.as_bytes()
        .chunks_exact(4)
        .map(|four| digit(four[2]) << 4 | digit(four[3]))
        .collect()
}

/// Returns the result of a call, `None` where the process ended before.
fn result_of(tail: &str) -> Option<i64> {
    let (_, result) = tail.rsplit_once("= ")?;
    if result.starts_with("-1") {
        return Some(-1);
    }
    let end = result
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(result.len());
    match result.strip_prefix("0x") {
        Some(address) => Some(i64::from(!address.is_empty())),
        None => result[..end].parse().ok(),
    }
}
