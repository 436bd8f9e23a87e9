//! The program's own source as text: what each module imports, and how long its functions are.
//!
//! This is no parser of Rust: it knows comments, literals, `use` trees and matching braces, which
//! is enough for code that rustfmt has formatted.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, iter,
    ops::Range,
    path::{Path, PathBuf},
};

/// A module's path: `["cni", "add"]` is `crate::cni::add`, the crate's root is empty.
pub type ModulePath = Vec<String>;

/// A file of the program, without its tests.
pub struct Module {
    pub path: ModulePath,
    /// The text, with blanks in place of comments, tests and what is in literals.
    pub code: String,
    /// The text as it is, without tests.
    pub text: String,
}

/// A path that a module names.
struct Import {
    path: ModulePath,
    /// The name under which others find it here, if the module exports it again.
    exported: Option<String>,
}

/// The library's modules below a directory of sources.
pub fn modules(src: &Path) -> Vec<Module> {
    let files = files(src)
        .into_iter()
        .filter(|file| *file != src.join("main.rs"));
    files.map(|file| Module::read(src, &file)).collect()
}

/// The files of Rust below a directory, in their order.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

impl Module {
    fn read(src: &Path, file: &Path) -> Self {
        let relative = file.strip_prefix(src).unwrap().with_extension("");
        let names = relative
            .iter()
            .map(|name| name.to_str().unwrap().to_owned());
        let mut path: ModulePath = names.collect();
        path.pop_if(|name| ["mod", "lib"].contains(&name.as_str()));
        Self::new(path, &fs::read_to_string(file).unwrap())
    }

    /// A module of this text.
    pub fn new(path: ModulePath, text: &str) -> Self {
        let blanked = blank(text);
        let tests = tests(&blanked);
        Self {
            path,
            code: without(&blanked, &tests),
            text: without(text, &tests),
        }
    }

    /// The modules that it declares, each of which is a file.
    fn children(&self) -> impl Iterator<Item = &str> {
        self.code.lines().filter_map(|line| {
            let (before, name) = line.strip_suffix(';')?.split_once("mod ")?;
            (before.is_empty() || before.starts_with("pub")).then_some(name)
        })
    }

    /// All paths of the program that it names.
    fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        let mut inline = String::new();
        let mut code = self.code.as_str();
        // With a space after it: `use<..>` is part of a type.
        while let Some(at) = find_word(code, "use ") {
            let line = code[..at].rsplit('\n').next().unwrap();
            let exports = line.trim_start().starts_with("pub");
            inline.push_str(&code[..at]);
            let (tree, rest) = code[at + "use ".len()..].split_once(';').unwrap();
            for (path, name) in leaves(tree) {
                let exported = exports.then_some(name);
                imports.extend(self.absolute(&path).map(|path| Import { path, exported }));
            }
            code = rest;
        }
        inline.push_str(code);
        let named = paths(&inline).into_iter();
        let named = named.filter_map(|path| self.absolute(&path));
        imports.extend(named.map(|path| Import {
            path,
            exported: None,
        }));
        imports
    }

    /// A path from the crate's root, if it is one of this crate.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let base = match path.first()?.as_str() {
            "crate" => &[],
            "self" => &self.path[..],
            "super" => &self.path[..self.path.len().checked_sub(supers)?],
            name if self.children().any(|child| child == name) => {
                return Some([&self.path, path].concat());
            }
            _ => return None,
        };
        Some([base, &path[supers.max(1)..]].concat())
    }

    /// The functions, each with its number of lines.
    pub fn functions(&self) -> Vec<(String, usize)> {
        let mut functions = Vec::new();
        let mut code = self.code.as_str();
        while let Some(at) = find_word(code, "fn") {
            code = &code[at + "fn".len()..];
            let name = code
                .trim_start()
                .split(|char: char| !is_name(char))
                .next()
                .unwrap();
            // A type of functions has no name, a method without a body ends before its brace.
            let body = code
                .find(['{', ';'])
                .filter(|body| code[*body..].starts_with('{'));
            if let (false, Some(body)) = (name.is_empty(), body) {
                let text = &code[..body + matching(&code[body..])];
                functions.push((name.to_owned(), text.lines().count()));
            }
        }
        functions
    }
}

/// Which module needs which.
pub struct Graph(pub BTreeMap<ModulePath, BTreeSet<ModulePath>>);

impl Graph {
    pub fn new(modules: &[Module]) -> Self {
        let known: BTreeSet<&ModulePath> = modules.iter().map(|module| &module.path).collect();
        let imports: BTreeMap<&ModulePath, Vec<Import>> = modules
            .iter()
            .map(|module| (&module.path, module.imports()))
            .collect();
        let mut graph = BTreeMap::new();
        for module in modules {
            let children = module
                .children()
                .map(|child| [&module.path[..], &[child.to_owned()]].concat());
            let named = imports[&module.path].iter();
            let named = named.map(|import| resolve(&import.path, &known, &imports));
            let mut needed: BTreeSet<ModulePath> = children.chain(named).collect();
            needed.remove(&module.path);
            graph.insert(module.path.clone(), needed);
        }
        Self(graph)
    }

    /// The same graph of the crate's top-level modules.
    #[must_use]
    pub fn of_folders(&self) -> Self {
        let mut graph: BTreeMap<ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
        for (module, needed) in &self.0 {
            let Some(top) = module.first() else { continue };
            let needed = needed
                .iter()
                .filter_map(|path| path.first())
                .filter(|other| *other != top);
            graph
                .entry(vec![top.clone()])
                .or_default()
                .extend(needed.map(|name| vec![name.clone()]));
        }
        Self(graph)
    }

    /// The shortest circle through each module that is on one; each circle once.
    pub fn cycles(&self) -> Vec<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for start in self.0.keys() {
            if let Some(cycle) = self.way_back(start)
                && seen.insert(cycle.iter().cloned().collect::<BTreeSet<_>>())
            {
                cycles.push(cycle);
            }
        }
        cycles
    }

    fn way_back(&self, start: &ModulePath) -> Option<Vec<String>> {
        let mut from: BTreeMap<&ModulePath, &ModulePath> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(module) = queue.pop_front() {
            for next in self.0.get(module).into_iter().flatten() {
                if next == start {
                    let mut way = vec![module];
                    while *way.last().unwrap() != start {
                        way.push(from[way.last().unwrap()]);
                    }
                    let way = way.into_iter().rev().chain([start]);
                    return Some(way.map(|path| path.join("::")).collect());
                }
                if !from.contains_key(next) {
                    from.insert(next, module);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

/// The module that has what `path` names, through all re-exports.
fn resolve(
    path: &[String],
    known: &BTreeSet<&ModulePath>,
    imports: &BTreeMap<&ModulePath, Vec<Import>>,
) -> ModulePath {
    let length = (0..=path.len())
        .rev()
        .find(|length| known.contains(&path[..*length].to_vec()));
    let (module, rest) = path.split_at(length.unwrap());
    let module = module.to_vec();
    let Some(name) = rest.first() else {
        return module;
    };
    let exported = imports[&module]
        .iter()
        .find(|import| import.exported.as_ref() == Some(name));
    exported.map_or(module, |import| resolve(&import.path, known, imports))
}

/// The text, with blanks in place of comments and of what is in literals.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut blanked = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let length = hidden(&chars, at);
        for char in &chars[at..at + length] {
            if *char == '\n' {
                blanked.push('\n');
            } else {
                blanked.extend(iter::repeat_n(' ', char.len_utf8()));
            }
        }
        at += length;
        if length == 0 {
            blanked.push(chars[at]);
            at += 1;
        }
    }
    blanked
}

/// How many characters the comment or literal has that begins here, or 0.
fn hidden(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let after_name = at > 0 && is_name(chars[at - 1]);
    match rest {
        ['/', '/', ..] => rest.iter().take_while(|char| **char != '\n').count(),
        ['/', '*', ..] => end(rest, 2, "*/"),
        ['"', ..] => quoted(rest, '"'),
        // `r#type` is a name.
        ['r', '"', ..] | ['r', '#', '"' | '#', ..] if !after_name => {
            let hashes = rest[1..].iter().take_while(|char| **char == '#').count();
            let closing = format!("\"{}", "#".repeat(hashes));
            end(rest, hashes + 2, &closing)
        }
        // Neither a lifetime nor a label.
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest, '\''),
        _ => 0,
    }
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn end(rest: &[char], from: usize, closing: &str) -> usize {
    let closing: Vec<char> = closing.chars().collect();
    let mut windows = rest[from..].windows(closing.len());
    let at = windows.position(|window| window == closing);
    at.map_or(rest.len(), |at| from + at + closing.len())
}

/// Where in blanked code the items are that are compiled for tests only.
fn tests(code: &str) -> Vec<Range<usize>> {
    let starts = code.match_indices("#[cfg(test)]").map(|(at, _)| at);
    let item = |start: usize| {
        let body = start + code[start..].find(['{', ';']).unwrap();
        start..body + matching(&code[body..])
    };
    starts.map(item).collect()
}

/// The text without these parts of it.
fn without(text: &str, parts: &[Range<usize>]) -> String {
    let starts = [0].into_iter().chain(parts.iter().map(|part| part.end));
    let ends = parts.iter().map(|part| part.start).chain([text.len()]);
    starts
        .zip(ends)
        .map(|(start, end)| &text[start..end])
        .collect()
}

/// How long a block is that begins here, to its closing brace; 1 if none begins here.
fn matching(code: &str) -> usize {
    let mut depth = 0;
    for (at, char) in code.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

fn is_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn find_word(code: &str, word: &str) -> Option<usize> {
    let mut found = code.match_indices(word).map(|(at, _)| at);
    found.find(|at| {
        let (before, after) = (&code[..*at], &code[at + word.len()..]);
        !before.ends_with(is_name) && (word.ends_with(' ') || !after.starts_with(is_name))
    })
}

/// The paths of a `use` tree, each with the name that it is imported under.
fn leaves(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((prefix, list)) = tree.split_once('{') {
        let list = list.strip_suffix('}').unwrap();
        let prefix: Vec<String> = segments(prefix).collect();
        let below = entries(list).into_iter().flat_map(leaves);
        let join = |(path, name): (Vec<String>, String)| match path.as_slice() {
            [only] if only == "self" => (prefix.clone(), prefix.last().cloned().unwrap()),
            _ => ([&prefix[..], &path].concat(), name),
        };
        return below.map(join).collect();
    }
    let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
    let path: Vec<String> = segments(path).filter(|name| name != "*").collect();
    let name = if name.is_empty() {
        path.last().cloned()
    } else {
        Some(name.trim().to_owned())
    };
    name.map(|name| (path, name)).into_iter().collect()
}

/// The entries of a list in braces, which may have lists of their own.
fn entries(list: &str) -> Vec<&str> {
    let (mut entries, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, char) in list.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                entries.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    entries.push(&list[start..]);
    entries.retain(|entry| !entry.trim().is_empty());
    entries
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    let names = path.split("::").map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned)
}

/// All paths of at least two names in code.
fn paths(code: &str) -> Vec<Vec<String>> {
    let in_path = |char: char| is_name(char) || char == ':';
    let words = code.split(|char: char| !in_path(char));
    let words = words.filter(|word| word.contains("::") && !word.starts_with(':'));
    words.map(|word| segments(word).collect()).collect()
}
