//! A munged of one test alone.

use std::{
    fs,
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use gleaner_testkit::{process::Daemon, wait_until};

use super::{PATIENCE, open_to_all};

pub(crate) struct Munged {
    socket: PathBuf,
    _process: Daemon,
}

impl Munged {
    pub(crate) fn start(parent: &Path) -> Self {
        let directory = parent.join("munge");
        fs::create_dir(&directory).unwrap();
        open_to_all(&directory);
        let path = |name: &str| directory.join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o400).open(path("key")).unwrap();
        std::io::Write::write_all(&mut file, &[7; 64]).unwrap();
        let mut command = Command::new("munged");
        command.args(["--force", "--foreground"]).stderr(Stdio::null());
        for option in ["key-file", "socket", "pid-file", "log-file", "seed-file"] {
            let name = option.trim_end_matches("-file");
            command.arg(format!("--{option}={}", path(name).display()));
        }
        let process = Daemon::start("munged", command, None).expect("munged must be installed");
        let socket = path("socket");
        wait_until("munged listens", PATIENCE, || UnixStream::connect(&socket).is_ok());
        Self { socket, _process: process }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }
}
