//! Rules: which calls fail, stall, die or answer late, and how.

use serde::Deserialize;
use serde_json::Value;

/// Where an operation's completion comes from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Complete {
    BeforeReturn,
    EventLoop,
    OtherThread,
    Never,
}

/// The point at which a process dies.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Before the call did anything.
    Before,
    /// In the middle: some of a stream written, a domain half made.
    During,
    /// When everything is done and nobody has been told.
    After,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Die {
    Flag(bool),
    At(Point),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    pub level: i32,
    pub text: String,
    #[serde(default = "no_errno")]
    pub errno: i32,
}

fn no_errno() -> i32 {
    -1
}

/// What happens to the calls that a rule is about. The crate's documentation says what each means.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default)]
    pub call: String,
    #[serde(default)]
    pub domain: Option<String>,
    #[serde(default)]
    pub nth: Option<u64>,
    #[serde(default)]
    pub start_error: Option<i32>,
    #[serde(default)]
    pub complete: Option<Complete>,
    #[serde(default)]
    pub delay_ms: Option<u64>,
    #[serde(default)]
    pub error: Option<i32>,
    /// Do what the call does although it then reports `error`.
    #[serde(default)]
    pub effect: bool,
    #[serde(default)]
    pub die: Option<Die>,
    #[serde(default)]
    pub signal: Option<i32>,
    #[serde(default)]
    pub log: Vec<LogLine>,
    #[serde(default)]
    pub log_in_child: bool,
    #[serde(default)]
    pub forks: bool,
    /// How many progress reports the logger gets.
    #[serde(default)]
    pub progress: u64,
    #[serde(default)]
    pub disaster: Option<String>,
    #[serde(default)]
    pub twice: bool,
    #[serde(default)]
    pub stall_ms: u64,
    /// Time that each hypercall of a stalled call holds its lock, ms.
    #[serde(default)]
    pub hypercall_ms: Option<u64>,
    #[serde(default)]
    pub partial_bytes: Option<u64>,
    #[serde(default)]
    pub payload_bytes: Option<u64>,
    /// Time that each chunk of a stream takes, ms.
    #[serde(default)]
    pub chunk_ms: u64,
    #[serde(default)]
    pub ignore_abort: bool,
    /// `nth` counts the calls of all processes that share a host.
    #[serde(default)]
    pub shared: bool,
    #[serde(skip)]
    pub seen: u64,
}

impl Rule {
    pub fn dies(&self, at: Point) -> bool {
        match self.die {
            None | Some(Die::Flag(false)) => false,
            Some(Die::Flag(true)) => at == Point::During,
            Some(Die::At(point)) => point == at,
        }
    }

    /// Ends the process if the rule says so.
    pub fn die_at(&self, at: Point) {
        if !self.dies(at) {
            return;
        }
        eprintln!("fake-libxl: scripted death in {}", self.call);
        if let Some(signal) = self.signal {
            // SAFETY: kill and getpid take and return numbers only.
            unsafe { libc::kill(libc::getpid(), signal) };
        }
        std::process::abort();
    }
}

/// Counts a call in the host's memory.
fn count(rule: &Rule) -> u64 {
    let key = format!("{} {:?} {:?}", rule.call, rule.domain, rule.nth);
    crate::runtime::world(|world| {
        let seen = world.seen.entry(key).or_default();
        *seen += 1;
        *seen
    })
}

/// All rules, and how the fake reports misuse.
#[derive(Default)]
pub struct Script {
    rules: Vec<Rule>,
    pub record_refusals: bool,
}

impl Script {
    /// Adds one rule, an array of them, or `{"refuse": "record" | "abort"}`.
    pub fn add(&mut self, value: &Value) -> Result<(), String> {
        if let Some(array) = value.as_array() {
            return array.iter().try_for_each(|v| self.add(v));
        }
        match value.get("refuse").and_then(Value::as_str) {
            Some("record") => self.record_refusals = true,
            Some("abort") => self.record_refusals = false,
            Some(other) => return Err(format!("refuse: {other:?} is neither \"record\" nor \"abort\"")),
            None => {
                let rule: Rule = serde_json::from_value(value.clone()).map_err(|e| format!("{value}: {e}"))?;
                if !rule.call.starts_with("libxl_") {
                    return Err(format!("{value}: no \"call\" that starts with libxl_"));
                }
                if rule.nth == Some(0) {
                    return Err(format!("{value}: the first call is nth 1"));
                }
                self.rules.push(rule);
            }
        }
        Ok(())
    }

    /// Counts a call and finds the rule for it: the first that fits.
    pub fn rule_for(&mut self, call: &str, domid: Option<u32>, name: Option<&str>) -> Rule {
        let mut found = None;
        for rule in &mut self.rules {
            let about_it = rule.call == call
                && rule
                    .domain
                    .as_deref()
                    .is_none_or(|wanted| Some(wanted) == name || domid.is_some_and(|d| wanted.parse() == Ok(d)));
            if about_it {
                rule.seen = if rule.shared { count(rule) } else { rule.seen + 1 };
                if found.is_none() && rule.nth.is_none_or(|nth| nth == rule.seen) {
                    found = Some(rule.clone());
                }
            }
        }
        found.unwrap_or_default()
    }
}
