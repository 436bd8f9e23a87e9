//! The layers of `src/lib.rs`: imports run down, and no two modules need each other.

use std::fs;

use kit::source::{Graph, Module, modules};

fn graph() -> Graph {
    Graph::new(&modules(&kit::root().join("src")))
}

/// The top-level modules, layer by layer: the paragraphs of `src/lib.rs`.
fn layers() -> Vec<Vec<String>> {
    let text = fs::read_to_string(kit::root().join("src/lib.rs")).unwrap();
    let name = |line: &str| {
        let (before, name) = line.strip_suffix(';')?.split_once("mod ")?;
        before.starts_with("pub").then(|| name.to_owned())
    };
    let layers = text
        .split("\n\n")
        .map(|paragraph| paragraph.lines().filter_map(name).collect());
    layers
        .filter(|layer: &Vec<String>| !layer.is_empty())
        .collect()
}

#[test]
fn no_modules_import_each_other() {
    let graph = graph();
    for cycles in [graph.cycles(), graph.of_folders().cycles()] {
        let cycles: Vec<String> = cycles.iter().map(|cycle| cycle.join(" -> ")).collect();
        assert!(cycles.is_empty(), "import cycles:\n{}", cycles.join("\n"));
    }
}

#[test]
fn imports_run_down_the_layers() {
    let layers = layers();
    assert!(layers.len() > 3, "{layers:?}");
    let layer = |module: &String| layers.iter().position(|layer| layer.contains(module));
    for (module, needed) in graph().of_folders().0 {
        for other in needed {
            let (from, to) = (layer(&module[0]), layer(&other[0]));
            assert!(
                from <= to && to.is_some(),
                "{module:?} imports {other:?}, which is above it"
            );
        }
    }
}

/// The graph of these modules, in which `a` is the parent of `a::b` and `a::c`.
fn cycles_of(a: &str, b: &str, c: &str) -> Vec<String> {
    let root = ("", "pub mod a;\n");
    let texts = [root, ("a", a), ("a::b", b), ("a::c", c)];
    let modules = texts.map(|(path, text)| {
        let names = path.split("::").filter(|name| !name.is_empty());
        Module::new(names.map(str::to_owned).collect(), text)
    });
    let cycles = Graph::new(&modules).cycles().into_iter();
    cycles.map(|cycle| cycle.join(" -> ")).collect()
}

#[test]
fn every_way_to_name_a_module_is_seen() {
    let a = "mod b;\npub mod c;\npub use b::Thing;\npub(crate) const NUMBER: u8 = 1;\n";
    let cases = [
        (
            "use crate::a::c::Other;",
            "use super::b::Thing;",
            "a::b -> a::c -> a::b",
        ),
        (
            "use crate::{\n    a::{c::{self, Other}},\n};",
            "fn f() { crate::a::b::g() }",
            "a::b -> a::c -> a::b",
        ),
        ("use super::c;", "use super::Thing;", "a::b -> a::c -> a::b"),
        (
            "fn f() -> super::c::Other { todo!() }",
            "pub(crate) use crate::a::Thing as It;\nfn f() -> impl Fn() + use<> { It }",
            "a::b -> a::c -> a::b",
        ),
        ("use super::NUMBER;", "", "a -> a::b -> a"),
        ("use super::super::a::NUMBER;", "", "a -> a::b -> a"),
        (
            "use super::c::Other;",
            "// use super::b::Thing;\nconst TEXT: &str = \"crate::a::b\";",
            "",
        ),
        (
            "use super::c::Other;",
            "#[cfg(test)]\nmod tests {\n    use super::super::b::Thing;\n}\n",
            "",
        ),
        (
            "use super::c::Other;",
            "const LETTER: char = '\"';\nuse super::b::Thing;",
            "a::b -> a::c -> a::b",
        ),
    ];
    for (b, c, expected) in cases {
        assert_eq!(cycles_of(a, b, c).join("; "), expected, "{b} {c}");
    }
}
