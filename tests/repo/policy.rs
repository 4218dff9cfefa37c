//! Licences and sources of the dependencies, their shared builds, the one use of `unsafe`, and the tests that `docs/reliability.md` names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

/// The strings of a list in `deny.toml`.
fn list(name: &str) -> Vec<String> {
    let text = read("deny.toml");
    let (_, list) = text.split_once(&format!("\n{name} = [")).unwrap();
    let (list, _) = list.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether the allowed licences satisfy an SPDX expression: alternatives of conjunctions, with parentheses around one level of
/// alternatives.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    if let Some((before, rest)) = expression.split_once('(') {
        let (inner, after) = rest.split_once(')').unwrap();
        // The parenthesis counts as one licence, allowed or not.
        let stand_in = if satisfied(inner, allowed) { allowed[0].as_str() } else { "none" };
        return satisfied(&format!("{before}{stand_in}{after}"), allowed);
    }
    let all = |alternative: &str| alternative.split(" AND ").all(|one| allowed.iter().any(|a| a == one.trim()));
    expression.split(" OR ").any(all)
}

#[test]
fn licence_expressions_are_parsed() {
    let allowed = ["MIT", "ISC"].map(str::to_owned);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("MIT AND ISC", true),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("(GPL-3.0 OR MPL-2.0) AND ISC", false),
        ("MIT WITH exception", false),
    ] {
        assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn licences_and_sources_of_all_dependencies_are_allowed() {
    let metadata = |more: &[&str]| {
        let mut metadata = Command::new(env!("CARGO"));
        metadata.args(["metadata", "--format-version", "1", "--locked"]).args(more).current_dir(root());
        metadata.output().unwrap()
    };
    // Packages of other systems may not have been fetched yet.
    let output = Some(metadata(&["--offline"])).filter(|output| output.status.success());
    let output = output.unwrap_or_else(|| metadata(&[]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    let (licences, registries) = (list("allow"), list("allow-registry"));
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or("none"));
        assert!(satisfied(licence, &licences), "{name}: {licence} is not among the licences of deny.toml");
        let Some(source) = package["source"].as_str() else {
            assert!(name == "vae-wgpu" || name == "radv-report", "{name} is a package from a path");
            continue;
        };
        assert!(registries.iter().any(|r| source == format!("registry+{r}")), "{name} comes from {source}");
    }
}

/// All Rust files below a folder.
fn sources(folder: &str) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for pass in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if pass.is_dir() {
                folders.push(pass);
            } else if pass.extension().is_some_and(|e| e == "rs") {
                files.push(pass);
            }
        }
    }
    files
}

/// The compiler rejects `unsafe` without an exception; this counts the exceptions.
#[test]
fn unsafe_is_denied_with_one_exception() {
    assert!(read("Cargo.toml").contains("\nunsafe_code = \"deny\"\n"), "unsafe_code is not denied");
    let keyword = concat!("unsafe", " {");
    let exception = concat!("expect(unsafe", "_code, reason = ");
    let mut found = Vec::new();
    for file in ["src", "tests", "benches", "examples", "fuzz"].iter().flat_map(|folder| sources(folder)) {
        let text = fs::read_to_string(&file).unwrap();
        let lint = text.matches(concat!("(unsafe", "_code")).count();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let blocks = code.filter(|line| line.contains(keyword) || line.contains(concat!("unsafe", " fn"))).count();
        if lint + blocks > 0 {
            assert!(text.contains("// SAFETY: ") && text.contains(exception), "{}", file.display());
            found.push((file.strip_prefix(root()).unwrap().to_owned(), lint, blocks));
        }
    }
    assert_eq!(found, [(PathBuf::from("src/runtime/gpu/pipeline_cache.rs"), 1, 1)]);
}

/// Whether a file has a test of this name: a function marked `#[test]`; without the standard harness, a name in a list of tests or in
/// quotes.
fn has_test(file: &str, name: &str) -> bool {
    let text = read(file);
    if ["tests/gpu/", "tests/shaders/"].iter().any(|folder| file.starts_with(folder)) {
        // The lists stand between `tests!(` or `trials![` and its end.
        let lists = text.split("s!").skip(1).filter_map(|rest| rest.split([')', ']']).next());
        let mut listed = lists.flat_map(|list| list.split(|c: char| !c.is_alphanumeric() && c != '_'));
        return text.contains(&format!("\"{name}\"")) || listed.any(|word| word == name);
    }
    let (mut lines, function) = (text.lines().map(str::trim_start), format!("fn {name}("));
    let mut marked = false;
    lines.any(|line| {
        let found = marked && line.starts_with(&function);
        marked = line == "#[test]" || marked && (line.starts_with("#[") || line.starts_with("//"));
        found
    })
}

#[test]
fn only_tests_are_found_as_tests() {
    assert!(has_test("tests/repo/policy.rs", "only_tests_are_found_as_tests"));
    assert!(!has_test("tests/repo/policy.rs", "has_test"), "an ordinary function");
    assert!(has_test("tests/gpu/training.rs", "training_steps_agree_with_the_reference"));
    assert!(!has_test("tests/gpu/training.rs", "train"), "a function that is not registered");
}

/// In `docs/reliability.md` a test is named as `file.rs`: `function`, `function`.
#[test]
fn promises_name_tests_that_exist() {
    let (mut promises, mut missing) = (0, Vec::new());
    for line in read("docs/reliability.md").lines().filter(|line| line.starts_with("| ") && line.contains(".rs`")) {
        let proof = line.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let (mut file, mut named) = (None, 0);
        for name in proof.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                file = Some(name);
            } else {
                let file = file.unwrap_or_else(|| panic!("no file before `{name}`: {line}"));
                named += 1;
                if !root().join(file).exists() || !has_test(file, name) {
                    missing.push(format!("`{name}` in {file}"));
                }
            }
        }
        assert!(named > 0, "no test: {line}");
        promises += 1;
    }
    assert!(missing.is_empty(), "named in docs/reliability.md and not there:\n{}", missing.join("\n"));
    assert!(promises >= 20, "{promises} promises");
}

/// A row that names a script of `.ci` quotes parts of it.
#[test]
fn promises_quote_the_scripts_that_prove_them() {
    let mut rows = 0;
    for row in read("docs/reliability.md").lines() {
        let Some((_, proof)) = row.split_once(" | `.ci/") else { continue };
        let (script, quotes) = proof.split_once('`').unwrap();
        let script = read(&format!(".ci/{script}"));
        let quotes: Vec<&str> = quotes.split('`').skip(1).step_by(2).collect();
        assert!(quotes.len() >= 2, "{row}");
        for quote in quotes {
            assert!(script.contains(quote), "`{quote}` is not there: {row}");
        }
        rows += 1;
    }
    assert!(rows >= 3, "{rows} rows");
    assert!(read(".ci/validation.txt").contains("ENABLE_SYNCHRONIZATION_VALIDATION"));
}
