//! Cleans up after an owner that was killed: the part of "without a trace" that `Drop` cannot do.
//!
//! A shell waits on a pipe that only we hold open. When we are gone without a word it kills every process whose
//! environment or command line mentions the directory, and removes the directory.

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// Reads the directory, then waits for "done" or the pipe's end. The directory is in neither its arguments nor its
/// environment, so it never finds itself.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
read -r dir || exit 0
if read -r word; then exit 0; fi
for round in 1 2 3 4 5 6 7 8 9 10; do
  found=
  for proc in /proc/[0-9]*; do
    if grep -qsF -e "$dir" "$proc/environ" "$proc/cmdline"; then
      state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "$proc/status" 2>/dev/null)
      case $state in Z | X | '') ;; *) found=1; kill -KILL "${proc#/proc/}" 2>/dev/null ;; esac
    fi
  done
  [ -z "$found" ] && break
  sleep 0.1
done
if [ -r "$dir/cgroups" ]; then
  while read -r name; do
    find /sys/fs/cgroup -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
  done < "$dir/cgroups"
fi
rm -rf -- "$dir"
"#;

/// Watches over one directory and the processes that belong to it.
#[derive(Debug)]
pub struct Warden {
    shell: Child,
    words: Option<ChildStdin>,
}

impl Warden {
    /// Begins to watch.
    pub fn over(directory: &Path) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT])
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut words = shell.stdin.take();
        if let Some(words) = &mut words {
            writeln!(words, "{}", directory.display())?;
        }
        Ok(Self { shell, words })
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        if let Some(mut words) = self.words.take() {
            let _ = writeln!(words, "done");
        }
        let _ = self.shell.wait();
    }
}
