//! `cpuid`: which features of the CPU a guest sees.
//!
//! ```text
//! "host,NAME=VALUE,…"             VALUE: a number, or k, s (as the host has it), x (as is usual)
//! [ "LEAF[,SUBLEAF]:REGISTER=POLICY[,REGISTER=POLICY…]", … ]
//!                                 REGISTER: eax, ebx, ecx, edx; POLICY: 32 of 0, 1, x, k, s, highest bit first
//! ```
//!
//! The second form is that of Xen's old toolstack. xl tells what it can't use and goes on without it; here that is a
//! warning.

use serde_json::{Map, Value, json};

use super::cpuid_names::{self, Home, Part, Register};
use super::mapping::Mapping;
use super::table::{Field, Place};
use super::xen_host::XenHost;
use super::{Error, scan, syntax};

/// The updates that brought model-specific registers to releases which were out already.
const MSR_UPDATES: &[(u32, u32)] = &[(14, 6), (15, 5), (16, 5), (17, 2)];

const REGISTERS: [(Register, &str); 4] =
    [(Register::Eax, "eax"), (Register::Ebx, "ebx"), (Register::Ecx, "ecx"), (Register::Edx, "edx")];

/// Why a part of the value is not used.
enum Trouble {
    /// xl says so and goes on.
    Skipped(String),
    /// xl would take something else than what is written, or the guest could not be made.
    Wrong(String),
}

impl Trouble {
    fn skipped<T>(why: impl Into<String>) -> Result<T, Self> {
        Err(Self::Skipped(why.into()))
    }

    fn wrong<T>(why: impl Into<String>) -> Result<T, Self> {
        Err(Self::Wrong(why.into()))
    }
}

/// `cpuid`
pub(super) fn cpuid(m: &mut Mapping<'_>) -> Result<(), Error> {
    const KEY: &str = "cpuid";
    if m.keys.value(KEY).is_none() {
        return Ok(());
    }
    if !cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
        m.keys.warn(KEY, "this key is ignored: only x86 has it");
        return Ok(());
    }
    let mut policy = Policy::default();
    let mut odd = Vec::new();
    let read = if let Some(syntax::Value::List(_)) = m.keys.value(KEY) {
        let items = m.keys.texts(KEY)?.unwrap_or_default();
        items.iter().try_for_each(|item| passed_over(policy.add_leaf(item), item, &mut odd))
    } else {
        let text = m.keys.text(KEY)?.unwrap_or_default();
        let mut words = text.split(',').filter(|word| !word.is_empty());
        match words.next() {
            None => Ok(()),
            Some("host") => words.try_for_each(|word| passed_over(policy.add_name(word, m.host), word, &mut odd)),
            Some(word) => {
                odd.push(format!("`{word}`: the first word must be `host`; all of it is ignored"));
                Ok(())
            }
        }
    };
    read.map_err(|why| m.keys.error(KEY, why))?;
    for what in odd {
        m.keys.warn(KEY, what);
    }
    if let Some(policy) = policy.json(m.host) {
        m.put(Field(Place::Build, KEY), policy);
    }
    Ok(())
}

/// Notes what xl only tells.
fn passed_over(added: Result<(), Trouble>, what: &str, odd: &mut Vec<String>) -> Result<(), String> {
    match added {
        Ok(()) => Ok(()),
        Err(Trouble::Skipped(why)) => {
            odd.push(format!("in `{what}`: {why}; it is ignored"));
            Ok(())
        }
        Err(Trouble::Wrong(why)) => Err(format!("in `{what}`: {why}")),
    }
}

/// What is asked for, as libxl keeps it: strings with a character for each bit, highest first.
#[derive(Default)]
struct Policy {
    leaves: Vec<Leaf>,
    msrs: Vec<(u32, Vec<u8>)>,
}

struct Leaf {
    leaf: u32,
    subleaf: Option<u32>,
    registers: [Option<Vec<u8>>; 4],
}

impl Policy {
    /// The entry of a leaf. Like libxl's, it is made before the rest has been read, and stays.
    fn leaf(&mut self, leaf: u32, subleaf: Option<u32>) -> &mut Leaf {
        let known = self.leaves.iter().position(|known| (known.leaf, known.subleaf) == (leaf, subleaf));
        let place = known.unwrap_or_else(|| {
            self.leaves.push(Leaf { leaf, subleaf, registers: [const { None }; 4] });
            self.leaves.len() - 1
        });
        &mut self.leaves[place]
    }

    /// The entry of a model-specific register.
    fn msr(&mut self, index: u32) -> &mut Vec<u8> {
        let known = self.msrs.iter().position(|(known, _)| *known == index);
        let place = known.unwrap_or_else(|| {
            self.msrs.push((index, vec![b'x'; 64]));
            self.msrs.len() - 1
        });
        &mut self.msrs[place].1
    }

    /// `NAME=VALUE`
    fn add_name(&mut self, word: &str, host: &XenHost) -> Result<(), Trouble> {
        let Some((name, value)) = word.split_once('=') else { return Trouble::skipped("there is no `=`") };
        let Some((home, part)) = cpuid_names::find(name) else {
            return Trouble::skipped(format!("`{name}` is not the name of a feature"));
        };
        if host.is_before(part.since) {
            return Trouble::skipped(format!("`{name}` needs Xen 4.{} or newer", part.since));
        }
        match home {
            Home::Msr(_) if host.is_older_than_update(MSR_UPDATES) => {
                return Trouble::skipped(format!("`{name}` needs a later update of Xen 4.{}", host.release));
            }
            Home::Msr(index) => {
                let bits = self.msr(index);
                let place = bits.len() - 1 - part.bit;
                bits[place] = match value {
                    "0" | "1" | "x" | "k" => value.as_bytes()[0],
                    "s" => b'k',
                    _ => return Trouble::skipped(format!("`{value}` is not accepted; accepted: 0, 1, x, k, s")),
                };
            }
            Home::Cpuid(leaf, subleaf, register) => {
                let entry = self.leaf(leaf, subleaf);
                let (bits, number) = bits_of(part, value)?;
                let place = &mut entry.registers[register as usize];
                let register = place.get_or_insert_with(|| vec![b'x'; 32]);
                part.write(register, &bits, number);
            }
        }
        Ok(())
    }

    /// `LEAF[,SUBLEAF]:REGISTER=POLICY[,…]`
    fn add_leaf(&mut self, item: &str) -> Result<(), Trouble> {
        let (leaf, mut rest) = leaf_number(item, "leaf")?;
        let mut subleaf = None;
        if let Some(text) = rest.strip_prefix(',') {
            let (number, behind) = leaf_number(text, "subleaf")?;
            (subleaf, rest) = (Some(number), behind);
        }
        let Some(mut rest) = rest.strip_prefix(':') else {
            return Trouble::skipped("a `:` is missing behind the leaf");
        };
        let entry = self.leaf(leaf, subleaf);
        while !rest.is_empty() {
            let known = REGISTERS.iter().find(|(_, name)| rest.starts_with(name));
            let (Some((register, _)), Some((_, behind))) = (known, rest.split_once('=')) else {
                return Trouble::skipped("a register is expected: eax=, ebx=, ecx= or edx=");
            };
            let (bits, behind) = behind.split_once(',').unwrap_or((behind, ""));
            if bits.len() != 32 {
                return Trouble::skipped(format!("`{bits}` has not 32 characters"));
            }
            // xl takes them, but then libxl can't make the guest.
            if let Some(odd) = bits.chars().find(|bit| !"01xks".contains(*bit)) {
                return Trouble::wrong(format!("`{odd}` is not accepted in `{bits}`; accepted: 0, 1, x, k, s"));
            }
            entry.registers[*register as usize] = Some(bits.as_bytes().to_vec());
            rest = behind.trim_start_matches([' ', '\n']);
        }
        Ok(())
    }

    /// In libxl's JSON; `None` when nothing is asked for.
    fn json(&self, host: &XenHost) -> Option<Value> {
        if self.leaves.is_empty() && self.msrs.is_empty() {
            return None;
        }
        let text = |bits: &[u8]| Value::from(String::from_utf8_lossy(bits));
        let leaves = self.leaves.iter().map(|entry| {
            let mut leaf = Map::new();
            leaf.insert("leaf".to_owned(), entry.leaf.into());
            if let Some(subleaf) = entry.subleaf {
                leaf.insert("subleaf".to_owned(), subleaf.into());
            }
            for ((_, name), bits) in REGISTERS.iter().zip(&entry.registers) {
                if let Some(bits) = bits {
                    leaf.insert((*name).to_owned(), text(bits));
                }
            }
            Value::Object(leaf)
        });
        let leaves: Vec<_> = leaves.collect();
        let msrs = self.msrs.iter().map(|(index, bits)| json!({ "index": index, "policy": text(bits) }));
        let msrs: Vec<_> = msrs.collect();
        if host.is_older_than_update(MSR_UPDATES) {
            return Some(Value::Array(leaves));
        }
        Some(json!({ "cpuid": leaves, "msr": msrs }))
    }
}

/// A number with which an item of the old form begins, and what follows it.
fn leaf_number<'a>(text: &'a str, what: &str) -> Result<(u32, &'a str), Trouble> {
    match scan::number(text, 0) {
        Ok((number, rest)) => match u32::try_from(number) {
            Ok(number) if number != u32::MAX => Ok((number, rest)),
            _ => Trouble::wrong(format!("the {what} {number} is too big")),
        },
        Err(scan::NOT_A_NUMBER) => Trouble::skipped(format!("the number of a {what} is expected")),
        Err(why) => Trouble::wrong(format!("the {what}: {why}")),
    }
}

/// A value as bits, highest first, and as a number (0 if it is none).
fn bits_of(part: Part, value: &str) -> Result<(Vec<u8>, u64), Trouble> {
    match scan::number(value, 0) {
        Ok((number, "")) if number >> part.length == 0 => {
            let bits = (0..part.length).rev().map(|bit| if number >> bit & 1 == 1 { b'1' } else { b'0' });
            Ok((bits.collect(), number))
        }
        Ok((_, rest)) if !rest.is_empty() => Trouble::wrong(format!("`{value}` is not a number")),
        Ok(_) | Err(scan::TOO_BIG | scan::NEGATIVE) => {
            let largest = (1_u64 << part.length) - 1;
            Trouble::wrong(format!("{value} is out of range; accepted: 0 to {largest}, x, k, s"))
        }
        Err(_) => match value.as_bytes().first() {
            Some(letter @ (b'x' | b'k' | b's')) => Ok((vec![*letter; part.length], 0)),
            _ => Trouble::skipped(format!("`{value}` is not accepted; accepted: 0, 1, x, k, s")),
        },
    }
}

impl Part {
    /// Writes these bits into a register. Family and model are spread over two places of it.
    fn write(&self, register: &mut [u8], bits: &[u8], number: u64) {
        let end = register.len() - self.bit;
        match self.name {
            "family" if number < 16 => {
                register[end - 4..end].copy_from_slice(&bits[4..]);
                register[4..12].fill(b'0');
            }
            "family" => {
                register[end - 4..end].fill(b'1');
                // What exceeds 15; its highest bit is that of the whole number, as in libxl.
                register[4] = bits[0];
                for (place, bit) in (5..12).zip((0..7).rev()) {
                    register[place] = if (number - 15) >> bit & 1 == 1 { b'1' } else { b'0' };
                }
            }
            "model" => {
                register[12..16].copy_from_slice(&bits[..4]);
                register[end - 4..end].copy_from_slice(&bits[4..]);
            }
            _ => register[end - self.length..end].copy_from_slice(bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::GuestConfig;
    use super::*;

    const ALL: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

    /// The policy, and the words of the warnings.
    fn read_for(host: &XenHost, value: &str) -> Result<(Value, String), String> {
        let source = format!("name='g'; kernel='/k'; cpuid={value}\n");
        let guest = GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), host).map_err(|e| e.to_string())?;
        let warnings: Vec<_> = guest.warnings.iter().map(ToString::to_string).collect();
        Ok((guest.json["b_info"]["cpuid"].clone(), warnings.join("\n")))
    }

    fn read(value: &str) -> Result<(Value, String), String> {
        read_for(&XenHost::default(), value)
    }

    /// A register of which only some bits are asked for.
    fn bits(changes: &[(usize, &str)]) -> String {
        let mut all = ALL.to_owned();
        for (lowest, bits) in changes {
            let end = 32 - lowest;
            all.replace_range(end - bits.len()..end, bits);
        }
        all
    }

    #[test]
    fn names() {
        let leaf = |leaf: Value| json!({ "cpuid": [leaf], "msr": [] });
        for (value, expected) in [
            ("host,aes=0", leaf(json!({ "leaf": 1, "ecx": bits(&[(25, "0")]) }))),
            (
                "host,aes=k,sse4.1=s,tm=1",
                leaf(json!({ "leaf": 1, "ecx": bits(&[(25, "k"), (19, "s")]), "edx": bits(&[(29, "1")]) })),
            ),
            (",host,,arat=x", leaf(json!({ "leaf": 6, "eax": ALL }))),
            ("host,ibpb=0", leaf(json!({ "leaf": 0x8000_0008_u32, "ebx": bits(&[(12, "0")]) }))),
            ("host,fsgsbase=1", leaf(json!({ "leaf": 7, "subleaf": 0, "ebx": bits(&[(0, "1")]) }))),
            ("host,procpkg=0x2a", leaf(json!({ "leaf": 4, "subleaf": 0, "eax": bits(&[(26, "101010")]) }))),
            ("host,maxleaf=4294967295", leaf(json!({ "leaf": 0, "eax": "1".repeat(32) }))),
            ("host,family=6", leaf(json!({ "leaf": 1, "eax": bits(&[(8, "0110"), (20, "00000000")]) }))),
            ("host,family=21", leaf(json!({ "leaf": 1, "eax": bits(&[(8, "1111"), (20, "00000110")]) }))),
            ("host,family=k", leaf(json!({ "leaf": 1, "eax": bits(&[(8, "kkkk"), (20, "00000000")]) }))),
            (
                "host,model=0x9e,stepping=010",
                leaf(json!({ "leaf": 1, "eax": bits(&[(16, "1001"), (4, "1110"), (0, "1000")]) })),
            ),
            (
                "host,gds-no=1,rdcl-no=s",
                json!({ "cpuid": [], "msr": [{ "index": 266, "policy": format!("{}1{}k", "x".repeat(37), "x".repeat(25)) }] }),
            ),
        ] {
            assert_eq!(read(&format!("'{value}'")), Ok((expected, String::new())), "{value}");
        }
        for value in ["''", "','", "'host'", "[]"] {
            assert_eq!(read(value), Ok((Value::Null, String::new())), "{value}");
        }
    }

    #[test]
    fn leaves() {
        let (zero, one) = ("0".repeat(32), "1".repeat(32));
        for (value, expected) in [
            (format!("['1:ecx={zero}']"), json!([{ "leaf": 1, "ecx": zero }])),
            (
                format!("['0x7,0:ebx={zero},\\n edx={one}', '7:eax={ALL}', '7,0:ebx={ALL},']"),
                json!([{ "leaf": 7, "subleaf": 0, "ebx": ALL, "edx": one }, { "leaf": 7, "eax": ALL }]),
            ),
            ("['010:']".to_owned(), json!([{ "leaf": 8 }])),
        ] {
            let expected = json!({ "cpuid": expected, "msr": [] });
            assert_eq!(read(&value), Ok((expected, String::new())), "{value}");
        }
    }

    #[test]
    fn what_xl_passes_over() {
        for (value, words) in [
            ("'aes=0'", "`aes=0`: the first word must be `host`; all of it is ignored"),
            ("'host, aes=0'", "in ` aes=0`: ` aes` is not the name of a feature; it is ignored"),
            ("'host,aes'", "there is no `=`"),
            ("'host,AES=1'", "`AES` is not the name"),
            ("'host,gds-no=2'", "`2` is not accepted; accepted: 0, 1, x, k, s"),
            ("'host,movrs=1'", "`movrs` needs Xen 4.23 or newer"),
            ("['ecx=0']", "in `ecx=0`: the number of a leaf is expected"),
            ("['1,:ecx=0']", "the number of a subleaf is expected"),
            ("['1']", "a `:` is missing"),
            ("['1 :']", "a `:` is missing"),
        ] {
            let (_, warnings) = read(value).expect(value);
            assert!(warnings.starts_with("t.cfg:1: cpuid: ") && warnings.contains(words), "{value}: {warnings}");
        }
        // An entry without anything in it stays, as in libxl.
        for value in ["'host,aes=y'", "['1:rax=0']", "['1:eax=0']", "['1:eax']", "['1: eax=0']"] {
            let (policy, warnings) = read(value).expect(value);
            assert_eq!(policy["cpuid"], json!([{ "leaf": 1 }]), "{value}");
            assert!(warnings.ends_with("; it is ignored"), "{value}: {warnings}");
        }
    }

    #[test]
    fn mistakes() {
        for (value, words) in [
            ("'host,aes=2'", "in `aes=2`: 2 is out of range; accepted: 0 to 1, x, k, s"),
            ("'host,model=256'", "0 to 255"),
            ("'host,maxleaf=4294967296'", "0 to 4294967295"),
            ("'host,maxleaf=99999999999999999999'", "out of range"),
            ("'host,aes=1x'", "`1x` is not a number"),
            ("['4294967295:']", "the leaf 4294967295 is too big"),
            ("['1,99999999999999999999:']", "the subleaf: the number is too big"),
            ("['1,-1:']", "the subleaf: a negative number is not accepted"),
            ("'host,clflush=-1'", "0 to 255"),
            ("['1:eax=2xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx']", "`2` is not accepted in"),
            ("['1:', ['2:']]", "item 2 of the list is a list"),
        ] {
            let error = read(value).expect_err(value);
            assert!(error.starts_with("t.cfg:1: cpuid: ") && error.contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn releases() {
        let host = |release, update| XenHost { release, update, ..XenHost::default() };
        let value = "'host,aes=0,rdcl-no=1'";
        for (release, update, with_registers) in [
            (17, None, true),
            (17, Some(2), true),
            (17, Some(1), false),
            (14, Some(5), false),
            (16, Some(0), false),
            (18, Some(0), true),
        ] {
            let (policy, warnings) = read_for(&host(release, update), value).unwrap();
            assert_eq!(policy["msr"].is_array(), with_registers, "4.{release}.{update:?}");
            assert_eq!(policy.is_array(), !with_registers);
            assert_eq!(warnings.contains("needs a later update of Xen 4."), !with_registers, "{warnings}");
        }
        let (policy, warnings) = read_for(&host(17, None), "'host,avx-vnni-int8=0'").unwrap();
        assert!(policy.is_null() && warnings.contains("needs Xen 4.18"), "{policy} {warnings}");
    }

    proptest! {
        #[test]
        fn never_panics(
            value in r"'(host,)?([a-z0-9+._-]{0,9}=[0-9xks]{0,10},?){0,3}'|\['[0-9x]{0,11}(,[0-9]{0,9})?:?(e?[abcdx]{2}=[01xksy]{31,32},? ?){0,3}'\]",
            release in 14_u32..24,
            update in proptest::option::of(0_u32..9),
        ) {
            let _ = read_for(&XenHost { release, update, ..XenHost::default() }, &value);
        }

        #[test]
        fn any_name_takes_any_number(place in 0_usize..500, number in any::<u64>()) {
            if let Some((_, part)) = cpuid_names::tests::nth(place) {
                let number = number & ((1 << part.length) - 1);
                let read = read(&format!("'host,{}={number}'", part.name));
                prop_assert!(read.is_ok(), "{read:?}");
            }
        }
    }
}
