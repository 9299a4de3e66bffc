//! The walls: which crate may know which, what the root package's own rooms may know of each other,
//! and where a vendor's types stop.
//!
//! A crate's wall is its manifest, so the compiler keeps it; this is the list that a new dependency
//! must be entered in. `docs/architecture.md` shows both lists as tables and is held against them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate, and the crates of this workspace that it may know.
const CRATES: &[(&str, &str)] = &[
    ("domain", ""),
    ("state", ""),
    ("http_client", ""),
    ("identity", "http_client"),
    ("simulator", ""),
    ("reader", ""),
    ("tokens", "domain"),
    ("store", "domain http_client identity state"),
    ("queue", "domain http_client identity state store"),
    ("model", "domain http_client"),
    ("admission", "domain"),
    ("intake", "domain queue store tokens"),
    ("telemetry", "domain http_client model queue store"),
    ("worker", "admission domain model queue store telemetry tokens"),
    ("control", "domain store"),
    ("report", "control domain queue store"),
    ("documents", "control domain http_client identity intake queue reader report store tokens"),
    ("serve", "control domain intake queue report store"),
    ("bench", "control domain model queue report store telemetry worker"),
    ("plan", "admission bench domain intake report store"),
];

/// Each room of the root package's `src/`, and the rooms that it may know.
const ROOMS: &[(&str, &str)] = &[
    ("logging", ""),
    ("webhook", ""),
    ("config", "webhook"),
    ("backends", "config"),
    ("app", "backends config webhook"),
    ("cli", "app backends config logging webhook"),
];

/// Each vendor's library, and the places whose code may name it.
const VENDORS: &[(&str, &str)] = &[
    ("axum", "crates/serve"),
    ("azure_data_cosmos", "crates/store/src/cosmos"),
    ("azure_identity", "crates/identity"),
    ("azure_messaging_servicebus", "crates/queue/src/service_bus/https"),
    ("azure_storage_blob", "crates/documents/src/source"),
    ("backoff", "crates/domain/src/backoff.rs"),
    ("bpe_openai", "crates/tokens crates/simulator"),
    ("calamine", "crates/reader/src/sheets.rs"),
    ("clap", "src/cli src/config src/main.rs"),
    ("fe2o3_amqp", "crates/queue/src/service_bus"),
    ("governor", "crates/admission/src/pace.rs crates/serve/src/access.rs"),
    ("hayro_interpret", "crates/reader/src/pdf.rs"),
    ("html5gum", "crates/reader/src/html.rs"),
    ("hyper", "crates/serve/src/listen.rs crates/simulator"),
    ("indicatif", "src/cli"),
    ("jsonschema", "crates/documents/src/schema.rs"),
    ("mail_parser", "crates/reader/src/mail.rs"),
    ("minijinja", "crates/documents/src/template.rs crates/report/src/html.rs"),
    ("opentelemetry", "crates/telemetry"),
    ("parquet", "crates/report/src/results"),
    ("plotters", "crates/report/src/plot.rs"),
    ("prometheus_client", "crates/serve/src/metrics.rs"),
    ("quick_xml", "crates/reader/src/xml.rs crates/reader/src/docx.rs"),
    (
        "reqwest",
        "crates/domain crates/http_client crates/model crates/queue/src/service_bus \
         crates/telemetry src/webhook",
    ),
    ("roxmltree", "crates/queue/src/service_bus/admin.rs"),
    ("rusqlite", "crates/state crates/queue/src/local crates/store/src/local"),
    ("zip", "crates/reader/src/package.rs"),
];

type Walls = BTreeMap<String, BTreeSet<String>>;

#[test]
fn a_crate_depends_on_no_more_and_no_fewer_of_our_crates_than_its_wall_lets_through() {
    let mut found = Walls::new();
    for folder in entries(&root().join("crates")) {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let of_manifest = manifest["dependencies"].as_table().unwrap();
        let ours = of_manifest.iter().filter(|(name, _)| is_ours(name));
        found.insert(name_of(&folder), ours.map(|(name, _)| name.clone()).collect());
    }
    assert_eq!(found, walls(CRATES), "found, and what tests/pipeline/walls.rs allows");
}

#[test]
fn a_room_of_the_root_package_imports_only_the_rooms_below_it() {
    let (allowed, crates) = (walls(ROOMS), walls(CRATES));
    let mut found = Walls::new();
    for path in sources(&root().join("src")) {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if !["lib", "main"].contains(&room) {
            let others = paths_after("crate::", &code(&path));
            // The library passes its crates on to its users; they are no rooms.
            let others = others.into_iter().filter(|o| o != room && !crates.contains_key(o));
            found.entry(room.to_owned()).or_default().extend(others);
        }
    }
    let rooms: Vec<_> = found.keys().collect();
    assert_eq!(rooms, allowed.keys().collect::<Vec<_>>(), "every room has its wall");
    for (room, others) in found {
        let beyond: Vec<_> = others.difference(&allowed[&room]).collect();
        assert!(beyond.is_empty(), "src/{room} may not know {beyond:?}");
    }
}

#[test]
fn a_vendors_types_stop_at_its_rooms() {
    let mut files = sources(&root().join("src"));
    for folder in entries(&root().join("crates")) {
        files.extend(sources(&folder.join("src")));
    }
    for path in files {
        let code = code(&path);
        let place = path.strip_prefix(root()).unwrap();
        for (vendor, rooms) in VENDORS {
            let is_named = names(vendor, &code);
            let is_at_home = rooms.split(' ').any(|room| place.starts_with(room));
            assert!(!is_named || is_at_home, "{} names {vendor}", place.display());
        }
    }
}

#[test]
fn the_tables_of_the_architecture_page_are_these_walls() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    assert_eq!(table(&page, "| crate |"), walls(CRATES));
    assert_eq!(table(&page, "| folder of `src/` |"), walls(ROOMS));
}

/// Reads a table: the name in a row's first column, and those in its last.
fn table(page: &str, head: &str) -> Walls {
    let rows = page.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let name = quoted(cells[0]).pop_first().expect("a row has a name");
        (name, quoted(cells[cells.len() - 1]))
    };
    rows.map(row).collect()
}

fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn walls(all: &[(&str, &str)]) -> Walls {
    let names = |list: &str| list.split_whitespace().map(str::to_owned).collect();
    all.iter().map(|(name, others)| ((*name).to_owned(), names(others))).collect()
}

/// Returns whether a dependency of this name is a crate of this workspace.
fn is_ours(name: &str) -> bool {
    CRATES.iter().any(|(ours, _)| *ours == name)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn name_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("our names are text").to_owned()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    entries.map(|entry| entry.expect("it can be listed").path()).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder) {
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false => found.push(path),
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
}

/// Returns a file's text without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("sources are text");
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the first name of each path that begins like this: `crate::config`, `crate::{config, …}`.
fn paths_after(prefix: &str, code: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for rest in code.split(prefix).skip(1) {
        let group = rest.strip_prefix('{').and_then(|group| group.split("};").next());
        let mut depth = 0;
        let mut outside = |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        };
        for path in group.unwrap_or(rest).split(|c| group.is_some() && outside(c)) {
            found.insert(path.trim().split(|c| !is_name(c)).next().unwrap_or_default().to_owned());
        }
    }
    found
}

/// Returns whether the code has a path that begins with this library's name.
fn names(library: &str, code: &str) -> bool {
    let path = format!("{library}::");
    let before = |at: usize| code[..at].chars().next_back().unwrap_or(' ');
    code.match_indices(&path).any(|(at, _)| {
        let before = before(at);
        !before.is_alphanumeric() && !"_:".contains(before)
    })
}
