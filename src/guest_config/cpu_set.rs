//! Sets of physical CPUs, as `cpus`, `cpus_soft` and the masks of xl.conf write them.
//!
//! ```text
//! set   = [item {"," item}]
//! item  = ["^"] ["node:" | "nodes:"] range       CPUs, or all CPUs of NUMA nodes; `^` takes them out again
//!       | ["node:" | "nodes:"] "all"             every CPU
//! range = number ["-" number]
//! ```

use std::collections::BTreeSet;

use super::scan;
use super::xen_host::Cpus;

/// The CPUs of a set.
pub(super) type CpuSet = BTreeSet<u32>;

/// More CPUs than any Xen can have.
const CPU_LIMIT: u32 = 1 << 14;

/// How many CPUs a set has room for: libxl's bitmaps end with a whole byte.
pub(super) fn room(cpus: Option<&Cpus>) -> u32 {
    cpus.map_or(CPU_LIMIT, |cpus| cpus.count.min(CPU_LIMIT).next_multiple_of(8))
}

/// Every CPU of the host.
pub(super) fn all(cpus: &Cpus) -> CpuSet {
    (0..room(Some(cpus))).collect()
}

/// Adds to a set what a text says, item by item up to one that is wrong. Without the host's CPUs the text can't speak of
/// `all` CPUs nor of nodes.
///
/// What the host doesn't have is passed over, as xl does, with a warning.
pub(super) fn add(
    set: &mut CpuSet,
    text: &str,
    cpus: Option<&Cpus>,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    for item in text.split(',').filter(|item| !item.is_empty()) {
        add_item(set, item, cpus, warnings).map_err(|why| format!("in `{item}`: {why}"))?;
    }
    Ok(())
}

fn add_item(set: &mut CpuSet, item: &str, cpus: Option<&Cpus>, warnings: &mut Vec<String>) -> Result<(), String> {
    let (without, rest) = item.strip_prefix('^').map_or((false, item), |rest| (true, rest));
    let nodes = rest.strip_prefix("node:").or_else(|| rest.strip_prefix("nodes:"));
    let rest = nodes.unwrap_or(rest);
    if rest == "all" && without {
        return Err("`^` can't be put before `all`".to_owned());
    }
    if rest == "all" {
        set.extend(all(known(cpus)?));
        return Ok(());
    }
    let (first, last) = range(rest)?;
    let mut change = |cpu: u32| {
        if without {
            set.remove(&cpu);
        } else {
            set.insert(cpu);
        }
    };
    if nodes.is_some() {
        let nodes = &known(cpus)?.nodes;
        for (_, node) in (0..).zip(nodes).filter(|(number, _)| (first..=last).contains(number)) {
            node.iter().for_each(|&cpu| change(cpu));
        }
        if !without && last >= nodes.len() as u64 {
            warnings.push(format!("in `{item}`: the host has no NUMA node {last}"));
        }
        return Ok(());
    }
    let room = room(cpus);
    (first..=last).take_while(|&cpu| cpu < u64::from(room)).for_each(|cpu| change(cpu as u32));
    match cpus {
        Some(cpus) if !without && last >= u64::from(cpus.count) => {
            warnings.push(format!("in `{item}`: the host has no CPU {last}"));
        }
        None if last >= u64::from(room) => return Err(format!("there is no CPU {last} on any host")),
        _ => {}
    }
    Ok(())
}

fn known(cpus: Option<&Cpus>) -> Result<&Cpus, String> {
    cpus.ok_or_else(|| "the host's CPUs are not known; give their numbers".to_owned())
}

/// A number, or two with `-` between them.
pub(super) fn range(text: &str) -> Result<(u64, u64), String> {
    const ACCEPTED: &str = "accepted: a number, or two as in 2-5";
    let wrong = |why| format!("{why}; {ACCEPTED}");
    let (first, rest) = scan::number(text, 10).map_err(wrong)?;
    let last = match rest.strip_prefix('-') {
        Some(last) => scan::whole_number(last, 10).map_err(wrong)?,
        None if rest.is_empty() => first,
        None => return Err(wrong(scan::NOT_A_NUMBER)),
    };
    if last < first {
        return Err(wrong("the second number is lower than the first"));
    }
    // xl takes these numbers for an `int` and drops their upper bits.
    if last > i32::MAX as u64 { Err(wrong(scan::TOO_BIG)) } else { Ok((first, last)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpus() -> Cpus {
        Cpus { count: 12, online: 12, nodes: vec![(0..6).collect(), (6..12).collect()], from_xen: true }
    }

    fn parse(text: &str, cpus: Option<&Cpus>) -> Result<(Vec<u32>, usize), String> {
        let (mut set, mut warnings) = (CpuSet::new(), Vec::new());
        add(&mut set, text, cpus, &mut warnings)?;
        Ok((set.into_iter().collect(), warnings.len()))
    }

    #[test]
    fn sets() {
        for (text, expected, warnings) in [
            ("", vec![], 0),
            ("0", vec![0], 0),
            ("0-2,5", vec![0, 1, 2, 5], 0),
            (",,1,,", vec![1], 0),
            (" 1,+2, 3- 4", vec![1, 2, 3, 4], 0),
            ("0-5,^2-3", vec![0, 1, 4, 5], 0),
            ("^1,1", vec![1], 0),
            ("all,^0,^4-99", vec![1, 2, 3], 0),
            ("nodes:all", (0..16).collect(), 0),
            ("node:1,^11", (6..11).collect(), 0),
            ("nodes:0-1,^node:0", (6..12).collect(), 0),
            ("10-11", vec![10, 11], 0),
            ("10-12", vec![10, 11, 12], 1),
            ("15-2147483647", vec![15], 1),
            ("node:1-9,^6-10", vec![11], 1),
            ("node:2147483647", vec![], 1),
        ] {
            assert_eq!(parse(text, Some(&cpus())), Ok((expected, warnings)), "{text:?}");
        }
        assert_eq!(parse("3,^4", None), Ok((vec![3], 0)));
    }

    #[test]
    fn mistakes() {
        for (text, words) in [
            ("x", "in `x`: not a number; accepted: a number, or two"),
            ("1, 2 ", "in ` 2 `: not a number"),
            ("1-", "not a number"),
            ("-1", "negative"),
            ("1-2-3", "not a number"),
            ("0x3", "not a number"),
            ("node:", "not a number"),
            ("node:^1", "not a number"),
            ("^^1", "not a number"),
            ("ALL", "not a number"),
            ("5-3", "lower than the first"),
            ("^all", "can't be put before `all`"),
            ("^nodes:all", "can't be put before `all`"),
            ("4294967296", "too big"),
            ("18446744073709551616", "too big"),
        ] {
            let error = parse(text, Some(&cpus())).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        for text in ["all", "node:0"] {
            assert!(parse(text, None).is_err_and(|error| error.contains("CPUs are not known")), "{text}");
        }
        assert!(parse("0-99999", None).is_err_and(|error| error.contains("no CPU 99999")));
    }

    #[test]
    fn what_comes_before_a_mistake_counts() {
        let mut set = CpuSet::new();
        assert!(add(&mut set, "1-2,x,3", Some(&cpus()), &mut Vec::new()).is_err());
        assert_eq!(set, CpuSet::from([1, 2]));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[0-9,^al:nodes +-]{0,20}|(\\^?(node:)?[0-9]{1,20}(-[0-9]{1,20})?,?){0,4}", with in any::<bool>()) {
            let cpus = cpus();
            let _ = parse(&text, with.then_some(&cpus));
        }
    }
}
