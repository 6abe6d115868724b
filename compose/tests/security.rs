//! `SECURITY.md` names a test for each threat, and each of these tests is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../../SECURITY.md");

/// The tests below this folder: each as the words of its file's path, and its name.
fn tests(folder: &Path, found: &mut BTreeSet<(Vec<String>, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of the tree") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && !name.starts_with('.') {
                tests(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let words = path.with_extension("");
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line == "#[test]" || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                    let name = rest.split('(').next().unwrap_or_default();
                    found.insert((words.clone(), name.to_owned()));
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn each_threat_has_tests_that_exist() {
    let mut found = BTreeSet::new();
    tests(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut found);
    let rows: Vec<&str> = PAGE.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 30, "the table is not read: {rows:?}");
    for row in rows.into_iter().filter(|row| !row.starts_with("| **")) {
        let named = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for test in named {
            let (modules, name) = test.rsplit_once("::").unwrap_or_else(|| panic!("no module: {test}"));
            let is_it = |(path, found): &(Vec<String>, String)| {
                let mut modules = modules.split("::").filter(|module| *module != "tests");
                found == name && modules.all(|module| path.iter().any(|word| word == module))
            };
            assert!(found.iter().any(is_it), "SECURITY.md names {test}, which is not there");
        }
    }
}
