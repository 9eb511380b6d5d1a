//! Credentials against a real, private munged: what is taken, and what is refused by which name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    os::unix::{net::UnixStream, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gleaner_identity::{Auth, Authority, IdentityError, Munge, MungeError, Via};

/// A munged of this test alone, stopped when dropped.
struct Munged {
    directory: tempfile::TempDir,
    process: Child,
}

impl Munged {
    fn start(key: &[u8; 64]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users reach the socket through the directory.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o400).open(path("key")).unwrap();
        std::io::Write::write_all(&mut file, key).unwrap();
        let option = |name: &str, file: &str| format!("--{name}={}", path(file).display());
        let process = Command::new("munged")
            .args(["--force", "--foreground"])
            .args([option("key-file", "key"), option("socket", "socket")])
            .args([
                option("pid-file", "pid"),
                option("log-file", "log"),
                option("seed-file", "seed"),
            ])
            .stderr(Stdio::null())
            .spawn()
            .expect("munged must be installed: apt-get install munge");
        let munged = Self { directory, process };
        let deadline = Instant::now() + Duration::from_secs(5);
        while UnixStream::connect(munged.socket()).is_err() {
            assert!(Instant::now() < deadline, "munged does not start");
            std::thread::yield_now();
        }
        munged
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn munge(&self) -> Munge {
        Munge::load(Some(self.socket())).unwrap()
    }

    fn authority(&self) -> Authority {
        Authority::load(&Auth::Munge { socket: Some(self.socket()) }).unwrap()
    }
}

impl Drop for Munged {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

fn via() -> Via {
    Via::Dialled { server: "127.0.0.1:1".parse().unwrap() }
}

#[test]
fn a_credential_says_who_and_what() {
    let munged = Munged::start(&[7; 64]);
    let authority = munged.authority();
    let credential = authority.sign(&[3; 32], None).unwrap();
    let caller = authority.verify(&credential, &[3; 32], via()).unwrap();
    assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(caller.gid, nix::unistd::getegid().as_raw());
}

#[test]
fn a_replayed_credential_is_refused() {
    let munged = Munged::start(&[7; 64]);
    let authority = munged.authority();
    let credential = authority.sign(&[3; 32], None).unwrap();
    authority.verify(&credential, &[3; 32], via()).unwrap();
    let again = authority.verify(&credential, &[3; 32], via());
    assert!(matches!(again, Err(IdentityError::Munge(MungeError::Replayed { .. }))), "{again:?}");
}

#[test]
fn a_credential_of_another_message_is_refused() {
    let munged = Munged::start(&[7; 64]);
    let authority = munged.authority();
    let credential = authority.sign(&[3; 32], None).unwrap();
    let other = authority.verify(&credential, &[4; 32], via());
    assert!(matches!(other, Err(IdentityError::OtherMessage { .. })), "{other:?}");
}

#[test]
fn a_credential_for_another_reader_is_refused() {
    let munged = Munged::start(&[7; 64]);
    let munge = munged.munge();
    let own = nix::unistd::geteuid().as_raw();
    let credential = munge.encode(b"reply", Some(own + 1)).unwrap();
    let refused = munge.decode(&credential);
    assert!(matches!(refused, Err(MungeError::Unauthorized { reader }) if reader == own));
    let credential = munge.encode(b"reply", Some(own)).unwrap();
    assert_eq!(munge.decode(&credential).unwrap().payload, b"reply");
}

#[test]
fn forged_and_damaged_credentials_are_refused() {
    let (munged, foreign) = (Munged::start(&[7; 64]), Munged::start(&[8; 64]));
    let munge = munged.munge();
    let forged = foreign.munge().encode(b"x", None).unwrap();
    assert!(matches!(munge.decode(&forged), Err(MungeError::Invalid { .. })));
    let sound = munge.encode(b"x", None).unwrap();
    let damaged = sound.replacen("MUNGE:", "MUNGE:A", 1);
    for bad in [damaged.as_str(), "", "MUNGE:", "no credential", "a\0b", &"A".repeat(1 << 20)] {
        let refused = munge.decode(bad);
        assert!(matches!(refused, Err(MungeError::Invalid { .. })), "{refused:?}");
    }
}

#[test]
fn another_users_credential_names_that_user() {
    let munged = Munged::start(&[7; 64]);
    let socket = format!("--socket={}", munged.socket().display());
    let made = Command::new("munge")
        .args(["--string=hello", &socket])
        .uid(65534)
        .gid(65534)
        .output()
        .expect("munge must be installed: apt-get install munge");
    let Some(credential) = String::from_utf8(made.stdout).ok().filter(|text| !text.is_empty())
    else {
        assert!(!nix::unistd::geteuid().is_root(), "munge made nothing");
        return;
    };
    let decoded = munged.munge().decode(credential.trim()).unwrap();
    assert_eq!((decoded.uid, decoded.payload.as_slice()), (65534, b"hello".as_slice()));
}

#[test]
fn a_stopped_munged_is_said_so() {
    let munged = Munged::start(&[7; 64]);
    let munge = munged.munge();
    munge.encode(b"x", None).unwrap();
    drop(munged);
    assert!(matches!(munge.encode(b"x", None), Err(MungeError::NoDaemon { .. })));
}
