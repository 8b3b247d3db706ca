//! Modules that need each other, among the modules of one folder: there are none.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path in its crate: `upstream/trunk/link.rs` is `[upstream, trunk, link]`.
type Module = Vec<String>;

/// The circles of a crate's files, each as the modules that it goes through.
pub(crate) fn circles(files: &[(String, String)]) -> Vec<String> {
    let modules: BTreeSet<Module> = files.iter().map(|(path, _)| module(path)).collect();
    let mut needs: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (path, code) in files {
        let from = module(path);
        for import in imports(code, &from) {
            let prefixes = (0..=import.len()).rev().map(|len| import[..len].to_vec());
            let target = prefixes.into_iter().find(|path| modules.contains(path));
            if let Some((user, used)) = target.and_then(|target| siblings(&from, &target)) {
                needs.entry(user).or_default().insert(used);
            }
        }
    }
    let on_circle = |start: &Module| reaches(&needs, start, start);
    let found = needs.keys().filter(|start| on_circle(start));
    found.map(|module| module.join("::")).collect()
}

fn module(path: &str) -> Module {
    let parts = path.trim_end_matches(".rs").split('/').map(str::to_owned);
    let mut module: Module = parts.collect();
    if matches!(
        module.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        module.pop();
    }
    module
}

/// The two neighbours in one folder that two modules are, or are in. None where one module holds
/// the other.
fn siblings(from: &Module, target: &Module) -> Option<(Module, Module)> {
    let common = from.iter().zip(target).take_while(|(a, b)| a == b).count();
    let beside = common < from.len() && common < target.len();
    beside.then(|| (from[..=common].to_vec(), target[..=common].to_vec()))
}

fn reaches(needs: &BTreeMap<Module, BTreeSet<Module>>, start: &Module, end: &Module) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![start];
    while let Some(module) = next.pop() {
        for used in needs.get(module).into_iter().flatten() {
            if used == end {
                return true;
            }
            if seen.insert(used) {
                next.push(used);
            }
        }
    }
    false
}

/// The paths that `code` names with `crate::` or `super::`, from the root of the crate.
fn imports(code: &str, from: &Module) -> Vec<Module> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        follow(&code[at + "crate::".len()..], &[], &mut found);
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut base = from.clone();
        while let Some(behind) = rest.strip_prefix("super::") {
            base.pop();
            rest = behind;
        }
        follow(rest, &base, &mut found);
    }
    found
}

/// Follows a path, and what its braces hold.
fn follow<'a>(mut rest: &'a str, base: &[String], found: &mut Vec<Module>) -> &'a str {
    let mut path = base.to_vec();
    loop {
        if let Some(mut inside) = rest.strip_prefix('{') {
            while !inside.is_empty() && !inside.starts_with('}') {
                let item = inside.trim_start_matches([',', ' ', '\n']);
                inside = if item.starts_with('}') || item.is_empty() {
                    item
                } else {
                    follow(item, &path, found)
                };
            }
            return inside.strip_prefix('}').unwrap_or(inside);
        }
        let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        let (name, behind) = rest.split_at(len.unwrap_or(rest.len()));
        path.push(name.to_owned());
        match behind.strip_prefix("::") {
            Some(deeper) => rest = deeper,
            None => {
                found.push(path);
                // Whatever it is: a list goes on behind it.
                let end = behind.find([',', '}', ';', '\n']).unwrap_or(behind.len());
                return &behind[end..];
            }
        }
    }
}

#[test]
fn the_check_finds_a_circle_and_nothing_else() {
    let file = |path: &str, code: &str| (path.to_owned(), code.to_owned());
    let clean = [
        file("lib.rs", "pub mod a;"),
        file("a/mod.rs", "mod b;\nmod c;\nuse b::B;"),
        file("a/b.rs", "use super::c::{C, deep::{D, E}};\nuse super::A;"),
        file("a/c.rs", "use crate::a::A;"),
        file("d.rs", "use crate::a::b::B;"),
    ];
    assert_eq!(circles(&clean), [""; 0]);
    let mut round = clean.to_vec();
    round[3].1.push_str("use crate::{x::Y, a::b};");
    assert_eq!(circles(&round), ["a::b", "a::c"]);
    let mut up = clean.to_vec();
    up[2].1.push_str("fn f() -> crate::d::D {}");
    assert_eq!(circles(&up), ["a", "d"]);
}
