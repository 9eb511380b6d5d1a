//! A client that is a process of its own, to be killed while it waits for a call.

use std::{env, process::Command};

use gleaner::{Client, Options};
use gleaner_identity::Auth;

use crate::{departures::acquire, service::functions};

/// Far longer than any test.
pub(crate) const LONG: [u8; 8] = 60_000_000_000u64.to_le_bytes();
const HARVESTER: &str = "GLEANER_TEST_HARVESTER";
const MUNGE: &str = "GLEANER_TEST_MUNGE";

/// The client of these options, as a command.
pub(crate) fn command(options: &Options) -> Command {
    let Auth::Munge { socket: Some(socket) } = &options.auth else { panic!("root uses munge") };
    let mut own = Command::new(env::current_exe().unwrap());
    own.args(["--ignored", "--exact", "doomed::waits"]);
    own.env(HARVESTER, &options.harvester).env(MUNGE, socket);
    own
}

#[test]
#[ignore = "needs a test that kills it"]
fn waits() {
    let auth = Auth::Munge { socket: env::var_os(MUNGE).map(Into::into) };
    let options = Options { harvester: env::var(HARVESTER).unwrap(), auth, ..Options::default() };
    let pool = acquire(&Client::connect(options).unwrap());
    let _ = pool.function(&functions(), "spin").unwrap().invoke(&LONG);
}
