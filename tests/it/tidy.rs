//! Checks what clippy cannot: the walls between modules, a module doc first, the width of lines,
//! links that lead somewhere, no loose ends. It reads files and runs nothing.
//!
//! A wall is about code: comments are blanked out first. A `#[cfg(test)]` module at the end of a
//! file may name anything that its tests need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const CODE_LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 100;
const README_LINES_MAX: usize = 150;
const README_WORDS_MAX: usize = 900;

/// A path, a word or a string that only some files under `src` may name.
struct Wall {
    named: Named,
    /// Files, or folders with a `/` at their end.
    only_in: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Named {
    /// A path of a crate or module, however it is imported or spelled out. `std::sync::Mutex` also
    /// covers `use std::sync;`.
    Path(&'static str),
    /// Any text in the code.
    Text(&'static str),
}

const SYNC: &[&str] = &["src/sync/"];
const DISK: &[&str] = &["src/disk/"];
/// What a unix has, in files that Windows does not compile; `positions.rs` has names for both.
const UNIX: &[&str] = &[
    "src/disk/elsewhere.rs",
    "src/disk/held.rs",
    "src/disk/linux.rs",
    "src/disk/positions.rs",
    "src/disk/real.rs",
];
/// What Linux alone has.
const THREADS: &[&str] = &["src/sync/gate.rs", "src/sync/priority.rs"];

const WALLS: &[Wall] = &[
    Wall {
        named: Named::Path("sled"),
        only_in: &["src/index/mod.rs"],
    },
    Wall {
        named: Named::Path("bincode"),
        only_in: &["src/codec/"],
    },
    Wall {
        named: Named::Path("lz4_flex"),
        only_in: &["src/codec/block.rs"],
    },
    Wall {
        named: Named::Path("std::fs"),
        only_in: DISK,
    },
    Wall {
        named: Named::Path("rustix::fs"),
        only_in: UNIX,
    },
    Wall {
        named: Named::Path("rustix::io"),
        only_in: UNIX,
    },
    Wall {
        named: Named::Path("rustix::thread"),
        only_in: THREADS,
    },
    Wall {
        named: Named::Path("rustix::process"),
        only_in: THREADS,
    },
    Wall {
        named: Named::Path("std::os"),
        only_in: UNIX,
    },
    Wall {
        named: Named::Path("parking_lot"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Path("std::sync::atomic"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Path("std::sync::Mutex"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Path("std::sync::Condvar"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Path("std::sync::RwLock"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Path("std::sync::mpsc"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Path("std::thread"),
        only_in: SYNC,
    },
    Wall {
        named: Named::Text("SystemTime::now"),
        only_in: &["src/model/ids.rs"],
    },
    Wall {
        named: Named::Path("tokio_postgres"),
        only_in: &["src/postgres/"],
    },
    // An answer with one of these says when to repeat the call.
    Wall {
        named: Named::Text("TOO_MANY_REQUESTS"),
        only_in: &["src/http/error.rs"],
    },
    Wall {
        named: Named::Text("SERVICE_UNAVAILABLE"),
        only_in: &["src/http/error.rs"],
    },
    Wall {
        named: Named::Text("\"user.message\""),
        only_in: &["src/model/batch.rs", "src/http/"],
    },
];

/// The parts of the product, each a folder or a file under `src`, in the order of the data flow. A
/// part imports only from parts to its left.
const LAYERS: &str = "sync model codec disk segment manifest journal index recent read write \
                      turn backend engine maintain transfer repair postgres log http durable_streams \
                      mcp";

/// The command, a crate of its own on the public API. The walls and the layers are about the
/// library.
const COMMAND: &str = "bin";

/// The one part whose files may import each other in a circle: a value names its error, and the
/// error names the value.
const MAY_BE_CIRCULAR: &str = "model";

#[test]
fn every_file_says_first_what_it_is() {
    check(
        "a file begins with its `//!` doc",
        SOURCES.iter(),
        |source| {
            let first = source.text.lines().next().unwrap_or_default();
            let says = first.starts_with("//!")
                || (source.name.ends_with("/lib.rs") && first.starts_with("#![doc"));
            if says { Vec::new() } else { vec![1] }
        },
    );
}

#[test]
fn the_walls_between_modules_stand() {
    for wall in WALLS {
        let rule = format!(
            "only {} names {}",
            wall.only_in.join(" or "),
            wall.named.shown()
        );
        check(&rule, library(), |source| {
            let inside = wall.only_in.iter().any(|allowed| source.is(allowed));
            if inside {
                Vec::new()
            } else {
                wall.named.lines_in(&source.code)
            }
        });
    }
}

#[test]
fn each_part_imports_only_from_parts_before_it() {
    check(
        "a part imports only from parts before it",
        layered(),
        lines_against_the_layers,
    );
}

#[test]
fn the_layers_are_shown_to_contributors() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    let layers: Vec<&str> = LAYERS.split_whitespace().collect();
    assert!(
        text.lines()
            .any(|line| line.split_whitespace().eq(layers.iter().copied()))
    );
}

#[test]
fn no_files_of_a_part_import_each_other_in_a_circle() {
    let files: Vec<&Source> = layered()
        .filter(|source| source.part() != MAY_BE_CIRCULAR)
        .collect();
    assert_eq!(circle(&files), None);
}

/// Returns the files that [`LAYERS`] covers: all but the list of exports and the tests in the
/// crate.
fn layered() -> impl Iterator<Item = &'static Source> {
    library().filter(|source| source.part() != "lib" && source.part() != "testing")
}

/// Returns the lines that import from a part that is not before the file's own.
fn lines_against_the_layers(source: &Source) -> Vec<usize> {
    let rank = |part: &str| LAYERS.split_whitespace().position(|layer| layer == part);
    let own = rank(source.part());
    let is_wrong = |path: &[String]| match path.first() {
        Some(part) if part == source.part() => false,
        Some(part) => rank(part).is_none() || own.is_none() || rank(part) > own,
        None => true,
    };
    let paths = source.paths_in_crate();
    let wrong = paths.iter().filter(|(_, path)| is_wrong(path));
    let lines: BTreeSet<usize> = wrong.map(|(line, _)| *line).collect();
    lines.into_iter().collect()
}

/// Returns the files that import each other in a circle, if there are any.
fn circle(files: &[&Source]) -> Option<Vec<String>> {
    let imports: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .map(|source| (source.name.as_str(), source.imported_files(files)))
        .collect();
    // A file that imports no remaining file, or that no remaining file imports, is in no circle.
    let mut left: BTreeSet<&str> = imports.keys().copied().collect();
    loop {
        let is_needed = |name: &&str| {
            imports[name].iter().any(|other| left.contains(other))
                && left.iter().any(|other| imports[other].contains(name))
        };
        let still: BTreeSet<&str> = left.iter().copied().filter(is_needed).collect();
        if still.is_empty() {
            return None;
        }
        if still.len() == left.len() {
            return Some(still.into_iter().map(str::to_owned).collect());
        }
        left = still;
    }
}

#[test]
fn the_checks_of_imports_see_what_they_look_for() {
    let source = |name: &str, text: &str| Source::new(name, text);
    let up = "use crate::model::{Seq, ids};\nuse crate::write::Commit;\nfn f() { crate::log::g() }";
    assert_eq!(
        lines_against_the_layers(&source("src/read/x.rs", up)),
        [2, 3]
    );
    assert_eq!(
        lines_against_the_layers(&source("src/http/x.rs", up)),
        [] as [usize; 0]
    );
    assert_eq!(
        lines_against_the_layers(&source("src/new.rs", up)),
        [1, 2, 3]
    );
    let (face, one, two) = (
        source(
            "src/read/mod.rs",
            "mod one;\nmod two;\npub(crate) use one::One;\nstruct Face;",
        ),
        source(
            "src/read/one.rs",
            "use crate::read::two::Two;\nuse crate::read::Face;",
        ),
        source("src/read/two.rs", "use crate::model::Seq;"),
    );
    let back = source("src/read/two.rs", "fn f() -> crate::read::one::One {}");
    assert_eq!(circle(&[&face, &one, &two]), None);
    let found = circle(&[&face, &one, &back]);
    assert_eq!(
        found.as_deref(),
        Some(["src/read/one.rs".to_owned(), back.name].as_slice())
    );
}

#[test]
fn nothing_is_left_undone() {
    for marker in [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
        concat!("db", "g!"),
    ] {
        check(&format!("no {marker}"), SOURCES.iter(), |source| {
            lines_with(&source.text, |line| has_word(line, marker))
        });
    }
}

#[test]
fn a_file_under_src_is_short_enough_to_read() {
    check(
        &format!("at most {CODE_LINES_MAX} lines of code outside the tests"),
        sources().filter(|source| source.part() != "testing"),
        |source| {
            // Documentation may take what it needs.
            let is_code = |line: &&str| !line.trim().is_empty();
            let lines = source.code.lines().filter(is_code).count();
            if lines <= CODE_LINES_MAX {
                Vec::new()
            } else {
                vec![lines]
            }
        },
    );
}

#[test]
fn no_line_is_wider_than_a_page() {
    let rule = format!("at most {COLUMNS_MAX} columns, strings and tables in docs aside");
    check(&rule, SOURCES.iter(), |source| {
        lines_with(&with_short_strings(&source.text), |line| {
            line.chars().count() > COLUMNS_MAX
                && !line
                    .trim_start()
                    .strip_prefix("//")
                    .is_some_and(is_unbreakable)
        })
    });
}

/// A sentence about "who" seldom says which thread, caller or reader it means.
#[test]
fn a_comment_names_the_actor() {
    check("a comment names the actor", sources(), |source| {
        lines_with(&source.text, |line| {
            let comment = line.split_once("//").map_or("", |(_, comment)| comment);
            ["who", "whoever", "Who", "Whoever"]
                .iter()
                .any(|word| has_word(comment, word))
        })
    });
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() {
    let pages: Vec<Source> = texts().filter(|text| is_markdown(&text.name)).collect();
    check(
        "a link leads to a file or a heading",
        pages.iter(),
        |page| {
            let folder = Path::new(&page.name).parent().unwrap_or(Path::new(""));
            links(&page.text)
                .into_iter()
                .filter(|(_line, link)| !leads_somewhere(folder, &page.text, link))
                .map(|(line, _link)| line)
                .collect()
        },
    );
}

#[test]
fn the_readme_is_read_in_two_minutes() {
    let readme = Source::read("README.md").expect("there is a README");
    let (lines, words) = (
        readme.text.lines().count(),
        readme.text.split_whitespace().count(),
    );
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines");
    assert!(words <= README_WORDS_MAX, "README.md has {words} words");
}

/// A metric is documented once, except for the summary in the README.
#[test]
fn the_readme_shows_the_results_of_the_comparison() {
    let read = |name| Source::read(name).expect("there is such a page").text;
    let (readme, comparison) = (read("README.md"), read("docs/comparison.md"));
    let header = "| workload | unit |";
    let rows = |text: &str| -> Vec<String> {
        let table = text.lines().skip_while(|line| !line.starts_with(header));
        table
            .take_while(|line| line.starts_with('|'))
            .map(str::to_owned)
            .collect()
    };
    let (shown, all) = (rows(&readme), rows(&comparison));
    assert!(shown.len() > 2, "README.md has no table of results");
    for row in shown {
        assert!(all.contains(&row), "docs/comparison.md has no row {row}");
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let homes = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
    ];
    let texts: Vec<Source> = texts().collect();
    for home in homes {
        check(
            &format!("no path below {home}"),
            SOURCES.iter().chain(&texts),
            |source| lines_with(&source.text, |line| line.contains(home)),
        );
    }
}

#[test]
fn the_checks_above_see_what_they_look_for() {
    let code = Source::new("src/x.rs", SAMPLE).code;
    let found = |named: Named| named.lines_in(&code);
    assert_eq!(
        found(Named::Path("std::sync::Mutex")),
        [5, 12],
        "an import in braces over two lines, and a path"
    );
    assert_eq!(found(Named::Path("std::sync::atomic")), [5]);
    assert_eq!(
        found(Named::Path("std::thread")),
        [9],
        "the module's own import counts"
    );
    assert_eq!(
        found(Named::Path("std::fs")),
        [10],
        "also under another name"
    );
    assert_eq!(
        found(Named::Path("sled")),
        [] as [usize; 0],
        "comments, words that contain it and tests do not count"
    );
    assert_eq!(found(Named::Text("\"user.message\"")), [13]);
    assert_eq!(
        code.lines().count(),
        15,
        "the tests at the end are not code"
    );
    let short = with_short_strings(SAMPLE);
    assert_eq!(short.lines().count(), SAMPLE.lines().count());
    assert!(short.contains("// std::thread, sled::Db") && !short.contains("user.message"));
    assert_eq!(
        links(PAGE),
        [(1, "a.md"), (1, "#b"), (6, "c.svg")],
        "what stands in code is no link"
    );
    for (link, leads) in [
        ("https://example.org/", true),
        ("README.md", true),
        ("README.md#license", true),
        ("README.md#no-such-heading", false),
        ("no-such-file.md", false),
        ("#one-heading", true),
        ("#other", false),
    ] {
        assert_eq!(leads_somewhere(Path::new(""), PAGE, link), leads, "{link}");
    }
}

const PAGE: &str = "\
A [link](a.md) and [another](#b), `[code](no)`.
```sh
[code](no)
```
# One `heading`
![picture](c.svg)
";

const SAMPLE: &str = r##"//! Uses sled.

/* sled::open and
   std::fs */
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};
use std::thread;
use std::fs as files;
fn bobsled(quote: char) {
    let lock = std::sync::Mutex::new('"'); // std::thread, sled::Db
    let text = ["user.message", "a \" // b", r#"" // c"#];
}

#[cfg(test)]
mod tests {
    use sled::Db;
}
"##;

fn is_markdown(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "md")
}

/// A file and what of it is code.
struct Source {
    name: String,
    text: String,
    /// The text without comments, and up to the test module at the end. Lines keep their numbers.
    code: String,
}

/// Fails with every line that breaks `rule`.
fn check<'a>(
    rule: &str,
    sources: impl Iterator<Item = &'a Source>,
    lines_that_break_it: impl Fn(&Source) -> Vec<usize>,
) {
    let mut broken = Vec::new();
    let mut seen = 0;
    for source in sources {
        seen += 1;
        broken.extend(
            lines_that_break_it(source)
                .into_iter()
                .map(|line| format!("{}:{line}: {rule}", source.name)),
        );
    }
    assert!(seen > 0, "no file was found to check that {rule}");
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Every source file of the package, read once.
static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut files = Vec::new();
    for folder in [
        "src",
        "tests",
        "benches",
        "examples",
        "fuzz/src",
        "fuzz/fuzz_targets",
        "fuzz/tests",
    ] {
        collect(&root().join(folder), &mut files);
    }
    files.sort();
    files
        .iter()
        .filter_map(|path| Source::read(path.strip_prefix(root()).ok()?.to_str()?))
        .collect()
});

/// The pages of the documentation, and other files that are no source files.
fn texts() -> impl Iterator<Item = Source> {
    let named = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "examples/clients/python/README.md",
        "examples/clients/typescript/README.md",
        "Cargo.toml",
        "clippy.toml",
        ".ci/run",
    ];
    let pages = fs::read_dir(root().join("docs")).into_iter().flatten();
    let pages = pages.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        is_markdown(&name).then(|| format!("docs/{name}"))
    });
    named
        .into_iter()
        .map(str::to_owned)
        .chain(pages)
        .filter_map(|name| Source::read(&name))
}

/// The files with the product's code.
fn sources() -> impl Iterator<Item = &'static Source> {
    SOURCES
        .iter()
        .filter(|source| source.name.starts_with("src/"))
}

/// Returns the sources of the library.
fn library() -> impl Iterator<Item = &'static Source> {
    sources().filter(|source| source.part() != COMMAND)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    fn read(name: &str) -> Option<Self> {
        fs::read_to_string(root().join(name))
            .ok()
            .map(|text| Self::new(name, &text))
    }

    fn new(name: &str, text: &str) -> Self {
        let code = without_comments(text);
        let tests = code
            .lines()
            .zip(code.lines().skip(1))
            .position(|(line, next)| {
                line.trim_end() == "#[cfg(test)]"
                    && next.trim_start_matches("pub(crate) ").starts_with("mod ")
                    && next.ends_with('{')
            });
        let code = code
            .split_inclusive('\n')
            .take(tests.unwrap_or(usize::MAX))
            .collect();
        Self {
            name: name.replace('\\', "/"),
            text: text.to_owned(),
            code,
        }
    }

    /// Returns the folder or file under `src` that it is or is in.
    fn part(&self) -> &str {
        let below = self.name.strip_prefix("src/").unwrap_or_default();
        let part = below.split('/').next().unwrap_or_default();
        part.strip_suffix(".rs").unwrap_or(part)
    }

    /// Returns each path that its code names in its own crate, without `crate`, and the line.
    fn paths_in_crate(&self) -> Vec<(usize, Vec<String>)> {
        let imported = imports(&self.code);
        let spelled = self.code.lines().zip(1..).flat_map(|(line, number)| {
            let is_use = line
                .trim_start()
                .trim_start_matches("pub(crate) ")
                .starts_with("use ");
            let found = line.match_indices("crate::").filter(move |_| !is_use);
            found.map(move |(at, _)| {
                let rest = &line[at..];
                let end = rest.find(|c| !is_word(c) && c != ':').unwrap_or(rest.len());
                (number, rest[..end].to_owned())
            })
        });
        let all = imported.into_iter().chain(spelled);
        all.filter_map(|(line, path)| {
            let path = path.strip_prefix("crate::")?;
            Some((line, path.split("::").map(str::to_owned).collect()))
        })
        .collect()
    }

    /// Returns the files of its own part that it imports from. A path without a file is in the
    /// part's `mod.rs`, or re-exported there.
    fn imported_files<'a>(&self, files: &[&'a Source]) -> BTreeSet<&'a str> {
        let part = self.part();
        let within = |path: &Vec<String>| path.first().is_some_and(|first| first == part);
        let paths = self.paths_in_crate();
        let named = paths
            .iter()
            .filter(|(_, path)| within(path))
            .map(|(_, path)| {
                let file = path
                    .get(1)
                    .map_or_else(String::new, |file| format!("src/{part}/{file}.rs"));
                let found = files.iter().find(|source| source.name == file);
                let face = || {
                    files
                        .iter()
                        .find(|source| source.name == format!("src/{part}/mod.rs"))
                };
                found.or_else(face).map(|source| source.name.as_str())
            });
        named.flatten().filter(|name| *name != self.name).collect()
    }

    fn is(&self, allowed: &str) -> bool {
        self.name == allowed || (allowed.ends_with('/') && self.name.starts_with(allowed))
    }
}

impl Named {
    fn shown(self) -> &'static str {
        match self {
            Named::Path(text) | Named::Text(text) => text,
        }
    }

    fn lines_in(self, code: &str) -> Vec<usize> {
        match self {
            Named::Text(text) => lines_with(code, |line| line.contains(text)),
            Named::Path(path) => {
                let mut lines = lines_with(code, |line| {
                    !line.trim_start().starts_with("use ") && names_path(line, path)
                });
                lines.extend(
                    imports(code)
                        .into_iter()
                        .filter(|(_, import)| import_names(import, path))
                        .map(|(line, _)| line),
                );
                lines.sort_unstable();
                lines.dedup();
                lines
            }
        }
    }
}

/// Returns whether `import` imports `path`, an item below it, or its parent module as a whole.
fn import_names(import: &str, path: &str) -> bool {
    let parent = path.rsplit_once("::").map_or("", |(parent, _)| parent);
    import == path
        || import
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with("::"))
        || (parent != "std" && import == parent)
}

/// Returns whether `line` spells out `path::` or, for a longer path, `path` itself.
fn names_path(line: &str, path: &str) -> bool {
    let ends = |rest: &str| {
        if path.contains("::") {
            !rest.starts_with(is_word)
        } else {
            rest.starts_with("::")
        }
    };
    line.match_indices(path).any(|(at, _)| {
        !line[..at].ends_with(|c| is_word(c) || c == ':' || c == '.')
            && ends(&line[at + path.len()..])
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn lines_with(text: &str, breaks: impl Fn(&str) -> bool) -> Vec<usize> {
    text.lines()
        .zip(1..)
        .filter(|(line, _)| breaks(line))
        .map(|(_, number)| number)
        .collect()
}

/// Returns every path that a `use` imports, its braces expanded, with the line of the `use`.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut imports = Vec::new();
    for (at, _) in code
        .match_indices("use ")
        .filter(|(at, _)| !code[..*at].ends_with(is_word))
    {
        let line = code[..at].matches('\n').count() + 1;
        let statement = code[at + 4..].split(';').next().unwrap_or_default();
        spread("", statement.trim(), &mut |import| {
            imports.push((line, import));
        });
    }
    imports
}

fn spread(prefix: &str, tree: &str, found: &mut impl FnMut(String)) {
    match tree.split_once('{') {
        Some((path, inner)) if inner.ends_with('}') => {
            let prefix = format!("{prefix}{}", path.trim());
            for tree in split_at_commas(&inner[..inner.len() - 1]) {
                spread(&prefix, tree, found);
            }
        }
        _ => {
            let path = tree.split(" as ").next().unwrap_or_default().trim();
            let path = path
                .strip_suffix("::self")
                .or_else(|| path.strip_suffix("::*"))
                .unwrap_or(path);
            if !path.is_empty() {
                let import = format!("{prefix}{path}");
                found(
                    import
                        .strip_suffix("::self")
                        .or_else(|| import.strip_suffix("::*"))
                        .unwrap_or(&import)
                        .to_owned(),
                );
            }
        }
    }
}

/// Returns the parts between commas outside inner braces.
fn split_at_commas(list: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(list[from..].trim());
    parts
}

/// Returns whether a comment is a row of a table, or holds an address: neither can be broken.
fn is_unbreakable(comment: &str) -> bool {
    let text = comment.trim_start_matches(['/', '!']).trim_start();
    text.starts_with('|') || text.contains("://")
}

/// Returns the targets of the links in a page of Markdown, with their lines. Code has none.
fn links(page: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (line, number) in page.lines().zip(1..) {
        if line.starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            let prose = line.split('`').step_by(2);
            let targets = prose.flat_map(|prose| prose.split("](").skip(1));
            links.extend(targets.filter_map(|rest| Some((number, rest.split_once(')')?.0))));
        }
    }
    links
}

/// Returns whether a link in `page`, which is in `folder`, leads to an existing file or heading.
fn leads_somewhere(folder: &Path, page: &str, link: &str) -> bool {
    if link.contains("://") {
        return true;
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let path = root().join(folder).join(file);
    // A published package has no raw results.
    let peers = root().join("benches/peers");
    if file.contains("benches/peers/") && !peers.exists() {
        return true;
    }
    let text = if file.is_empty() {
        Some(page.to_owned())
    } else {
        fs::read_to_string(&path).ok()
    };
    if heading.is_empty() {
        path.exists()
    } else {
        text.is_some_and(|text| has_heading(&text, heading))
    }
}

/// Returns whether a page has a heading with this link target.
fn has_heading(page: &str, name: &str) -> bool {
    let mut headings = page.lines().filter(|line| line.starts_with('#'));
    headings.any(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| is_word(*c) || "- ".contains(*c));
        kept.collect::<String>().replace(' ', "-") == name
    })
}

/// Returns `text` with empty strings, which keep only their line breaks.
fn with_short_strings(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (len, keep) = match token(rest, &short) {
            Token::Comment(len) => (len, true),
            Token::Literal(len) => (len, false),
            Token::Other => (first.len_utf8(), true),
        };
        let (token, behind) = rest.split_at(len);
        short.extend(token.chars().filter(|c| keep || *c == '\n'));
        rest = behind;
    }
    short
}

/// Returns `text` with its comments blanked out. Strings stay, also where they look like comments.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (len, keep) = match token(rest, &code) {
            Token::Comment(len) => (len, false),
            Token::Literal(len) => (len, true),
            Token::Other => (first.len_utf8(), true),
        };
        let (token, behind) = rest.split_at(len);
        code.extend(token.chars().filter(|c| keep || *c == '\n'));
        rest = behind;
    }
    code
}

enum Token {
    Comment(usize),
    Literal(usize),
    Other,
}

/// Returns the kind of token that `rest` begins with, after `before`.
fn token(rest: &str, before: &str) -> Token {
    let until = |end: Option<usize>| end.unwrap_or(rest.len());
    if rest.starts_with("//") {
        Token::Comment(until(rest.find('\n')))
    } else if rest.starts_with("/*") {
        Token::Comment(until(rest.find("*/").map(|at| at + 2)))
    } else if rest.starts_with('"') {
        Token::Literal(until(end_of_string(rest)))
    } else if !before.ends_with(is_word) && rest.starts_with(['r', 'b']) {
        raw_string(rest).map_or(Token::Other, Token::Literal)
    } else {
        ["'\"'", "'\\\"'", "'\\\\'"]
            .iter()
            .find(|quoted| rest.starts_with(**quoted))
            .map_or(Token::Other, |quoted| Token::Literal(quoted.len()))
    }
}

fn end_of_string(rest: &str) -> Option<usize> {
    let mut escaped = false;
    rest.char_indices().skip(1).find_map(|(at, c)| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends.then_some(at + 1)
    })
}

/// Returns the length of the raw string that `rest` begins with, if it does.
fn raw_string(rest: &str) -> Option<usize> {
    let opened = rest.trim_start_matches('b').strip_prefix('r')?;
    let hashes = opened.len() - opened.trim_start_matches('#').len();
    let body = opened[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    Some(rest.len() - body.len() + body.find(&closing)? + closing.len())
}
