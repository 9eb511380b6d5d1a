//! The configuration file: what is valid, is written and read back the same.

#![no_main]

use std::path::Path;

use gleaner_config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let path = Path::new("gleaner.toml");
    if let Ok(loaded) = Config::parse(text, path) {
        let again = Config::parse(&loaded.config.to_toml(), path).expect("our own text is valid");
        assert_eq!(again.config, loaded.config);
    }
});
