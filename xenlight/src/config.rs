//! Domain configurations, as libxl's own JSON.

use std::ffi::{CString, c_void};

use serde_json::{Number, Value};
use uuid::Uuid;
use xenlight_sys::Block;
use xenlight_sys::libxl as sys;

use crate::context::{Context, User, string};
use crate::error::{Cause, Error, ErrorCode, Result};
use crate::log::muted;

mod fatal;

/// A domain's configuration.
///
/// It holds libxl's JSON, the same that `xl create -n` prints and that `xl save` puts into images. libxl's C
/// structures never appear on the Rust side: libxl itself reads the JSON, fills its structures and frees them.
///
/// Numbers of 32 bits without a sign need care in a configuration that libxl has written: from Xen 4.21 on it may write
/// them with a sign, 4294963696 as -3600.
///
/// ```
/// use serde_json::json;
/// use xenlight::DomainConfig;
///
/// let config = DomainConfig::from_json(json!({
///     "c_info": { "type": "pvh", "name": "web", "uuid": "c57b1d5e-7e2f-4f0b-8d7c-0d9b5c0f2f11" },
///     "b_info": { "max_vcpus": 1, "target_memkb": 131072, "max_memkb": 131072, "kernel": "/boot/guest" },
///     "on_reboot": "restart"
/// }))?;
/// assert_eq!(config.name(), Some("web"));
/// # Ok::<(), xenlight::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DomainConfig {
    json: Value,
}

impl DomainConfig {
    /// Takes libxl's JSON. What libxl makes of it is checked when it is used, or by [`DomainConfig::check`].
    ///
    /// # Errors
    /// When the value is not a JSON object.
    pub fn from_json(json: Value) -> Result<Self> {
        if json.is_object() { Ok(Self { json }) } else { Err(bad("it must be a JSON object")) }
    }

    /// Reads libxl's JSON from its text.
    ///
    /// # Errors
    /// When the text is not JSON or not an object.
    pub fn from_text(text: &str) -> Result<Self> {
        Self::from_json(serde_json::from_str(text).map_err(|e| bad(&e.to_string()))?)
    }

    /// The JSON.
    pub fn as_json(&self) -> &Value {
        &self.json
    }

    /// The JSON.
    pub fn into_json(self) -> Value {
        self.json
    }

    /// The domain's name.
    pub fn name(&self) -> Option<&str> {
        self.json.pointer("/c_info/name")?.as_str()
    }

    /// The domain's UUID.
    pub fn uuid(&self) -> Option<Uuid> {
        self.json.pointer("/c_info/uuid")?.as_str()?.parse().ok()
    }

    /// Checks that this libxl understands all of the configuration.
    ///
    /// libxl's reader ignores members that it does not know and members whose JSON type it does not expect. This
    /// finds them: everything that does not come back when libxl writes the configuration out again is asked for
    /// with another value, and what still does not come back was ignored.
    ///
    /// # Errors
    /// [`Cause::BadConfig`] when libxl would end the process on a value, with the place of that value as a JSON pointer;
    /// [`Cause::Libxl`] when libxl refuses the configuration; [`Cause::ConfigDropped`] with the ignored parts, or the
    /// first of many.
    ///
    /// Wraps `libxl_domain_config_from_json` and `libxl_domain_config_to_json`.
    #[doc(alias = "libxl_domain_config_from_json")]
    pub fn check(&self, context: &Context) -> Result<()> {
        RawConfig::from_config(&context.user, self).map(drop)
    }
}

fn bad(why: &str) -> Error {
    Error::new("read domain configuration", None, Cause::BadConfig(why.to_owned()))
}

/// Ignored parts of a configuration that are named. For each libxl reads all of it again.
const LISTED: usize = 20;

/// libxl's structure, in a block that is larger than that of any release. It stays where it is.
pub(crate) struct RawConfig {
    block: *mut Block,
    user: User,
}

// SAFETY: the block is plain memory with pointers to heap memory that belongs to it; nothing in it is bound to a
// thread.
unsafe impl Send for RawConfig {}

impl RawConfig {
    pub(crate) fn new(user: &User) -> Self {
        let block = Box::into_raw(Block::zeroed());
        // SAFETY: the block is zeroed and larger than the structure of every release that can be opened.
        unsafe { user.lib().libxl_domain_config_init(block.cast()) };
        Self { block, user: user.clone() }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::libxl_domain_config {
        self.block.cast()
    }

    /// Has libxl read a configuration, and makes sure that it has ignored no part of it.
    pub(crate) fn from_config(user: &User, config: &DomainConfig) -> Result<Self> {
        let raw = Self::parse(user, &config.json)?;
        let seen = raw.to_json()?;
        let mut missing = Vec::new();
        compare(&config.json, &seen, &mut Vec::new(), &mut missing);
        let dropped: Vec<String> = missing
            .into_iter()
            .filter(|path| !understands(user, &config.json, path))
            .take(LISTED)
            .map(|p| pointer(&p))
            .collect();
        if dropped.is_empty() {
            Ok(raw)
        } else {
            Err(Error::new("read domain configuration", None, Cause::ConfigDropped(dropped)))
        }
    }

    /// Makes libxl read a configuration, if it does not end the process on it.
    fn parse(user: &User, json: &Value) -> Result<Self> {
        fatal::check(json, user.release()).map_err(|why| bad(&why))?;
        let text = json.to_string();
        fatal::check_length(&text).map_err(|why| bad(&why))?;
        let text = CString::new(text).map_err(|_| bad("it contains a NUL byte"))?;
        let raw = Self::new(user);
        let lib = user.enter("read domain configuration", None)?;
        let mark = user.logger.mark();
        // SAFETY: the block was just initialised, and the text lives during the call.
        let rc = unsafe { lib.libxl_domain_config_from_json(user.ctx(), raw.as_ptr(), text.as_ptr()) };
        user.check("read domain configuration", None, mark, rc)?;
        Ok(raw)
    }

    fn to_json(&self) -> Result<Value> {
        let failed =
            |what: &str| Error::new("write domain configuration", None, Cause::BadAnswer(what.to_owned()));
        let lib = self.user.enter("write domain configuration", None)?;
        // SAFETY: the block holds an initialised structure.
        let text = unsafe { lib.libxl_domain_config_to_json(self.user.ctx(), self.as_ptr()) };
        // SAFETY: null or a string that is ours to free.
        let text = unsafe { take_string(text) }.ok_or_else(|| failed("no JSON"))?;
        serde_json::from_str(&text).map_err(|e| failed(&format!("unreadable JSON ({e})")))
    }

    pub(crate) fn to_config(&self) -> Result<DomainConfig> {
        DomainConfig::from_json(self.to_json()?)
    }
}

impl Drop for RawConfig {
    fn drop(&mut self) {
        // SAFETY: the structure was initialised in `new`, nothing uses it any more, and the block came from a Box.
        unsafe {
            self.user.lib().libxl_domain_config_dispose(self.as_ptr());
            drop(Box::from_raw(self.block));
        }
    }
}

/// Copies and frees a string that libxl has allocated for its caller.
///
/// # Safety
/// `s` is null or a NUL-terminated string from malloc that nobody else uses.
pub(crate) unsafe fn take_string(s: *mut std::ffi::c_char) -> Option<String> {
    // SAFETY: as the caller promises.
    let copy = unsafe { string(s) };
    // SAFETY: libxl documents that such strings are released with free(3), which also takes null.
    unsafe { libc::free(s.cast::<c_void>()) };
    copy
}

/// A step into a JSON document.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

fn pointer(path: &[Step]) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for step in path {
        // Writing to a String can't fail.
        let _ = match step {
            Step::Key(key) => write!(out, "/{}", key.replace('~', "~0").replace('/', "~1")),
            Step::Index(index) => write!(out, "/{index}"),
        };
    }
    out
}

/// Collects the leaves of `given` that are not in `seen`. Aggregates that hold nothing can't be missed.
fn compare(given: &Value, seen: &Value, path: &mut Vec<Step>, missing: &mut Vec<Vec<Step>>) {
    let nothing = Value::Null;
    match (given, seen) {
        (Value::Null, _) => {}
        (Value::Object(members), seen) => {
            for (key, value) in members {
                path.push(Step::Key(key.clone()));
                compare(value, seen.get(key).unwrap_or(&nothing), path, missing);
                path.pop();
            }
        }
        (Value::Array(items), seen) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Step::Index(index));
                compare(item, seen.get(index).unwrap_or(&nothing), path, missing);
                path.pop();
            }
        }
        (Value::Number(a), Value::Number(b)) if !same_number(a, b) => missing.push(path.clone()),
        (_, Value::Null) => missing.push(path.clone()),
        // libxl has its own spelling of some strings (UUIDs, MACs, enums): that there is one is what counts.
        _ => {}
    }
}

/// Compares numbers by their value for libxl. Its writer of Xen 4.21 and later, json-c, knows no number of 32 bits without
/// a sign: what is 4294963696 in libxl's structure comes back as -3600. No field takes both of them with another meaning.
fn same_number(a: &Number, b: &Number) -> bool {
    let unsigned = |n: i64| if (i64::from(i32::MIN)..0).contains(&n) { n + (1 << 32) } else { n };
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => unsigned(a) == unsigned(b),
        _ => a == b,
    }
}

/// Whether libxl takes notice of the leaf at `path`: it does if another value there is refused or comes back. A
/// leaf that libxl leaves out because it holds the default passes, one that libxl does not look at fails.
fn understands(user: &User, json: &Value, path: &[Step]) -> bool {
    let mut changed = json.clone();
    let Some(leaf) = at_mut(&mut changed, path) else { return false };
    match leaf {
        Value::Bool(b) => *b = !*b,
        // No field holds a fraction. libxl passes over a number with a point, and stops reading one at its exponent.
        Value::Number(n) if n.is_f64() => return false,
        Value::Number(n) => {
            let n = n.as_u64().unwrap_or_default();
            *leaf = Value::from(if n == 0 { 1 } else { n - 1 });
        }
        Value::String(s) => s.push_str("-changed"),
        _ => return false,
    }
    let changed_leaf = leaf.clone();
    let raw = match muted(|| RawConfig::parse(user, &changed)) {
        Ok(raw) => raw,
        // Refused by us, it says nothing about libxl.
        Err(error) => return !matches!(error.cause(), Cause::BadConfig(_)),
    };
    match raw.to_json() {
        Ok(seen) => match (&changed_leaf, at(&seen, path)) {
            (Value::Number(asked), Some(Value::Number(seen))) => same_number(asked, seen),
            (_, seen) => !changed_leaf.is_number() && seen.is_some(),
        },
        Err(_) => false,
    }
}

fn at_mut<'v>(value: &'v mut Value, path: &[Step]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

fn at<'v>(value: &'v Value, path: &[Step]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

/// The name under which libxl keeps a domain's configuration.
const STORED: &str = "libxl-json";

/// Reads the configuration that libxl keeps of a domain, brought up to date.
pub(crate) fn retrieve(user: &User, domid: crate::Domid) -> Result<crate::Operation<DomainConfig>> {
    crate::operation::start(
        user,
        "retrieve configuration",
        Some(domid),
        RawConfig::new(user),
        |lib, ctx, raw, how| {
            // SAFETY: `raw` is the operation's own configuration block, alive until completion.
            unsafe { lib.libxl_retrieve_domain_configuration(ctx, domid, (*raw).as_ptr(), how) }
        },
        move |user, raw, status| {
            status.map_err(|e| explain(user, domid, e))?;
            raw.to_config()
        },
    )
}

/// Finds out why a domain's configuration can't be had. libxl only says that it failed, or could not lock the file.
fn explain(user: &User, domid: crate::Domid, mut error: Error) -> Error {
    if matches!(error.code(), Some(ErrorCode::Fail | ErrorCode::LockFail)) {
        let code = match crate::domain::info(user, domid) {
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => Some(ErrorCode::DomainNotFound),
            Err(_) => None,
            Ok(_) => match crate::domain::userdata(user, domid, STORED) {
                Ok(None) => Some(ErrorCode::NoStoredConfig),
                _ => None,
            },
        };
        error.cause = code.map_or(error.cause, Cause::Libxl);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn missing(given: &Value, seen: &Value) -> Vec<String> {
        let mut out = Vec::new();
        compare(given, seen, &mut Vec::new(), &mut out);
        out.iter().map(|p| pointer(p)).collect()
    }

    #[test]
    fn leaves_that_do_not_come_back_are_found_at_any_depth() {
        let given = json!({"a": {"b": 1, "c": "x"}, "d": [{"e": 1}, {"e": 2}], "f": {}, "g": null, "h/i": true});
        let seen = json!({"a": {"b": 1}, "d": [{"e": 1}]});
        assert_eq!(missing(&given, &seen), ["/a/c", "/d/1/e", "/h~1i"]);
    }

    #[test]
    fn other_spellings_are_not_missing_but_other_numbers_are() {
        assert_eq!(missing(&json!({"u": "AB", "n": 1}), &json!({"u": "ab", "n": 2})), ["/n"]);
    }

    #[test]
    fn numbers_come_back_with_a_sign_from_json_c() {
        // A leaf of CPUID, a clock an hour late, all bits but one, and the largest and smallest that change their look.
        for (number, signed) in [
            (0x8000_0001_u32, -2_147_483_647),
            (4_294_963_696, -3600),
            (0xffff_fffe, -2),
            (0xffff_ffff, -1),
            (0x8000_0000, i32::MIN),
        ] {
            let (unsigned, signed) = (json!({"n": number}), json!({"n": signed}));
            assert!(missing(&unsigned, &signed).is_empty(), "{unsigned}");
            // libxl of another release, or built with yajl, reads what json-c has written.
            assert!(missing(&signed, &unsigned).is_empty(), "{signed}");
        }
        for (given, seen) in [
            (json!(0x8000_0001_u32), json!(-2_147_483_646)),
            (json!(1), json!(-1)),
            (json!(u64::MAX), json!(-1)),
            (json!(1_u64 << 63), json!(i64::MIN)),
            (json!((1_u64 << 32) + 1), json!(1)),
            (json!(i64::from(i32::MIN) - 1), json!(i32::MAX)),
            (json!(1.0), json!(1)),
        ] {
            assert_eq!(missing(&json!({"n": given}), &json!({"n": seen})), ["/n"], "{given} {seen}");
        }
    }

    #[test]
    fn what_libxl_writes_is_read_in_either_style() {
        // yajl's, and json-c's: other spacing, escaped slashes, no line feed at the end, members in another order.
        let yajl = r#"{
    "c_info": {
        "name": "a/b",
        "domid": 4294967294
    },
    "b_info": {
        "type.pv": {

        }
    }
}
"#;
        let json_c = r#"{
  "b_info":{
    "type.pv":{
    }
  },
  "c_info":{
    "domid":4294967294,
    "name":"a\/b"
  }
}"#;
        let [yajl, json_c] = [yajl, json_c].map(|text| DomainConfig::from_text(text).expect("an object"));
        assert_eq!(yajl, json_c);
        assert_eq!(json_c.name(), Some("a/b"));
    }

    #[test]
    fn configurations_must_be_objects() {
        assert!(DomainConfig::from_text("[]").is_err());
        assert!(DomainConfig::from_text("{").is_err());
        let config = DomainConfig::from_text(r#"{"c_info":{"uuid":"nonsense"}}"#).expect("object");
        assert_eq!((config.name(), config.uuid()), (None, None));
    }
}
