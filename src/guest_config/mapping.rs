//! Walks the table of keys over a guest's file and builds libxl's configuration.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::syntax;
use super::table::{Field, KEYS, Key, Place, Rule};
use super::xen_host::XenHost;
use super::{Error, UnknownKey, defbool, per_guest, rules};
use crate::spelling;

/// The types of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Pv,
    Hvm,
    Pvh,
}

/// A configuration under construction.
pub(super) struct Mapping<'a> {
    pub(super) keys: &'a mut Keys,
    pub(super) host: &'a XenHost,
    /// What type of guest it is.
    pub(super) kind: Type,
    /// The configuration, in the shape of libxl's JSON.
    pub(super) root: Map<String, Value>,
}

/// Builds the configuration of a guest.
pub(super) fn build(keys: &mut Keys, host: &XenHost) -> Result<Map<String, Value>, Error> {
    let mut mapping = Mapping { keys, host, kind: Type::Pv, root: Map::new() };
    for key in KEYS {
        mapping.apply(key)?;
    }
    rules::finish(&mut mapping)?;
    Ok(mapping.root)
}

/// The keys of a file that neither xl nor this program knows.
pub(super) fn unknown(keys: &Keys) -> Vec<UnknownKey> {
    let known = || KEYS.iter().map(|key| key.name).chain([per_guest::KEY]);
    let settings = keys.settings().iter().filter(|setting| known().all(|name| name != setting.name));
    let unknown = |setting: &syntax::Setting| UnknownKey {
        name: setting.name.clone(),
        line: setting.line,
        nearest: spelling::nearest(&setting.name, known()),
    };
    settings.map(unknown).collect()
}

/// The name under which libxl's JSON has the part of the build information that depends on the type.
fn union_name(kind: Type) -> &'static str {
    match kind {
        Type::Hvm => "type.hvm",
        Type::Pvh => "type.pvh",
        _ => "type.pv",
    }
}

impl Mapping<'_> {
    /// Sets the type, and with it the structures that libxl's JSON always has, even when they are empty.
    pub(super) fn set_kind(&mut self, kind: Type) {
        self.kind = kind;
        let union = match kind {
            Type::Hvm => json!({ "vga": {}, "vnc": {}, "sdl": {}, "spice": {}, "rdm": {} }),
            _ => json!({}),
        };
        self.root.insert("c_info".to_owned(), json!({}));
        let mut build = json!({ "sched_params": {}, union_name(kind): union, "arch_arm": {} });
        if !self.host.is_before(15) {
            build["arch_x86"] = json!({});
        }
        if !self.host.is_before(21) {
            build["arch_arm"]["arm_sci"] = json!({});
        }
        if !self.host.is_before(22) {
            build["xenstore_quota"] = json!({});
        }
        self.root.insert("b_info".to_owned(), build);
    }

    /// The structure, if a guest of this type has it.
    fn structure(&mut self, place: Place) -> Option<&mut Map<String, Value>> {
        let union = union_name(self.kind);
        let path: &[&str] = match place {
            Place::Create => &["c_info"],
            Place::Build => &["b_info"],
            Place::BuildOfHvm if self.kind == Type::Hvm => &["b_info"],
            Place::Sched => &["b_info", "sched_params"],
            Place::Arm => &["b_info", "arch_arm"],
            Place::X86 => &["b_info", "arch_x86"],
            Place::Pv if self.kind == Type::Pv => &["b_info", union],
            Place::Pvh if self.kind == Type::Pvh => &["b_info", union],
            Place::Hvm if self.kind == Type::Hvm => &["b_info", union],
            Place::Vga if self.kind == Type::Hvm => &["b_info", union, "vga"],
            Place::Vnc if self.kind == Type::Hvm => &["b_info", union, "vnc"],
            Place::Sdl if self.kind == Type::Hvm => &["b_info", union, "sdl"],
            Place::Spice if self.kind == Type::Hvm => &["b_info", union, "spice"],
            _ => return None,
        };
        let mut map = &mut self.root;
        for name in path {
            map = map.get_mut(*name)?.as_object_mut()?;
        }
        Some(map)
    }

    /// Whether a guest of this type has the structure.
    fn has(&mut self, place: Place) -> bool {
        self.structure(place).is_some()
    }

    /// Sets a field, if a guest of this type has it.
    pub(super) fn put(&mut self, field: Field, value: impl Into<Value>) {
        if let Some(structure) = self.structure(field.0) {
            structure.insert(field.1.to_owned(), value.into());
        }
    }

    /// The value of a field that is set.
    pub(super) fn get(&mut self, field: Field) -> Option<&Value> {
        self.structure(field.0)?.get(field.1)
    }

    /// Leaves a field out again.
    pub(super) fn remove(&mut self, field: Field) {
        if let Some(structure) = self.structure(field.0) {
            structure.remove(field.1);
        }
    }

    /// One of libxl's words, in any case.
    pub(super) fn word(
        &self,
        key: &str,
        text: &str,
        words: &'static [&'static str],
    ) -> Result<&'static str, Error> {
        words.iter().copied().find(|word| word.eq_ignore_ascii_case(text)).ok_or_else(|| {
            self.keys.error(key, format!("`{text}` is not accepted here; accepted: {}", words.join(", ")))
        })
    }

    /// Does what the table says about a key.
    fn apply(&mut self, key: &Key) -> Result<(), Error> {
        let name = key.name;
        if self.host.is_before(key.since) {
            if self.keys.value(name).is_some() {
                self.keys.warn(name, format_args!("this key needs Xen 4.{} or newer; it is ignored", key.since));
            }
            return Ok(());
        }
        match key.rule {
            Rule::Own(rule) => return rule(self),
            Rule::Action(default) => return rules::action(self, name, default),
            _ if self.keys.value(name).is_none() => return Ok(()),
            _ => {}
        }
        match key.rule {
            // Done above.
            Rule::Own(_) | Rule::Action(_) => {}
            Rule::Text(field) if self.has(field.0) => {
                if let Some(text) = self.keys.text(name)? {
                    self.put(field, text);
                }
            }
            Rule::Flag(field) if self.has(field.0) => {
                if let Some(on) = self.keys.flag(name) {
                    self.put(field, defbool(on));
                }
            }
            Rule::Int(field, default) if self.has(field.0) => {
                let number = self.keys.number_in(name, i64::from(i32::MIN)..=i64::from(i32::MAX))?;
                if let Some(number) = number.filter(|&number| number != default) {
                    self.put(field, number);
                }
            }
            Rule::Uint32(field) if self.has(field.0) => {
                let number = self.keys.number_in(name, 0..=i64::from(u32::MAX))?;
                if let Some(number) = number.filter(|&number| number != 0) {
                    self.put(field, number);
                }
            }
            Rule::Mebibytes(field) if self.has(field.0) => {
                if let Some(kib) = rules::mebibytes(self.keys, name)? {
                    self.put(field, kib);
                }
            }
            Rule::Texts(field) if self.has(field.0) => {
                if let Some(syntax::Value::Text(_)) = self.keys.value(name) {
                    return Err(self.keys.error(name, "a list of strings is expected"));
                }
                if let Some(texts) = self.keys.texts(name)?.filter(|texts| !texts.is_empty()) {
                    self.put(field, texts);
                }
            }
            Rule::Word(field, words) if self.has(field.0) => {
                if let Some(text) = self.keys.text(name)? {
                    let word = self.word(name, &text, words)?;
                    if word != words[0] {
                        self.put(field, word);
                    }
                }
            }
            // The guest doesn't have the structure.
            Rule::Text(_)
            | Rule::Flag(_)
            | Rule::Int(..)
            | Rule::Uint32(_)
            | Rule::Mebibytes(_)
            | Rule::Texts(_)
            | Rule::Word(..)
            | Rule::Elsewhere => {}
            Rule::Ignored(why) => self.keys.warn(name, format_args!("this key is ignored: {why}")),
        }
        Ok(())
    }
}
