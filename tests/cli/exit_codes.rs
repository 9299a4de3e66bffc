//! The exit code tells a script whether to wait, to mend its command, or to look at the machine.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs::File;
use std::net::TcpListener;

use support::cli::{Ended, Place, chats};
use test_support as support;

/// A device on which every write fails as on a full disk.
const FULL: &str = "/dev/full";

#[test]
fn results_on_a_full_disk_are_no_success_and_the_command_to_repeat_is_told() {
    let place = Place::new();
    place.write("in.jsonl", chats(3));
    let run = ["run", "in.jsonl", "--simulate", "--batch", "b"];
    let ended = place.run(&[&run[..], &["--out", FULL]].concat());
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    for said in [
        "error: can't write /dev/full: No space left",
        "kept: every outcome is in the state directory, as batch b",
        "type again: promptmill run in.jsonl --simulate --batch b --out /dev/full",
    ] {
        assert!(ended.err.contains(said), "{}", ended.err);
    }
    assert!(!place.path("b.errors.jsonl").exists(), "half of the results is none");
    let again = place.run(&run);
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.err.contains("nothing left to do"), "{}", again.err);
    assert_eq!(place.ids("b.results.jsonl").len(), 3);
    let results = place.run(&["results", "b-simulated", "--out", FULL]);
    assert_eq!(results.code, Some(4), "{}", results.err);
    assert!(results.err.contains("kept: the store has all outcomes"), "{}", results.err);
    for table in ["csv", "parquet"] {
        let results = place.run(&["results", "b-simulated", "--format", table, "--out", FULL]);
        assert_eq!(results.code, Some(4), "{}", results.err);
    }
    let page = place.run(&["report", "b-simulated", "--html", FULL]);
    assert_eq!(page.code, Some(4), "{}", page.err);
    assert!(page.err.contains("can't write /dev/full"), "{}", page.err);
}

#[test]
fn a_folder_that_is_not_there_is_found_before_anything_is_paid() {
    let place = Place::new();
    place.write("in.jsonl", chats(3));
    for option in ["--out", "--errors"] {
        let ended = place.run(&["run", "in.jsonl", "--simulate", option, "missing/file"]);
        assert_eq!(ended.code, Some(2), "{}", ended.err);
        assert!(ended.err.contains("can't write missing/file"), "{}", ended.err);
        assert_eq!(place.queued(), 0, "nothing may be enqueued");
    }
}

#[test]
fn output_that_is_cut_short_is_no_success() {
    let place = Place::new();
    place.write("in.jsonl", chats(1));
    assert_eq!(place.run(&["run", "in.jsonl", "--simulate"]).code, Some(0));
    for args in [&["status", "--json"][..], &["usage", "--csv"], &["config"], &["status"]] {
        let mut command = place.command(args);
        let output = command.stdout(File::options().write(true).open(FULL).unwrap()).output();
        let ended = Ended::from(output.unwrap());
        assert_eq!(ended.code, Some(4), "{args:?}: {}", ended.err);
        assert!(ended.err.contains("can't write to standard output"), "{}", ended.err);
    }
}

#[test]
fn without_room_for_temporary_files_the_machine_is_at_fault() {
    let place = Place::new();
    place.write("in.jsonl", chats(1));
    let mut command = place.command(&["plan", "in.jsonl", "--tpm", "1000"]);
    let ended = Ended::from(command.env("TMPDIR", "/nowhere").output().unwrap());
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    assert!(ended.err.contains("/nowhere") && ended.err.contains("TMPDIR"), "{}", ended.err);
}

#[test]
fn a_port_in_use_is_for_the_caller_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = Place::new().run(&["simulate", "--port", &port]);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("choose another --port"), "{}", ended.err);
}

#[test]
fn the_help_has_the_table_of_exit_codes() {
    let help = Place::new().run(&["--help"]).out;
    assert!(help.contains("4    a file or disk can't be written"), "{help}");
}
