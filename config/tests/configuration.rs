//! What an admin may write, and what they are told when it is wrong.

use std::{path::Path, time::Duration};

use gleaner_config::{Auth, ByteSize, Config, ConfigError, Loaded, Mode, Origin, Sources};

fn parse(text: &str) -> Result<Loaded, ConfigError> {
    Config::parse(text, Path::new("gleaner.toml"))
}

/// The one problem that `text` has, as people read it.
fn problem(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert_eq!(error.problems().len(), 1, "{error}");
    error.to_string()
}

#[test]
fn an_empty_file_gives_the_defaults_and_takes_nothing() {
    let loaded = parse("").expect("the defaults are valid");
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.policy.mode, Mode::Observe);
    assert_eq!(loaded.origin("policy.mode"), &Origin::Default);
}

#[test]
fn a_site_is_read_with_the_line_of_each_key() {
    let text = "[harvester]\naddress = \"head:7817\"\n\n[slurm]\npoll = \"2s\"\n\n[policy]\nmode = \"enforce\"\n\
                partitions = [\"batch\"]\nnodes = [\"n[1-4]\"]\n\n[executor]\nmemory = \"4G\"\ncores = 8\n";
    let loaded = parse(text).expect("valid");
    assert_eq!(loaded.config.slurm.poll, Duration::from_secs(2));
    assert_eq!(loaded.config.executor.memory, Some(ByteSize(4 << 30)));
    assert_eq!(loaded.config.executor.cores, Some(8));
    assert_eq!(loaded.origin("slurm.poll").to_string(), "gleaner.toml:5");
    assert_eq!(loaded.origin("executor.cores").to_string(), "gleaner.toml:14");
    assert_eq!(loaded.origin("slurm.timeout"), &Origin::Default);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    assert_eq!(
        problem("[policy]\nmode = \"observe\"\npartitons = [\"batch\"]\n"),
        "gleaner.toml:3: policy.partitons: no such key; did you mean \"partitions\"?"
    );
    assert_eq!(
        problem("\n[slrum]\n"),
        "gleaner.toml:2: slrum: no such section; did you mean \"slurm\"?"
    );
    assert!(problem("[slurm]\nzzzzzz = 1\n").contains("`gleaner config show` lists all"));
    assert!(problem("poll = \"1s\"\n").contains("did you mean \"slurm.poll\"?"));
}

#[test]
fn a_wrong_value_is_told_what_is_expected() {
    let cases = [
        ("[slurm]\npoll = 5\n", "slurm.poll: it is an integer; give a duration with its unit"),
        ("[slurm]\npoll = \"5 parsecs\"\n", "give a duration with its unit"),
        ("[executor]\nmemory = \"lots\"\n", "executor.memory: \"lots\" is no size; give a size"),
        (
            "[policy]\nmode = \"force\"\n",
            "\"force\" is not known; give one of \"observe\" \"enforce\"",
        ),
        ("[executor]\ncores = -1\n", "-1 is out of range"),
        ("[harvester]\nlisten = \"head\"\n", "give an IP address and a port"),
        ("[harvester]\nstate_dir = \"var\"\n", "\"var\" is not absolute"),
        ("[policy]\npartitions = \"batch\"\n", "it is a string; give a list of texts"),
        ("[policy]\npartitions = [1]\n", "it is an integer"),
    ];
    for (text, expected) in cases {
        let message = problem(text);
        assert!(message.contains(expected), "{message}");
        assert!(message.starts_with("gleaner.toml:2: "), "{message}");
    }
}

#[test]
fn text_that_is_no_toml_names_its_line() {
    let message = problem("[slurm]\npoll = \"1s\"\n= 3\n");
    assert!(message.starts_with("gleaner.toml:3: not TOML: "), "{message}");
    assert!(problem("[slurm]\npoll = \"1s\"\npoll = \"2s\"\n").starts_with("gleaner.toml:3: "));
}

#[test]
fn rules_between_values_hold() {
    let cases = [
        (
            "[policy]\nmode = \"enforce\"\n",
            "no node opted in takes nothing; name policy.partitions",
        ),
        ("[policy]\nnodes = [\"n[1-\"]\n", "bracket"),
        ("[policy]\nnodes = [\"\"]\n", "an empty text names no node"),
        ("[policy]\npartitions = [\"\"]\n", "\"\" is no name"),
        ("[policy]\ngrant_ttl = \"2s\"\n", "less than 3 heartbeats"),
        ("[slurm]\npoll = \"0s\"\n", "too short"),
        ("[harvester]\naddress = \"head\"\n", "give HOST:PORT"),
        ("[executor]\nworker_user = \"root\"\n", "would run as root"),
        ("[executor]\ncores = 0\n", "0 would allow nothing"),
    ];
    for (text, expected) in cases {
        let message = problem(text);
        assert!(message.contains(expected), "{message}");
        assert!(message.starts_with("gleaner.toml:2: "), "{message}");
    }
}

#[test]
fn single_user_mode_refuses_to_listen_beyond_loopback() {
    let error = parse("[cluster]\nauth = \"single-user\"\n").expect_err("listens everywhere");
    let keys: Vec<_> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["harvester.listen", "executor.listen"]);
    assert!(error.to_string().contains("listen on \"127.0.0.1:7817\""), "{error}");

    let text = "[cluster]\nauth = \"single-user\"\n[harvester]\nlisten = \"127.0.0.1:0\"\n[executor]\nlisten = \"[::1]:0\"\n";
    assert_eq!(parse(text).expect("loopback").config.cluster.auth, Auth::SingleUser);
}

#[test]
fn all_problems_are_reported_at_once_in_the_files_order() {
    let error = parse("[slurm]\npoll = 1\ntimeot = \"1s\"\n[zzzzz]\n").expect_err("three problems");
    let keys: Vec<_> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["slurm.poll", "slurm.timeot", "zzzzz"]);
}

#[test]
fn variables_override_the_file_and_flags_override_variables() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("gleaner.toml");
    std::fs::write(&path, "[slurm]\npoll = \"2s\"\ntimeout = \"20s\"\n").expect("written");
    let sources = Sources {
        path: Some(path),
        variables: vec![
            ("GLEANER_SLURM_POLL".into(), "3s".into()),
            ("GLEANER_POLICY_NODES".into(), "n[1,3],m".into()),
            ("GLEANER_CONFIG".into(), "ignored here".into()),
        ],
        flags: vec!["slurm.poll=4s".into()],
    };
    let loaded = sources.load().expect("valid");
    assert_eq!(loaded.config.slurm.poll, Duration::from_secs(4));
    assert_eq!(loaded.config.slurm.timeout, Duration::from_secs(20));
    assert_eq!(loaded.config.policy.nodes, ["n[1,3]", "m"]);
    assert_eq!(loaded.origin("slurm.poll"), &Origin::Flag);
    assert_eq!(loaded.origin("policy.nodes").to_string(), "environment GLEANER_POLICY_NODES");
}

#[test]
fn a_wrong_variable_or_flag_names_itself() {
    for (name, text) in [("GLEANER_SLURM_POLL", "soon"), ("GLEANER_SLURM_POL", "1s")] {
        let variables = vec![(name.into(), text.into())];
        let error = Sources { variables, ..Sources::default() }.load().expect_err(name);
        assert!(error.to_string().starts_with(&format!("environment {name}: ")), "{error}");
    }
    for flag in ["slurm.poll", "poll=1s", "slurm.pol=1s"] {
        let flags = Sources { flags: vec![flag.into()], ..Sources::default() };
        assert!(flags.load().expect_err(flag).to_string().starts_with("flag --set: "), "{flag}");
    }
}

#[test]
fn a_named_file_must_exist() {
    let error = Config::load(Path::new("/nonexistent/gleaner.toml")).expect_err("absent");
    assert!(error.to_string().contains("/nonexistent/gleaner.toml"), "{error}");
    assert!(error.to_string().contains("--config"), "{error}");
}

#[test]
fn a_written_configuration_reads_back_equal() {
    let mut config = Config::default();
    config.cluster.munge_socket = Some("/run/munge/munge.socket.2".into());
    config.policy.nodes = vec!["n[1-4]".into(), "odd".into()];
    config.executor.memory = Some(ByteSize(3 << 30));
    config.slurm.poll = Duration::from_millis(250);
    assert_eq!(parse(&config.to_toml()).expect("valid").config, config);
}

#[test]
fn every_key_is_documented() {
    for key in Config::keys() {
        assert!(key.doc.trim().len() > 10, "{}", key.path());
    }
}
