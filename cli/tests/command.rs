//! The command as a shell sees it: exit codes, what is printed, and what programs may rely on.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// The command, with an environment of its own: no file of the machine's is read.
fn gleaner(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gleaner"));
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").current_dir(directory);
    command
        .env("GLEANER_CONFIG", directory.join("gleaner.toml"))
        .output()
        .expect("the command starts")
}

fn with_file(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("gleaner.toml"), text).expect("written");
    directory
}

fn json(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(value["version"], 1);
    value
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A cluster of one user where nothing listens: a port that was free a moment ago.
fn nobody_listens() -> tempfile::TempDir {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = free.local_addr().expect("an address").port();
    with_file(&format!(
        "[cluster]\nauth = \"single-user\"\n[harvester]\nlisten = \"127.0.0.1:{port}\"\naddress = \"127.0.0.1:{port}\"\n\
         [executor]\nlisten = \"127.0.0.1:0\"\n"
    ))
}

#[test]
fn a_wrong_configuration_ends_with_3_and_names_every_line() {
    let directory = with_file("[slurm]\npol = \"1s\"\ntimeout = 3\n");
    let output = gleaner(directory.path(), &["config", "check"]);
    assert_eq!(output.status.code(), Some(3));
    let told = text(&output.stderr);
    assert!(
        told.contains("gleaner.toml:2: slurm.pol: no such key; did you mean \"poll\"?"),
        "{told}"
    );
    assert!(told.contains("gleaner.toml:3: slurm.timeout: it is an integer"), "{told}");

    let error = &json(&gleaner(directory.path(), &["--json", "status"]))["error"];
    assert_eq!(error["code"], 3);
}

#[test]
fn a_right_configuration_is_shown_with_origins_and_reads_back() {
    let directory = with_file("[slurm]\npoll = \"2s\"\n");
    assert_eq!(gleaner(directory.path(), &["config", "check"]).status.code(), Some(0));

    let shown = gleaner(
        directory.path(),
        &["config", "show", "--origin", "--set", "policy.reserve_nodes=2"],
    );
    let shown = text(&shown.stdout);
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).expect(key).to_owned();
    assert!(line("poll").ends_with("gleaner.toml:2"), "{shown}");
    assert!(line("reserve_nodes").ends_with("flag --set"), "{shown}");
    assert!(line("timeout").ends_with("default"), "{shown}");

    let again = with_file(&shown);
    let changed = |directory: &Path| {
        let output = gleaner(directory, &["--json", "config", "show"]);
        json(&output)["config"].clone()
    };
    let set = changed(again.path());
    let poll = set.as_array().expect("a list").iter().find(|key| key["key"] == "slurm.poll");
    assert_eq!(poll.expect("the key")["value"], "2s");
}

#[test]
fn a_harvester_that_is_not_there_ends_with_4_and_a_remedy() {
    let directory = nobody_listens();
    for verb in
        [vec!["status"], vec!["nodes"], vec!["drain", "n1", "--reason", "x"], vec!["report"]]
    {
        let output = gleaner(directory.path(), &verb);
        assert_eq!(output.status.code(), Some(4), "{verb:?}");
        let told = text(&output.stderr);
        assert!(told.contains("harvester"), "{told}");
    }
    let error = &json(&gleaner(directory.path(), &["--json", "leases"]))["error"];
    assert_eq!(error["code"], 4);
}

#[test]
fn doctor_ends_with_7_and_gives_each_fault_its_remedy() {
    let directory = nobody_listens();
    let output = gleaner(directory.path(), &["--json", "doctor"]);
    assert_eq!(output.status.code(), Some(7));
    let value = json(&output);
    let findings = value["doctor"].as_array().expect("a list");
    let harvester =
        findings.iter().find(|finding| finding["name"] == "harvester").expect("looked at");
    assert_eq!(harvester["health"], "bad");
    for finding in findings {
        let must = finding["health"] == "bad" || finding["health"] == "warning";
        assert_eq!(finding["remedy"].is_string(), must, "{finding}");
    }
}

#[test]
fn the_command_line_is_checked_before_anything_else() {
    let directory = nobody_listens();
    for arguments in [
        vec!["invoke"],
        vec!["invoke", "lib.so", "f", "-N", "0"],
        vec!["invoke", "lib.so", "f", "-n", "0"],
        vec!["invoke", "lib.so", "f", "--mem", "much"],
        vec!["invoke", "lib.so", "f", "--data", "x", "--input", "y"],
        vec!["drain", "n1"],
        vec!["report", "--since", "once"],
        vec!["new"],
        vec!["new", "../elsewhere"],
    ] {
        assert_eq!(gleaner(directory.path(), &arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_library_or_input_that_is_not_there_ends_with_1_and_its_name() {
    let directory = nobody_listens();
    for arguments in [
        vec!["invoke", "absent.so", "f"],
        vec!["invoke", "absent.so", "f", "--input", "absent.bin"],
    ] {
        let output = gleaner(directory.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("absent."), "{arguments:?}");
    }
}

#[test]
fn a_new_workspace_is_written_once_and_over_nothing() {
    let directory = nobody_listens();
    let output = gleaner(directory.path(), &["new", "my-work"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    assert!(told.contains("cd my-work\n") && told.contains("libmy_work_functions.so"), "{told}");
    let manifest = directory.path().join("my-work/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("written");
    assert!(
        manifest.contains(concat!("gleaner = \"", env!("CARGO_PKG_VERSION"), "\"")),
        "{manifest}"
    );

    let again = gleaner(directory.path(), &["new", "my-work"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("my-work: it exists"), "{}", text(&again.stderr));
    std::fs::create_dir(directory.path().join("empty")).expect("made");
    let value = json(&gleaner(directory.path(), &["--json", "new", "empty"]));
    assert_eq!(value["new"]["files"].as_array().map(Vec::len), Some(7), "{value}");
    let astray = gleaner(directory.path(), &["new", "other", "--path", "empty"]);
    assert_eq!(astray.status.code(), Some(1));
    assert!(text(&astray.stderr).contains("no checkout of Gleaner"), "{}", text(&astray.stderr));
    assert!(!directory.path().join("other").exists());
}

#[test]
fn completions_name_the_verbs() {
    let directory = nobody_listens();
    for shell in ["bash", "zsh", "fish"] {
        let output = gleaner(directory.path(), &["completions", shell]);
        assert!(text(&output.stdout).contains("doctor"), "{shell}");
    }
}

#[test]
fn man_pages_are_written() {
    let directory = nobody_listens();
    let output = gleaner(directory.path(), &["manual", "man"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in ["gleaner.1", "gleaner-invoke.1", "gleaner.toml.5"] {
        let page = std::fs::read_to_string(directory.path().join("man").join(page)).expect(page);
        assert!(page.contains(".TH"), "{page}");
    }
}
