//! `dom0_mem=` on the hypervisor's command line: does it fix dom0's memory? xl asks a regular expression, and so its
//! answer is the expression's and not the hypervisor's; this is the same expression, written out.

/// Whether xl of Xen 4.`release` finds dom0's memory fixed by this command line.
pub(super) fn is_fixed(command_line: &str, release: u32) -> bool {
    // Before 4.16 xl knew neither negative amounts, nor `T`, nor percentages.
    let read = if release >= 16 { amount } else { amount_before_4_16 };
    let mut values = command_line.split(' ').filter_map(|word| word.strip_prefix("dom0_mem="));
    values.any(|value| is_list(value, read))
}

/// Whether the whole text is amounts, at least one. The comma between two may be missing, and one at the end is fine.
fn is_list(mut text: &str, read: fn(&str) -> Option<&str>) -> bool {
    while let Some(rest) = read(limit(text)) {
        text = rest.strip_prefix(',').unwrap_or(rest);
        if text.is_empty() {
            return true;
        }
    }
    false
}

/// What follows `min:` or `max:`, if it is there.
fn limit(text: &str) -> &str {
    text.strip_prefix("min:").or_else(|| text.strip_prefix("max:")).unwrap_or(text)
}

/// What follows one of these units, if it is there. The `m` of `1max:2G` is none.
fn unit<'a>(text: &'a str, units: &[char]) -> &'a str {
    let is_next_limit = limit(text).len() < text.len();
    text.strip_prefix(units).filter(|_| !is_next_limit).unwrap_or(text)
}

/// `SIZE`: what follows it.
fn amount_before_4_16(text: &str) -> Option<&str> {
    let (_, rest) = digits(text)?;
    Some(unit(rest, &['b', 'B', 'k', 'K', 'm', 'M', 'g', 'G']))
}

/// `SIZE`, `-SIZE`, `NN%`, `SIZE+NN%` or `-SIZE+NN%`: what follows it.
fn amount(text: &str) -> Option<&str> {
    let (size, negative) = text.strip_prefix('-').map_or((text, false), |size| (size, true));
    let (count, rest) = digits(size)?;
    if let Some(rest) = rest.strip_prefix('%') {
        // At most two digits belong to the percentage and no sign; others are an amount right before it.
        return (count > 1 || !negative).then_some(rest);
    }
    let rest = unit(rest, &['b', 'B', 'k', 'K', 'm', 'M', 'g', 'G', 't', 'T']);
    match rest.strip_prefix('+') {
        None => Some(rest),
        Some(share) => digits(share).filter(|(count, _)| *count <= 2)?.1.strip_prefix('%'),
    }
}

/// How many digits the text begins with, at least one, and what follows them.
fn digits(text: &str) -> Option<(usize, &str)> {
    let rest = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let count = text.len() - rest.len();
    (count > 0).then_some((count, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_release_takes_for_fixed() {
        // The value, whether it is fixed for 4.14 and 4.15, and for later ones.
        for (value, before, since) in [
            ("4096M", true, true),
            ("4G", true, true),
            ("4g,", true, true),
            ("1048576", true, true),
            ("100b", true, true),
            ("1024M,max:1024M", true, true),
            ("min:1G,max:2G,1500M", true, true),
            ("max:2G", true, true),
            ("1Gmax:2G", true, true),
            ("1max:2G", true, true),
            ("1mmin:2m", true, true),
            ("1min", false, false),
            ("1G2G", true, true),
            ("1T", false, true),
            ("1t,max:2T", false, true),
            ("-1G", false, true),
            ("-1G,max:-512M", false, true),
            ("50%", false, true),
            ("5%,max:8G", false, true),
            ("1G+10%", false, true),
            ("min:1G+5%,max:-1G+50%", false, true),
            // Not what anybody means, but what the expression says: an amount and a percentage without a comma.
            ("100%", false, true),
            ("-55%", false, true),
            ("-5%", false, false),
            ("1G+100%", false, false),
            ("1G+%", false, false),
            ("1G+1", false, false),
            ("+10%", false, false),
            ("1G%", false, false),
            ("", false, false),
            (",", false, false),
            ("1G,,2G", false, false),
            ("1G,foo", false, false),
            ("1.5G", false, false),
            ("0x1000", false, false),
            ("min:", false, false),
            ("mid:1G", false, false),
            ("1P", false, false),
            ("1G,max:2G;", false, false),
            ("--1G", false, false),
        ] {
            let command_line = format!("placeholder dom0_mem={value} sched=credit");
            for (release, expected) in [(14, before), (15, before), (16, since), (17, since), (20, since)] {
                assert_eq!(is_fixed(&command_line, release), expected, "{value} on 4.{release}");
            }
        }
    }

    #[test]
    fn only_a_word_of_its_own_counts_and_one_is_enough() {
        for (command_line, expected) in [
            ("dom0_mem=1G", true),
            ("placeholder dom0_mem=1G", true),
            ("dom0_mem=1G,foo dom0_mem=1G", true),
            ("dom0_mem=1G dom0_mem=oops", true),
            ("  dom0_mem=1G  ", true),
            ("", false),
            ("placeholder console=com1", false),
            ("xdom0_mem=1G", false),
            ("dom0_mem =1G", false),
            ("dom0_mem= 1G", false),
            ("no-dom0_mem=1G", false),
            ("DOM0_MEM=1G", false),
            ("a\tdom0_mem=1G", false),
            ("dom0_mem=1G\tb", false),
            ("dom0_mem_=1G", false),
        ] {
            assert_eq!(is_fixed(command_line, 17), expected, "{command_line:?}");
        }
    }
}
