//! The parts of a CPUID policy that have names, as xl's `cpuid = "host,NAME=VALUE"` uses them.

/// Where a name's bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// In a register that CPUID fills in for a leaf, and a subleaf if the leaf has some.
    Cpuid(u32, Option<u32>, Register),
    /// In a model-specific register.
    Msr(u32),
}

/// A register that CPUID fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A named part of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its name.
    pub(super) name: &'static str,
    /// Its lowest bit.
    pub(super) bit: usize,
    /// How many bits it has.
    pub(super) length: usize,
    /// The minor number of the first Xen 4 release that knows the name in its last update; 14 stands for "4.14 or
    /// earlier".
    pub(super) since: u8,
}

/// The named part of this name.
pub(super) fn find(name: &str) -> Option<(Home, Part)> {
    let parts = NAMES.iter().flat_map(|(home, parts)| parts.iter().map(|part| (*home, *part)));
    parts.into_iter().find(|(_, part)| part.name == name)
}

const fn flag(bit: usize, name: &'static str, since: u8) -> Part {
    number(bit, 1, name, since)
}

const fn number(bit: usize, length: usize, name: &'static str, since: u8) -> Part {
    Part { name, bit, length, since }
}

use Home::{Cpuid, Msr};
use Register::{Eax, Ebx, Ecx, Edx};

const NAMES: &[(Home, &[Part])] = &[
    (Cpuid(0, None, Eax), &[number(0, 32, "maxleaf", 14)]),
    (Cpuid(1, None, Eax), &[number(0, 4, "stepping", 14), number(4, 8, "model", 14), number(8, 8, "family", 14)]),
    (
        Cpuid(1, None, Ebx),
        &[
            number(0, 8, "brandid", 14),
            number(8, 8, "clflush", 14),
            number(16, 8, "proccount", 14),
            number(24, 8, "localapicid", 14),
        ],
    ),
    (
        Cpuid(1, None, Ecx),
        &[
            flag(0, "sse3", 14),
            flag(1, "pclmulqdq", 14),
            flag(2, "dtes64", 14),
            flag(3, "monitor", 14),
            flag(4, "dscpl", 14),
            flag(5, "vmx", 14),
            flag(6, "smx", 14),
            flag(7, "eist", 14),
            flag(7, "est", 14),
            flag(8, "tm2", 14),
            flag(9, "ssse3", 14),
            flag(10, "cntxid", 14),
            flag(11, "sdbg", 20),
            flag(12, "fma", 14),
            flag(13, "cmpxchg16", 14),
            flag(13, "cx16", 14),
            flag(14, "xtpr", 14),
            flag(15, "pdcm", 14),
            flag(17, "pcid", 14),
            flag(18, "dca", 14),
            flag(19, "sse4-1", 14),
            flag(19, "sse4.1", 14),
            flag(19, "sse4_1", 14),
            flag(20, "sse4-2", 14),
            flag(20, "sse4.2", 14),
            flag(20, "sse4_2", 14),
            flag(21, "x2apic", 14),
            flag(22, "movbe", 14),
            flag(23, "popcnt", 14),
            flag(24, "tsc-deadline", 14),
            flag(25, "aes", 14),
            flag(25, "aesni", 14),
            flag(26, "xsave", 14),
            flag(27, "osxsave", 14),
            flag(28, "avx", 14),
            flag(29, "f16c", 14),
            flag(30, "rdrand", 14),
            flag(31, "hypervisor", 14),
        ],
    ),
    (
        Cpuid(1, None, Edx),
        &[
            flag(0, "fpu", 14),
            flag(1, "vme", 14),
            flag(2, "de", 14),
            flag(3, "pse", 14),
            flag(4, "tsc", 14),
            flag(5, "msr", 14),
            flag(6, "pae", 14),
            flag(7, "mce", 14),
            flag(8, "cmpxchg8", 14),
            flag(8, "cx8", 14),
            flag(9, "apic", 14),
            flag(11, "sep", 14),
            flag(11, "sysenter", 14),
            flag(12, "mtrr", 14),
            flag(13, "pge", 14),
            flag(14, "mca", 14),
            flag(15, "cmov", 14),
            flag(16, "pat", 14),
            flag(17, "pse36", 14),
            flag(18, "psn", 14),
            flag(19, "clfsh", 14),
            flag(21, "ds", 14),
            flag(22, "acpi", 14),
            flag(23, "mmx", 14),
            flag(24, "fxsr", 14),
            flag(25, "sse", 14),
            flag(26, "sse2", 14),
            flag(27, "ss", 14),
            flag(28, "htt", 14),
            flag(29, "tm", 14),
            flag(29, "tm1", 14),
            flag(30, "ia64", 14),
            flag(31, "pbe", 14),
        ],
    ),
    (Cpuid(4, Some(0), Eax), &[number(26, 6, "procpkg", 14)]),
    (Cpuid(6, None, Eax), &[flag(2, "arat", 14)]),
    (
        Cpuid(7, Some(0), Ebx),
        &[
            flag(0, "fsgsbase", 14),
            flag(1, "tsc-adjust", 14),
            flag(1, "tsc_adjust", 14),
            flag(2, "sgx", 14),
            flag(3, "bmi1", 14),
            flag(4, "hle", 14),
            flag(5, "avx2", 14),
            flag(6, "fdp-excp-only", 14),
            flag(7, "smep", 14),
            flag(8, "bmi2", 14),
            flag(9, "erms", 14),
            flag(10, "invpcid", 14),
            flag(11, "rtm", 14),
            flag(12, "cmt", 14),
            flag(12, "pqm", 14),
            flag(13, "no-fpu-sel", 14),
            flag(14, "mpx", 14),
            flag(15, "pqe", 14),
            flag(16, "avx512f", 14),
            flag(17, "avx512dq", 14),
            flag(18, "rdseed", 14),
            flag(19, "adx", 14),
            flag(20, "smap", 14),
            flag(21, "avx512-ifma", 14),
            flag(23, "clflushopt", 14),
            flag(24, "clwb", 14),
            flag(25, "proc-trace", 15),
            flag(26, "avx512pf", 14),
            flag(27, "avx512er", 14),
            flag(28, "avx512cd", 14),
            flag(29, "sha", 14),
            flag(30, "avx512bw", 14),
            flag(31, "avx512vl", 14),
        ],
    ),
    (
        Cpuid(7, Some(0), Ecx),
        &[
            flag(0, "prefetchwt1", 14),
            flag(1, "avx512-vbmi", 14),
            flag(2, "umip", 14),
            flag(3, "pku", 14),
            flag(4, "ospke", 14),
            flag(5, "waitpkg", 20),
            flag(6, "avx512-vbmi2", 14),
            flag(7, "cet-ss", 14),
            flag(8, "gfni", 14),
            flag(9, "vaes", 14),
            flag(10, "vpclmulqdq", 14),
            flag(11, "avx512-vnni", 14),
            flag(12, "avx512-bitalg", 14),
            flag(13, "tme", 20),
            flag(14, "avx512-vpopcntdq", 14),
            flag(16, "la57", 20),
            flag(22, "rdpid", 14),
            flag(24, "bld", 18),
            flag(25, "cldemote", 14),
            flag(27, "movdiri", 14),
            flag(28, "movdir64b", 14),
            flag(29, "enqcmd", 14),
            flag(30, "sgx-lc", 20),
            flag(31, "pks", 18),
        ],
    ),
    (
        Cpuid(7, Some(0), Edx),
        &[
            flag(1, "sgx-keys", 20),
            flag(2, "avx512-4vnniw", 14),
            flag(3, "avx512-4fmaps", 14),
            flag(4, "fsrm", 16),
            flag(5, "uintr", 19),
            flag(8, "avx512-vp2intersect", 15),
            flag(9, "srbds-ctrl", 14),
            flag(10, "md-clear", 14),
            flag(11, "rtm-always-abort", 14),
            flag(13, "tsx-force-abort", 14),
            flag(14, "serialize", 14),
            flag(15, "hybrid", 15),
            flag(16, "tsxldtrk", 14),
            flag(18, "pconfig", 20),
            flag(19, "arch-lbr", 19),
            flag(20, "cet-ibt", 14),
            flag(22, "amx-bf16", 20),
            flag(23, "avx512-fp16", 17),
            flag(24, "amx-tile", 19),
            flag(25, "amx-int8", 20),
            flag(26, "ibrsb", 14),
            flag(27, "stibp", 14),
            flag(28, "l1d-flush", 14),
            flag(29, "arch-caps", 14),
            flag(30, "core-caps", 14),
            flag(31, "ssbd", 14),
        ],
    ),
    (
        Cpuid(7, Some(1), Eax),
        &[
            flag(0, "sha512", 19),
            flag(1, "sm3", 19),
            flag(2, "sm4", 19),
            flag(4, "avx-vnni", 15),
            flag(5, "avx512-bf16", 14),
            flag(6, "lass", 21),
            flag(7, "cmpccxadd", 20),
            flag(8, "arch-perf-mon", 21),
            flag(10, "fzrm", 16),
            flag(11, "fsrs", 16),
            flag(12, "fsrcs", 16),
            flag(17, "fred", 19),
            flag(18, "lkgs", 21),
            flag(19, "wrmsrns", 18),
            flag(20, "nmi-src", 21),
            flag(21, "amx-fp16", 20),
            flag(23, "avx-ifma", 18),
            flag(26, "lam", 21),
            flag(27, "msrlist", 21),
            flag(30, "no-invd", 21),
            flag(31, "movrs", 23),
        ],
    ),
    (Cpuid(7, Some(1), Ebx), &[flag(0, "intel-ppin", 17)]),
    (
        Cpuid(7, Some(1), Edx),
        &[
            flag(4, "avx-vnni-int8", 18),
            flag(5, "avx-ne-convert", 18),
            flag(8, "amx-complex", 20),
            flag(10, "avx-vnni-int16", 19),
            flag(14, "prefetchi", 19),
            flag(17, "uiret-uif", 21),
            flag(18, "cet-sss", 16),
            flag(24, "slsm", 21),
        ],
    ),
    (
        Cpuid(7, Some(2), Edx),
        &[
            flag(0, "intel-psfd", 14),
            flag(1, "ipred-ctrl", 15),
            flag(2, "rrsba-ctrl", 15),
            flag(3, "ddp-ctrl", 18),
            flag(4, "bhi-ctrl", 15),
            flag(5, "mcdt-no", 17),
            flag(6, "uc-lock-dis", 21),
        ],
    ),
    (
        Cpuid(0xd, Some(1), Eax),
        &[
            flag(0, "xsaveopt", 14),
            flag(1, "xsavec", 14),
            flag(2, "xgetbv1", 14),
            flag(3, "xsaves", 14),
            flag(4, "xfd", 20),
        ],
    ),
    (Cpuid(0x4000_0000, None, Eax), &[number(0, 8, "maxhvleaf", 14)]),
    (
        Cpuid(0x8000_0001, None, Ecx),
        &[
            flag(0, "lahf-lm", 14),
            flag(0, "lahfsahf", 14),
            flag(1, "cmp-legacy", 14),
            flag(1, "cmplegacy", 14),
            flag(2, "svm", 14),
            flag(3, "extapic", 14),
            flag(4, "altmovcr8", 14),
            flag(4, "cr8-legacy", 14),
            flag(5, "abm", 14),
            flag(6, "sse4a", 14),
            flag(7, "misalignsse", 14),
            flag(8, "3dnowprefetch", 14),
            flag(9, "osvw", 14),
            flag(10, "ibs", 14),
            flag(11, "xop", 14),
            flag(12, "skinit", 14),
            flag(13, "wdt", 14),
            flag(15, "lwp", 14),
            flag(16, "fma4", 14),
            flag(19, "nodeid", 14),
            flag(19, "nodeid-msr", 14),
            flag(21, "tbm", 14),
            flag(22, "topoext", 14),
            flag(23, "perfctr_core", 14),
            flag(24, "perfctr_nb", 14),
            flag(26, "dbext", 14),
            flag(29, "monitorx", 14),
            flag(30, "addr-msk-ext", 19),
        ],
    ),
    (
        Cpuid(0x8000_0001, None, Edx),
        &[
            flag(11, "syscall", 14),
            flag(20, "nx", 14),
            flag(22, "mmxext", 14),
            flag(25, "ffxsr", 14),
            flag(26, "page1gb", 14),
            flag(27, "rdtscp", 14),
            flag(29, "lm", 14),
            flag(30, "3dnowext", 14),
            flag(31, "3dnow", 14),
        ],
    ),
    (
        Cpuid(0x8000_0007, None, Edx),
        &[
            flag(7, "hw-pstate", 17),
            flag(8, "invtsc", 14),
            flag(8, "itsc", 14),
            flag(9, "cpb", 17),
            flag(10, "efro", 14),
        ],
    ),
    (
        Cpuid(0x8000_0008, None, Ebx),
        &[
            flag(0, "clzero", 14),
            flag(2, "rstr-fp-err-ptrs", 14),
            flag(9, "wbnoinvd", 14),
            flag(12, "ibpb", 14),
            flag(14, "ibrs", 14),
            flag(15, "amd-stibp", 14),
            flag(16, "ibrs-always", 14),
            flag(17, "stibp-always", 14),
            flag(18, "ibrs-fast", 14),
            flag(19, "ibrs-same-mode", 14),
            flag(20, "no-lmsl", 16),
            flag(23, "amd-ppin", 14),
            flag(23, "ppin", 14),
            flag(24, "amd-ssbd", 14),
            flag(25, "virt-ssbd", 14),
            flag(26, "ssb-no", 14),
            flag(27, "cppc", 21),
            flag(28, "psfd", 14),
            flag(29, "btc-no", 14),
            flag(30, "ibpb-ret", 14),
        ],
    ),
    (Cpuid(0x8000_0008, None, Ecx), &[number(0, 8, "nc", 14), number(12, 4, "apicidsize", 14)]),
    (
        Cpuid(0x8000_000a, None, Edx),
        &[
            flag(0, "svm_npt", 14),
            flag(1, "svm_lbrv", 14),
            flag(3, "svm_nrips", 14),
            flag(4, "svm_tscrate", 14),
            flag(5, "svm_vmcbclean", 14),
            flag(7, "svm_decode", 14),
            flag(10, "svm_pausefilt", 14),
        ],
    ),
    (
        Cpuid(0x8000_0021, None, Eax),
        &[
            flag(0, "no-nest-bp", 19),
            flag(1, "fs-gs-ns", 19),
            flag(2, "lfence+", 14),
            flag(2, "lfence-dispatch", 14),
            flag(5, "verw-clear", 17),
            flag(6, "nscb", 16),
            flag(8, "auto-ibrs", 17),
            flag(10, "amd-fsrs", 19),
            flag(11, "amd-fsrc", 19),
            flag(17, "cpuid-user-dis", 18),
            flag(18, "epsf", 19),
            flag(19, "fsrsc", 19),
            flag(20, "amd-prefetchi", 19),
            flag(23, "avx512-bmm", 22),
            flag(27, "sbpb", 14),
            flag(28, "ibpb-brtype", 14),
            flag(29, "srso-no", 14),
            flag(30, "srso-us-no", 17),
            flag(31, "srso-msr-fix", 17),
        ],
    ),
    (Cpuid(0x8000_0021, None, Ecx), &[flag(1, "tsa-sq-no", 17), flag(2, "tsa-l1-no", 17)]),
    (
        Msr(0x10a),
        &[
            flag(0, "rdcl-no", 14),
            flag(1, "eibrs", 14),
            flag(2, "rsba", 14),
            flag(3, "skip-l1dfl", 14),
            flag(4, "intel-ssb-no", 14),
            flag(5, "mds-no", 14),
            flag(6, "if-pschange-mc-no", 14),
            flag(7, "tsx-ctrl", 14),
            flag(8, "taa-no", 14),
            flag(9, "mcu-ctrl", 14),
            flag(10, "misc-pkg-ctrl", 14),
            flag(11, "energy-filtering", 14),
            flag(12, "doitm", 14),
            flag(13, "sbdr-ssdp-no", 14),
            flag(14, "fbsdp-no", 14),
            flag(15, "psdp-no", 14),
            flag(16, "mcu-ext", 21),
            flag(17, "fb-clear", 14),
            flag(18, "fb-clear-ctrl", 14),
            flag(19, "rrsba", 14),
            flag(20, "bhi-no", 14),
            flag(21, "xapic-status", 14),
            flag(23, "ovrclk-status", 14),
            flag(24, "pbrsb-no", 14),
            flag(25, "gds-ctrl", 14),
            flag(26, "gds-no", 14),
            flag(27, "rfds-no", 15),
            flag(28, "rfds-clear", 15),
            flag(29, "ign-umonitor", 21),
            flag(30, "mon-umon-mitg", 21),
            flag(32, "pb-opt-ctrl", 18),
            flag(62, "its-no", 17),
        ],
    ),
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One of all names.
    pub(in super::super) fn nth(place: usize) -> Option<(Home, Part)> {
        NAMES.iter().flat_map(|(home, parts)| parts.iter().map(|part| (*home, *part))).nth(place)
    }

    #[test]
    fn names_are_unique_and_fit() {
        let mut names: Vec<_> = NAMES.iter().flat_map(|(_, parts)| parts.iter().map(|part| part.name)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for (home, parts) in NAMES {
            let bits = if matches!(home, Msr(_)) { 64 } else { 32 };
            assert!(parts.iter().all(|part| part.bit + part.length <= bits), "{home:?}");
            assert!(NAMES.iter().filter(|(other, _)| other == home).count() == 1, "{home:?}");
        }
    }

    #[test]
    fn names_of_several_kinds() {
        let at = |name: &str| find(name).map(|(home, part)| (home, part.bit, part.length, part.since));
        assert_eq!(at("sse4.2"), Some((Cpuid(1, None, Ecx), 20, 1, 14)));
        assert_eq!(at("family"), Some((Cpuid(1, None, Eax), 8, 8, 14)));
        assert_eq!(at("gds-no"), Some((Msr(0x10a), 26, 1, 14)));
        assert_eq!(at("SSE4.2"), None);
    }
}
