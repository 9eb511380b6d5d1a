//! Which functions the counted instructions belong to: addresses of two processes, by the names that `addr2line` finds in their
//! programs' own line tables. What was inlined counts for itself, not for where it went.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// Addresses of one process, and how often each was seen.
#[derive(Debug, Default)]
pub struct Blocks {
    seen: BTreeMap<u64, u64>,
}

/// A program or library that a process has mapped.
struct Object {
    path: String,
    base: u64,
    end: u64,
}

impl Blocks {
    /// One instruction.
    pub fn see(&mut self, at: u64) {
        *self.seen.entry(at).or_default() += 1;
    }

    /// Instructions of each function in process `pid`, divided by the number of trips, the most first.
    pub fn by_function(&self, pid: i32, trips: u64) -> Result<Vec<(String, u64)>> {
        let mut functions = BTreeMap::<String, u64>::new();
        for object in objects(pid)? {
            let seen: Vec<(u64, u64)> =
                self.seen.range(object.base..object.end).map(|(at, count)| (*at, *count)).collect();
            let names = names(&object, &seen)?;
            for ((_, count), name) in seen.into_iter().zip(names) {
                *functions.entry(name).or_default() += count;
            }
        }
        let mut functions: Vec<_> = functions
            .into_iter()
            .map(|(name, count)| (name, (count + trips / 2) / trips))
            .collect();
        functions.retain(|(_, count)| *count > 0);
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(functions)
    }
}

/// What a process has mapped that has a name, each once: from its first byte to its last.
fn objects(pid: i32) -> Result<Vec<Object>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("read its mappings")?;
    let mut objects = Vec::<Object>::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(path)) = (words.next(), words.nth(4)) else { continue };
        let Some((base, end)) = range.split_once('-') else { continue };
        let (base, end) = (u64::from_str_radix(base, 16)?, u64::from_str_radix(end, 16)?);
        match objects.last_mut().filter(|last| last.path == path) {
            Some(last) => last.end = end,
            None => objects.push(Object { path: path.to_owned(), base, end }),
        }
    }
    Ok(objects)
}

/// The function of each address; the object's name where it has no line table.
fn names(object: &Object, seen: &[(u64, u64)]) -> Result<Vec<String>> {
    let file = object.path.rsplit('/').next().unwrap_or(&object.path);
    let unknown = || format!("[{}]", file.trim_matches(|c| c == '[' || c == ']'));
    if seen.is_empty() || !Path::new(&object.path).is_file() {
        return Ok(vec![unknown(); seen.len()]);
    }
    let mut command = Command::new("addr2line");
    command.args(["-f", "-C", "-e", &object.path]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start addr2line")?;
    let addresses: String =
        seen.iter().map(|(at, _)| format!("{:x}\n", at - object.base)).collect();
    let mut stdin = child.stdin.take().context("addr2line's input")?;
    let writer = std::thread::spawn(move || stdin.write_all(addresses.as_bytes()));
    let output = child.wait_with_output().context("run addr2line")?;
    let _ = writer.join();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names: Vec<String> = text
        .lines()
        .step_by(2)
        .map(|name| if name.starts_with('?') { unknown() } else { short(name) })
        .collect();
    names.resize_with(seen.len(), unknown);
    Ok(names)
}

/// The last two parts of a path, without generics and hashes.
fn short(name: &str) -> String {
    let plain: String = name.split("::<").next().unwrap_or(name).replace(['<', '>'], "");
    let parts: Vec<&str> = plain.split("::").filter(|part| !part.starts_with("h0")).collect();
    parts[parts.len().saturating_sub(2)..].join("::")
}
