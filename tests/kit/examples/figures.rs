//! Figures of a checkout's `src`, this one's if none is named: `scripts/figures [DIRECTORY]`.

use std::{env, path::PathBuf};

use kit::source::{Graph, Module, modules};

fn main() {
    let root = env::args_os().nth(1);
    let root = root.map_or_else(|| kit::root().to_owned(), PathBuf::from);
    let modules = modules(&root.join("src"));
    sizes(&modules);
    places(&modules);
    let cycles = Graph::new(&modules).cycles();
    println!("import cycles: {}", cycles.len());
    for cycle in cycles {
        println!("  {}", cycle.join(" -> "));
    }
}

fn sizes(modules: &[Module]) {
    let lines =
        |text: &str, counts: fn(&str) -> bool| text.lines().filter(|line| counts(line)).count();
    let sum = |count: &dyn Fn(&Module) -> usize| modules.iter().map(count).sum::<usize>();
    let all = sum(&|module| lines(&module.text, |_| true));
    let code = sum(&|module| lines(&module.code, |line| !line.trim().is_empty()));
    println!(
        "production code: {} files, {all} lines, {code} of them code",
        modules.len()
    );
    let functions = modules.iter().flat_map(|module| {
        let path = module.path.join("::");
        let functions = module.functions().into_iter();
        functions.map(move |(name, lines)| (lines, format!("{path}::{name}")))
    });
    let mut functions: Vec<(usize, String)> = functions.collect();
    functions.sort();
    let at = |part: usize| functions[(functions.len() - 1) * part / 100].0;
    println!(
        "functions: {}, lines: median {}, 90 of 100 at most {}, all at most {}",
        functions.len(),
        at(50),
        at(90),
        at(100)
    );
    let long: Vec<_> = functions.iter().filter(|(lines, _)| *lines > 40).collect();
    println!("functions of more than 40 lines: {}", long.len());
    for (lines, name) in long {
        println!("  {name}: {lines}");
    }
}

/// What should be in one place, by the text that betrays it.
fn places(modules: &[Module]) {
    let above = |module: &&Module| module.path.first().is_none_or(|name| name != "netlink");
    let places = |what: &str, betrays: &dyn Fn(&Module) -> usize| {
        let found = modules
            .iter()
            .filter(above)
            .map(|module| (module, betrays(module)));
        let found: Vec<_> = found.filter(|(_, count)| *count > 0).collect();
        let total: usize = found.iter().map(|(_, count)| count).sum();
        println!("{what}: {total}");
        for (module, count) in found {
            println!("  {}: {count}", module.path.join("::"));
        }
    };
    places("places that ask the kernel for a new macvtap", &|module| {
        module.code.matches("Create {").count()
    });
    places(
        "places that look whether a lower device is Ethernet",
        &|module| module.code.matches(".ethernet").count(),
    );
    places("keys of our status that are read by string", &|module| {
        let own = ["deviceplugin", "doctor"];
        let reads = module
            .path
            .first()
            .is_some_and(|name| own.contains(&name.as_str()));
        if reads { indexes(&module.text) } else { 0 }
    });
}

/// How often something is indexed by a string, `value["key"]`. A list of strings is not.
fn indexes(text: &str) -> usize {
    let starts = text.match_indices("[\"").map(|(at, _)| at);
    let is_index = |at: &usize| {
        let before = text[..*at].chars().next_back();
        let key = text[at + 2..].split('"').next().unwrap_or_default();
        let after = &text[at + 2 + key.len()..];
        before.is_some_and(|last| last.is_alphanumeric() || "_)]".contains(last))
            && after.starts_with("\"]")
    };
    starts.filter(is_index).count()
}
