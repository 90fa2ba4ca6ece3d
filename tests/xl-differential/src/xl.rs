//! The real xl of a release, run without Xen.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xendomains::guest_config::{Cpus, GuestConfig, XenHost, XlConf};
use xl_differential::answer::Answer;
use xtask::lab::Release;
use xtask::real_libxl::{CPUS, NODES, RealLibxl};

/// xl is ended after these seconds. No file takes it that long: what does is an endless loop.
const LIMIT: u32 = 20;

/// The xl of a release.
pub struct Xl {
    /// The release.
    pub release: Release,
    libxl: RealLibxl,
    program: PathBuf,
}

/// A key that xl has asked a configuration for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `xl.cfg` or `xl.conf`.
    pub file: String,
    /// The key.
    pub name: String,
    /// Whether it is set there.
    pub set: bool,
}

impl Xl {
    /// Unpacks the release's packages, and builds what stands in for the hypervisor into `directory`.
    pub fn ready(workspace: &Path, release: Release, directory: &Path) -> Result<Self> {
        let libxl = RealLibxl::ready(workspace, release, directory, LIMIT)?;
        let program = libxl.root.join(format!("usr/lib/xen-{release}/bin/xl"));
        Ok(Self { release, libxl, program })
    }

    /// Has xl read a guest's file. The questions are those that it asked on the way, if they are wanted.
    pub fn read(&self, file: &Path, xl_conf: Option<&Path>, questions: bool) -> Result<(Answer, Vec<Question>)> {
        let mut command = self.libxl.command(&self.program)?;
        command.env_clear().args(["create", "-q", "-n"]).arg(file).stdin(Stdio::null());
        command.envs(xl_conf.map(|path| ("XL_CONF", path)));
        if questions {
            command.env("XL_KEYS", "1");
        }
        let output = command.output().context("run xl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let mut asked = Vec::new();
        let mut why = String::new();
        for line in said.lines() {
            if let Some(question) = question(line) {
                asked.push(question);
            } else if why.is_empty() && !line.starts_with("Failed to read config file: /etc/xen/xl.conf") {
                line.clone_into(&mut why);
            }
        }
        let answer = match output.status.code() {
            // Text that is not UTF-8 makes what it prints no JSON; it has taken the file all the same.
            Some(0) => Answer::Config(
                serde_json::from_slice(&output.stdout)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&output.stdout).into_owned())),
            ),
            Some(code) => {
                // Of the shell's kind: then xl has not even begun.
                ensure!(code != 126 && code != 127, "xl of {} can't be run: {said}", self.release);
                Answer::Refused(why)
            }
            None => Answer::Died(format!("it dies of signal {}", output.status.signal().unwrap_or_default())),
        };
        Ok((answer, asked))
    }

    /// What we make of a guest's file for the same host.
    pub fn ours(&self, file: &Path, text: &[u8], xl_conf: Option<&Path>) -> Answer {
        let xl_conf = match xl_conf.map_or_else(|| Ok(XlConf::default()), XlConf::read) {
            Ok(xl_conf) => xl_conf,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let per_node = CPUS / NODES;
        let nodes = (0..NODES).map(|node| (node * per_node..(node + 1) * per_node).collect()).collect();
        let cpus = Cpus { count: CPUS, online: CPUS, nodes, from_xen: true };
        let host = XenHost { release: self.release.minor(), cpus: Some(cpus), ..XenHost::of(xl_conf) };
        match GuestConfig::parse(file, text, &host) {
            Ok(guest) => Answer::Config(guest.json),
            Err(error) => Answer::Refused(error.to_string()),
        }
    }
}

/// Reads `key FILE NAME set`.
fn question(line: &str) -> Option<Question> {
    let mut words = line.strip_prefix("key ")?.split(' ');
    let (file, name, set) = (words.next()?, words.next()?, words.next()?);
    Some(Question { file: file.to_owned(), name: name.to_owned(), set: set == "set" })
}
