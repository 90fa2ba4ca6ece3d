//! The little language of an item of `disk = [ … ]`, as libxlutil reads it.
//!
//! Each parameter ends with a comma. Of all the forms a parameter may have, the longest match counts, and among
//! equally long ones the first of the list below; this is what decides in odd cases, so it is written as such.

use serde_json::{Map, Value, json};

/// What a match of the language means.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Blanks before a parameter.
    Blank,
    /// `NAME=word,` for one of a set of words.
    Word(&'static str, &'static str, &'static [&'static str]),
    /// `NAME=text,`
    Text(&'static str, &'static str),
    /// A word that sets a flag.
    Switch(&'static str, &'static str, bool),
    /// A word that says whether it is a CD-ROM.
    Cdrom(&'static str, bool),
    /// `devtype=` with anything else.
    Devtype,
    /// `access=r,`
    Access,
    /// `direct-io-safe,`
    DirectIoSafe,
    /// `colo-port=N,`
    ColoPort,
    /// `target=` and the rest of the line.
    Target,
    /// `unknown=x`
    UnknownParameter,
    /// `phy:` and other old prefixes that say nothing.
    Prefix(&'static str),
    /// `qcow2:`, an old way to give the format.
    FormatPrefix(&'static str),
    /// `drbd:`, an old way to give the script.
    ScriptPrefix(&'static str),
    /// `unknown:`
    UnknownPrefix,
    /// Everything else: target, format, vdev, access by position.
    Positional,
}

const FORMATS: &[&str] = &["raw", "qcow", "qcow2", "vhd", "empty", "qed"];

const FORMS: &[Form] = &[
    Form::Blank,
    Form::Word("format=", "format", FORMATS),
    Form::Cdrom("cdrom", true),
    Form::Cdrom("devtype=cdrom", true),
    Form::Cdrom("devtype=disk", false),
    Form::Devtype,
    Form::Access,
    Form::Text("backend=", "backend_domname"),
    Form::Word("backendtype=", "backend", &["phy", "tap", "qdisk", "standalone"]),
    Form::Word("specification=", "specification", &["xen", "virtio"]),
    Form::Text("vdev=", "vdev"),
    Form::Text("script=", "script"),
    Form::DirectIoSafe,
    Form::Switch("discard", "discard_enable", true),
    Form::Switch("no-discard", "discard_enable", false),
    Form::Switch("colo", "colo_enable", true),
    Form::Switch("no-colo", "colo_enable", false),
    Form::Text("colo-host=", "colo_host"),
    Form::ColoPort,
    Form::Text("colo-export=", "colo_export"),
    Form::Text("active-disk=", "active_disk"),
    Form::Text("hidden-disk=", "hidden_disk"),
    Form::Switch("trusted", "trusted", true),
    Form::Switch("untrusted", "trusted", false),
    Form::Switch("grant_usage=1", "grant_usage", true),
    Form::Switch("grant_usage=0", "grant_usage", false),
    Form::Target,
    Form::UnknownParameter,
    Form::FormatPrefix("raw:"),
    Form::FormatPrefix("qcow:"),
    Form::FormatPrefix("qcow2:"),
    Form::FormatPrefix("vhd:"),
    Form::ScriptPrefix("iscsi:"),
    Form::ScriptPrefix("nbd:"),
    Form::ScriptPrefix("enbd:"),
    Form::ScriptPrefix("drbd:"),
    Form::Prefix("tapdisk:"),
    Form::Prefix("tap:"),
    Form::Prefix("tap2:"),
    Form::Prefix("aio:"),
    Form::Prefix("ioemu:"),
    Form::Prefix("file:"),
    Form::Prefix("phy:"),
    Form::UnknownPrefix,
    Form::Positional,
];

/// What a form matches at the start of the rest of the text.
struct Match {
    /// What counts when the longest match is chosen.
    total: usize,
    /// What is consumed.
    head: usize,
}

impl Match {
    fn of(length: usize) -> Option<Self> {
        Some(Self { total: length, head: length })
    }
}

/// Counts the bytes of a class at the start.
fn run(text: &str, class: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|&b| class(b)).count()
}

/// The length with a comma that follows.
fn with_comma(text: &str, length: usize) -> usize {
    length + usize::from(text.as_bytes().get(length) == Some(&b','))
}

/// The first release of Xen 4 whose xl knows a parameter. `trusted` and `untrusted` are in the grammar of Xen 4.17
/// already, but not in the scanner that was made of it.
fn since(parameter: &str) -> u32 {
    match parameter {
        "trusted" | "untrusted" | "grant_usage=0" | "grant_usage=1" => 19,
        "backendtype=standalone" => 17,
        _ if parameter.starts_with("specification=") => 17,
        _ => 14,
    }
}

impl Form {
    /// The first release of Xen 4 whose xl knows the form.
    fn since(self) -> u32 {
        match self {
            Self::Word(name, ..) | Self::Switch(name, ..) => since(name),
            _ => 14,
        }
    }

    /// How much of `rest` this form matches; `line` is the length of the rest of the line.
    fn matches(self, rest: &str, line: usize) -> Option<Match> {
        let value = |name: &str| {
            let value = rest.strip_prefix(name)?;
            Match::of(with_comma(rest, name.len() + run(value, |b| b != b',')))
        };
        let word = |word: &str| rest.starts_with(word).then(|| with_comma(rest, word.len())).and_then(Match::of);
        match self {
            Self::Blank => {
                let head = run(rest, |b| matches!(b, b' ' | b'\t' | b'\n'));
                let end = rest[head..].find('\n').map_or(rest.len(), |i| head + i);
                (head > 0).then_some(Match { total: end, head })
            }
            Self::Word(name, ..) | Self::Text(name, _) => value(name),
            Self::Switch(name, ..) | Self::Cdrom(name, _) => word(name),
            Self::Devtype => value("devtype="),
            Self::Access => value("access="),
            Self::DirectIoSafe => word("direct-io-safe"),
            Self::ColoPort => value("colo-port="),
            Self::Target => rest.starts_with("target=").then_some(line).and_then(Match::of),
            Self::UnknownParameter => {
                let name = run(rest, |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
                let after = rest[name..].strip_prefix('=')?;
                let first = after.chars().next().filter(|&c| c != ',')?;
                let starts = rest.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
                starts.then(|| with_comma(rest, name + 1 + first.len_utf8())).and_then(Match::of)
            }
            Self::Prefix(name) | Self::FormatPrefix(name) | Self::ScriptPrefix(name) => {
                rest.starts_with(name).then_some(Match { total: line, head: name.len() })
            }
            Self::UnknownPrefix => {
                let name = run(rest, |b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
                let after = rest[name..].strip_prefix(':')?;
                let starts = rest.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
                let head = name + 1;
                let total = match after.bytes().next() {
                    None | Some(b'a'..=b'z' | b'0'..=b'9') => head,
                    // Any other byte, even a newline, and then the rest of a line.
                    Some(_) => head + 1 + after.bytes().skip(1).take_while(|&b| b != b'\n').count(),
                };
                starts.then_some(Match { total, head })
            }
            Self::Positional => {
                let length = with_comma(rest, run(rest, |b| b != b'=' && b != b','));
                (length > 0).then_some(length).and_then(Match::of)
            }
        }
    }
}

/// A disk while it is being read: its JSON, and what only the reading needs.
struct Reader {
    release: u32,
    json: Map<String, Value>,
    readwrite: bool,
    cdrom: bool,
    old_prefix: bool,
    access_given: bool,
}

/// Reads an item of `disk = [ … ]` into a `libxl_device_disk`, as the xl of this release does.
pub(super) fn parse(spec: &str, release: u32, warnings: &mut Vec<String>) -> Result<Value, String> {
    let disk = read(spec, release);
    // An older xl takes a parameter that it doesn't know for something else, which is hard to find out.
    let parameters = spec.split(',').map(|parameter| parameter.trim_start_matches([' ', '\t', '\n']));
    let mut parameters = parameters.take_while(|parameter| !parameter.starts_with("target="));
    let Some(too_new) = parameters.find(|parameter| since(parameter) > release) else { return disk };
    let needs = format!("`{too_new}` needs Xen 4.{}", since(too_new));
    match disk {
        Ok(disk) => {
            warnings.push(format!("{needs}; it is taken for something else"));
            Ok(disk)
        }
        Err(why) => Err(format!("{why} ({needs})")),
    }
}

fn read(spec: &str, release: u32) -> Result<Value, String> {
    let mut disk = Reader {
        release,
        json: Map::new(),
        readwrite: true,
        cdrom: false,
        old_prefix: false,
        access_given: false,
    };
    let mut at = 0;
    let mut line_end = 0;
    while at < spec.len() {
        if line_end <= at {
            // A newline itself is the end of an empty line.
            line_end = spec[at..].find('\n').map_or(spec.len(), |i| at + i);
        }
        let rest = &spec[at..];
        let mut best: Option<(Form, Match)> = None;
        for &form in FORMS.iter().filter(|form| form.since() <= release) {
            if let Some(found) = form.matches(rest, line_end - at) {
                if best.as_ref().is_none_or(|(_, old)| found.total > old.total) {
                    best = Some((form, found));
                }
            }
        }
        let Some((form, found)) = best else {
            // libxlutil overlooks a single byte at the end that nothing matches.
            if rest.len() == 1 {
                break;
            }
            return Err(format!("bad disk syntax near `{rest}`"));
        };
        disk.take(form, &rest[..found.head])?;
        at += found.head;
    }
    disk.finish()
}

impl Reader {
    fn text(&self, name: &str) -> Option<&str> {
        self.json.get(name).and_then(Value::as_str)
    }

    /// Sets a text that must not have been set before, unless to nothing.
    fn set_text(&mut self, name: &str, value: &str) -> Result<(), String> {
        if self.text(name).is_some_and(|old| !old.is_empty()) {
            return Err(format!("`{value}`: {name} is given a second time"));
        }
        self.json.insert(name.to_owned(), json!(value));
        Ok(())
    }

    /// Sets one of a few words, which must not have been set to another one before.
    fn set_word(&mut self, name: &str, value: &str, words: &[&str]) -> Result<(), String> {
        if !words.contains(&value) {
            return Err(format!("`{value}` is not a known {name}; accepted: {}", words.join(", ")));
        }
        if self.text(name).is_some_and(|old| old != value) {
            return Err(format!("`{value}`: {name} is given a second time"));
        }
        self.json.insert(name.to_owned(), json!(value));
        Ok(())
    }

    /// An empty format is raw.
    fn set_format(&mut self, value: &str) -> Result<(), String> {
        self.set_word("format", if value.is_empty() { "raw" } else { value }, FORMATS)
    }

    fn set_access(&mut self, value: &str) -> Result<(), String> {
        self.readwrite = match value {
            "r" | "ro" => false,
            "rw" | "w" | "" => true,
            _ => return Err(format!("`{value}` is not a known access; accepted: r, ro, rw, w")),
        };
        Ok(())
    }

    /// Sets the vdev from the old form `vdev:cdrom`; `false` if it isn't in that form.
    fn set_vdev_and_type(&mut self, value: &str) -> Result<bool, String> {
        let Some((vdev, kind)) = value.rsplit_once(':') else { return Ok(false) };
        self.set_text("vdev", vdev)?;
        self.cdrom = match kind {
            "cdrom" => true,
            "disk" => false,
            _ => return Err(format!("`{kind}` is not a known type of disk; accepted: disk, cdrom")),
        };
        Ok(true)
    }

    fn take(&mut self, form: Form, matched: &str) -> Result<(), String> {
        let item = matched.strip_suffix(',').unwrap_or(matched);
        let value = item.split_once('=').map_or("", |(_, value)| value);
        match form {
            Form::Blank => Ok(()),
            Form::Word("format=", ..) => self.set_format(value),
            Form::Word(..) if since(item) > self.release => Err(format!("`{item}` is not known")),
            Form::Word(_, name, words) => self.set_word(name, value, words),
            Form::Text(_, name) => self.set_text(name, value),
            Form::Switch(_, name, on) => {
                self.json.insert(name.to_owned(), super::defbool(on));
                Ok(())
            }
            Form::Cdrom(_, cdrom) => {
                self.cdrom = cdrom;
                Ok(())
            }
            Form::Devtype => Err(format!("`{value}` is not a known devtype; accepted: disk, cdrom")),
            Form::Access => self.set_access(value),
            Form::DirectIoSafe => {
                self.json.insert("direct_io_safe".to_owned(), json!(true));
                Ok(())
            }
            Form::ColoPort => {
                // Like `atoi`: what follows the digits doesn't count.
                let value = value.trim_start();
                match value[..run(value, |b| b.is_ascii_digit())].parse::<u16>() {
                    Ok(port) if port != 0 => {
                        self.json.insert("colo_port".to_owned(), json!(port));
                        Ok(())
                    }
                    _ => Err(format!("`{value}` is not a port for colo-port")),
                }
            }
            Form::Target => self.set_text("pdev_path", value),
            Form::UnknownParameter => Err(format!("`{item}`: unknown parameter")),
            Form::Prefix(_) => {
                self.old_prefix = true;
                Ok(())
            }
            Form::FormatPrefix(_) => {
                self.old_prefix = true;
                self.set_format(matched.trim_end_matches(':'))
            }
            Form::ScriptPrefix(_) => {
                self.old_prefix = true;
                self.set_text("script", &format!("block-{}", matched.trim_end_matches(':')))
            }
            Form::UnknownPrefix => Err(format!("`{matched}` is not a known prefix")),
            Form::Positional => self.positional(item),
        }
    }

    fn positional(&mut self, item: &str) -> Result<(), String> {
        let Some(target) = self.text("pdev_path") else { return self.set_text("pdev_path", item) };
        let no_target = target.is_empty();
        if !self.old_prefix && !self.json.contains_key("format") {
            if no_target && self.set_vdev_and_type(item)? {
                return self.set_format("empty");
            }
            self.set_format(item)
        } else if !self.json.contains_key("vdev") {
            if self.set_vdev_and_type(item)? { Ok(()) } else { self.set_text("vdev", item) }
        } else if !self.access_given {
            self.access_given = true;
            self.set_access(item)
        } else {
            Err(format!("`{item}`: too many positional parameters"))
        }
    }

    fn finish(mut self) -> Result<Value, String> {
        self.json.entry("format").or_insert_with(|| json!("raw"));
        if self.cdrom {
            self.readwrite = false;
            self.json.insert("is_cdrom".to_owned(), json!(1));
            self.json.insert("removable".to_owned(), json!(1));
            if self.text("pdev_path").is_none_or(str::is_empty) {
                self.json.insert("format".to_owned(), json!("empty"));
            }
        }
        if self.readwrite {
            self.json.insert("readwrite".to_owned(), json!(1));
        }
        if !self.json.contains_key("vdev") {
            return Err("no vdev is given".to_owned());
        }
        if !self.cdrom && !self.json.contains_key("pdev_path") {
            return Err("no target is given, and it is not a CD-ROM".to_owned());
        }
        Ok(Value::Object(self.json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk(path: &str, vdev: &str, format: &str) -> Value {
        json!({ "pdev_path": path, "vdev": vdev, "format": format, "readwrite": 1 })
    }

    fn with(mut disk: Value, more: &Value) -> Value {
        for (name, value) in more.as_object().unwrap() {
            match value {
                Value::Null => disk.as_object_mut().unwrap().remove(name),
                _ => disk.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        disk
    }

    #[test]
    fn accepted() {
        let plain = || disk("/dev/vg/x", "xvda", "raw");
        let ro = json!({ "readwrite": null });
        let cd = json!({ "readwrite": null, "is_cdrom": 1, "removable": 1 });
        let table = [
            ("/dev/vg/x,raw,xvda,rw", plain()),
            ("/dev/vg/x,raw,xvda,w", plain()),
            ("/dev/vg/x,raw,xvda,", plain()),
            ("/dev/vg/x,raw,xvda", plain()),
            ("/dev/vg/x,,xvda", plain()),
            (" /dev/vg/x, raw,\txvda , rw", with(plain(), &json!({ "vdev": "xvda " }))),
            ("/dev/vg/x,raw,xvda,r", with(plain(), &ro)),
            ("/dev/vg/x,qcow2,xvda,ro", with(with(plain(), &ro), &json!({ "format": "qcow2" }))),
            ("format=raw,vdev=xvda,access=rw,target=/dev/vg/x", plain()),
            ("vdev=xvda,target=/dev/vg/x", plain()),
            ("vdev=xvda,/dev/vg/x", plain()),
            ("vdev=xvda,target=/a,b:c=d", disk("/a,b:c=d", "xvda", "raw")),
            ("phy:/dev/vg/x,xvda,w", plain()),
            ("file:/img,xvda,r", with(disk("/img", "xvda", "raw"), &ro)),
            ("tap:aio:/img,xvda,w", disk("/img", "xvda", "raw")),
            ("tap:qcow2:/img,xvda,w", disk("/img", "xvda", "qcow2")),
            ("qcow:/img,xvda,w", disk("/img", "xvda", "qcow")),
            ("drbd:r0,xvda,w", with(disk("r0", "xvda", "raw"), &json!({ "script": "block-drbd" }))),
            ("enbd:r0,xvda,w", with(disk("r0", "xvda", "raw"), &json!({ "script": "block-enbd" }))),
            ("file:/x.iso,hdc:cdrom,r", with(disk("/x.iso", "hdc", "raw"), &cd)),
            (",hdc:cdrom,r", with(disk("", "hdc", "empty"), &cd)),
            ("/x.iso,raw,hdc,r,cdrom", with(disk("/x.iso", "hdc", "raw"), &cd)),
            ("/x.iso,,hdc,cdrom", with(disk("/x.iso", "hdc", "raw"), &cd)),
            (
                "devtype=cdrom,vdev=hdc",
                with(disk("", "hdc", "empty"), &with(cd.clone(), &json!({}))).tap_no_target(),
            ),
            ("vdev=hdc,cdrom,target=/x.iso,devtype=cdrom", with(disk("/x.iso,devtype=cdrom", "hdc", "raw"), &cd)),
            ("/dev/vg/x,raw,xvda,rw,backendtype=qdisk", with(plain(), &json!({ "backend": "qdisk" }))),
            ("/dev/vg/x,raw,xvda,backend=storage", with(plain(), &json!({ "backend_domname": "storage" }))),
            ("/dev/vg/x,raw,xvda,script=block-x", with(plain(), &json!({ "script": "block-x" }))),
            ("/dev/vg/x,raw,xvda,direct-io-safe", with(plain(), &json!({ "direct_io_safe": true }))),
            ("/dev/vg/x,raw,xvda,discard", with(plain(), &json!({ "discard_enable": "True" }))),
            ("/dev/vg/x,raw,xvda,no-discard", with(plain(), &json!({ "discard_enable": "False" }))),
            ("/dev/vg/x,raw,xvda,untrusted", with(plain(), &json!({ "trusted": "False" }))),
            ("/dev/vg/x,raw,xvda,specification=virtio", with(plain(), &json!({ "specification": "virtio" }))),
            ("/dev/vg/x,raw,xvda,grant_usage=1", with(plain(), &json!({ "grant_usage": "True" }))),
            ("cdromx,raw,xvda", disk("cdromx", "xvda", "raw")),
            ("iqn.2001-05.com:x,raw,xvda", disk("iqn.2001-05.com:x", "xvda", "raw")),
            ("/dev/vg/x,raw,xvda,rw,format=raw", plain()),
            ("/dev/vg/x,raw,xvda=", plain()),
            ("/dev/vg/x,raw,xvda,colo-port=7 ", with(plain(), &json!({ "colo_port": 7 }))),
        ];
        for (spec, expected) in table {
            let mut warnings = Vec::new();
            assert_eq!(parse(spec, 20, &mut warnings).as_ref(), Ok(&expected), "{spec:?}");
            assert_eq!(warnings, Vec::<String>::new(), "{spec:?}");
        }
    }

    trait TapNoTarget {
        fn tap_no_target(self) -> Self;
    }

    impl TapNoTarget for Value {
        fn tap_no_target(mut self) -> Self {
            self.as_object_mut().unwrap().remove("pdev_path");
            self
        }
    }

    #[test]
    fn refused() {
        for (spec, word) in [
            ("", "no vdev"),
            ("/dev/vg/x", "no vdev"),
            ("vdev=xvda", "no target"),
            ("/dev/vg/x,foo,xvda", "not a known format"),
            ("/dev/vg/x,raw,xvda,x", "not a known access"),
            ("/dev/vg/x,raw,xvda,rw,more", "too many"),
            ("/dev/vg/x,raw,xvda,vdev=xvdb", "second time"),
            ("/dev/vg/x,raw,xvda,format=qcow2", "second time"),
            ("/dev/vg/x,raw,xvda,target=/y", "second time"),
            ("/dev/vg/x,raw,xvda,foo=bar", "unknown parameter"),
            ("/dev/vg/x,raw,xvda,backendtype=nbd", "not a known backend"),
            ("/dev/vg/x,raw,xvda,devtype=tape", "not a known devtype"),
            ("/dev/vg/x,raw,xvda,grant_usage=2", "access"),
            ("nfs:/x,xvda,w", "not a known prefix"),
            ("/a=b,raw,xvda", "bad disk syntax"),
            ("phy:/x,hda:tape,w", "not a known type"),
            ("vdev=xvda,colo-port=x,target=/x", "colo-port"),
        ] {
            let error = parse(spec, 20, &mut Vec::new()).expect_err(spec);
            assert!(error.contains(word), "{spec:?}: {error}");
        }
    }

    #[test]
    fn by_release() {
        let read = |spec: &str, release| {
            let mut warnings = Vec::new();
            parse(spec, release, &mut warnings).map(|disk| (disk, warnings))
        };
        for (parameter, since, why) in [
            ("specification=virtio", 17, "unknown parameter (`specification=virtio` needs Xen 4.17)"),
            ("backendtype=standalone", 17, "not known (`backendtype=standalone` needs Xen 4.17)"),
            ("trusted", 19, "too many positional parameters (`trusted` needs Xen 4.19)"),
            ("untrusted", 19, "too many positional parameters (`untrusted` needs Xen 4.19)"),
            ("grant_usage=1", 19, "too many positional parameters (`grant_usage=1` needs Xen 4.19)"),
        ] {
            for release in 14..=22 {
                match read(&format!("/x,raw,xvda,rw, {parameter}"), release) {
                    Ok((_, warnings)) => assert!(release >= since && warnings.is_empty(), "{parameter} {release}"),
                    Err(error) => assert!(release < since && error.ends_with(why), "{release}: {error}"),
                }
            }
        }
        // Such a word is a fine target for an older xl.
        let (disk, warnings) = read("vdev=xvda,untrusted", 17).unwrap();
        assert_eq!(disk["pdev_path"], "untrusted");
        assert_eq!(warnings, ["`untrusted` needs Xen 4.19; it is taken for something else"]);
        let (disk, warnings) = read("vdev=xvda,target=/x,untrusted", 17).unwrap();
        assert_eq!((&disk["pdev_path"], warnings.len()), (&json!("/x,untrusted"), 0));
    }

    proptest! {
        #[test]
        fn never_panics(spec in any::<String>(), release in 14..23u32) {
            let _ = parse(&spec, release, &mut Vec::new());
        }

        #[test]
        fn never_panics_on_likely_text(
            spec in r"(phy:|tap:|target=|vdev=|format=|raw|cdrom|xvda|/x|,|:|=| |\n|ä|devtype=|trusted){0,12}",
            release in 14..23u32,
        ) {
            let _ = parse(&spec, release, &mut Vec::new());
        }
    }
}
