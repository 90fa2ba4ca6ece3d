//! The little language of an item of `vif = [ … ]`, as xl reads it.

use serde_json::{Map, Value, json};

use super::items;
use super::xen_host::XenHost;

/// Tokens that are copied: the name in the item, the name in libxl.
const TEXTS: &[(&str, &str)] = &[
    ("bridge", "bridge"),
    ("gatewaydev", "gatewaydev"),
    ("netdev", "gatewaydev"),
    ("ip", "ip"),
    ("script", "script"),
    ("backend", "backend_domname"),
    ("vifname", "ifname"),
    ("model", "model"),
    ("vlan", "vlan"),
    ("forwarddev", "coloft_forwarddev"),
];

/// Tokens for COLO replication that are copied under their own name.
const COLO: &[&str] = &[
    "colo_sock_mirror_id",
    "colo_sock_mirror_ip",
    "colo_sock_mirror_port",
    "colo_sock_compare_sec_in_id",
    "colo_sock_compare_sec_in_ip",
    "colo_sock_compare_sec_in_port",
    "colo_sock_redirector0_id",
    "colo_sock_redirector0_ip",
    "colo_sock_redirector0_port",
    "colo_sock_redirector1_id",
    "colo_sock_redirector1_ip",
    "colo_sock_redirector1_port",
    "colo_sock_redirector2_id",
    "colo_sock_redirector2_ip",
    "colo_sock_redirector2_port",
    "colo_sock_compare_pri_in_id",
    "colo_sock_compare_pri_in_ip",
    "colo_sock_compare_pri_in_port",
    "colo_sock_compare_notify_id",
    "colo_sock_compare_notify_ip",
    "colo_sock_compare_notify_port",
    "colo_filter_mirror_queue",
    "colo_filter_mirror_outdev",
    "colo_filter_redirector0_queue",
    "colo_filter_redirector0_indev",
    "colo_filter_redirector0_outdev",
    "colo_filter_redirector1_queue",
    "colo_filter_redirector1_indev",
    "colo_filter_redirector1_outdev",
    "colo_compare_pri_in",
    "colo_compare_sec_in",
    "colo_compare_out",
    "colo_compare_notify_dev",
    "colo_sock_sec_redirector0_id",
    "colo_sock_sec_redirector0_ip",
    "colo_sock_sec_redirector0_port",
    "colo_sock_sec_redirector1_id",
    "colo_sock_sec_redirector1_ip",
    "colo_sock_sec_redirector1_port",
    "colo_filter_sec_redirector0_queue",
    "colo_filter_sec_redirector0_indev",
    "colo_filter_sec_redirector0_outdev",
    "colo_filter_sec_redirector1_queue",
    "colo_filter_sec_redirector1_indev",
    "colo_filter_sec_redirector1_outdev",
    "colo_filter_sec_rewriter0_queue",
    "colo_checkpoint_host",
    "colo_checkpoint_port",
];

/// The first release of Xen 4 whose xl knows a token.
fn since(token: &str) -> u32 {
    match token.split_once('=') {
        None if token == "trusted" || token == "untrusted" => 17,
        Some(("mtu", _)) => 15,
        Some(("vlan", _)) => 19,
        _ => 14,
    }
}

/// Reads the item of this number into a `libxl_device_nic`; what xl warns about goes into `warnings`.
pub(super) fn parse(
    spec: &str,
    number: usize,
    host: &XenHost,
    warnings: &mut Vec<String>,
) -> Result<Value, String> {
    let mut nic = Map::new();
    nic.insert("devid".to_owned(), json!(number));
    for (name, value) in [
        ("script", &host.xl_conf.vif_script),
        ("bridge", &host.xl_conf.vif_bridge),
        ("gatewaydev", &host.xl_conf.vif_gatewaydev),
        ("backend_domname", &host.xl_conf.vif_backend),
    ] {
        if let Some(value) = value {
            nic.insert(name.to_owned(), json!(value));
        }
    }
    for token in items::parameters(spec) {
        let since = since(token);
        if since > host.release {
            warnings.push(format!("`{token}` needs Xen 4.{since}; it is ignored"));
        } else {
            parse_token(&mut nic, token, warnings)?;
        }
    }
    Ok(Value::Object(nic))
}

fn parse_token(nic: &mut Map<String, Value>, token: &str, warnings: &mut Vec<String>) -> Result<(), String> {
    let mut put = |name: &str, value: Value| {
        nic.insert(name.to_owned(), value);
    };
    match token {
        "trusted" | "untrusted" => {
            put("trusted", super::defbool(token == "trusted"));
            return Ok(());
        }
        _ => {}
    }
    let Some((name, value)) = token.split_once('=') else {
        warnings.push(format!("`{token}` is not known; it is ignored"));
        return Ok(());
    };
    if let Some((_, target)) = TEXTS.iter().find(|(known, _)| *known == name) {
        if name == "netdev" {
            warnings.push("`netdev` is deprecated; use `gatewaydev`".to_owned());
        }
        put(target, json!(value));
    } else if COLO.contains(&name) {
        put(name, json!(value));
    } else {
        match name {
            "type" => match value {
                "vif" => put("nictype", json!("vif")),
                "ioemu" => put("nictype", json!("vif_ioemu")),
                _ => warnings.push(format!("`{token}` is ignored; accepted: type=vif, type=ioemu")),
            },
            "mac" => {
                let mac =
                    mac(value).ok_or_else(|| format!("`{value}` is not a MAC address like 00:16:3e:12:34:56"))?;
                let text: Vec<_> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
                match mac {
                    // libxl doesn't print a MAC of zeros: it stands for "choose one".
                    [0, 0, 0, 0, 0, 0] => drop(nic.remove("mac")),
                    _ => put("mac", json!(text.join(":"))),
                }
            }
            "rate" => {
                let (bytes, interval) = rate(value)?;
                put("rate_interval_usecs", json!(interval));
                match bytes {
                    0 => drop(nic.remove("rate_bytes_per_interval")),
                    _ => put("rate_bytes_per_interval", json!(bytes)),
                }
            }
            "accel" => warnings.push("`accel` is not supported by xl; it is ignored".to_owned()),
            "devid" => put("devid", json!(items::natural(name, value, warnings)?)),
            "mtu" => match items::natural(name, value, warnings)? {
                0 => drop(nic.remove("mtu")),
                mtu => put("mtu", json!(mtu)),
            },
            _ => warnings.push(format!("`{token}` is not known; it is ignored")),
        }
    }
    Ok(())
}

/// Six hexadecimal octets with any one character between them; xl doesn't look at what follows.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut rest = text;
    for (i, octet) in mac.iter_mut().enumerate() {
        if i > 0 {
            let mut characters = rest.chars();
            characters.next()?;
            rest = characters.as_str();
        }
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        *octet = u8::try_from(u64::from_str_radix(&rest[..digits], 16).ok()?).ok()?;
        rest = &rest[digits..];
    }
    Some(mac)
}

/// The number at the start, as `strtoull` with base 0 reads decimal digits, and the rest.
fn leading_number<'a>(text: &'a str, what: &str) -> Result<(u64, &'a str), String> {
    let (base, digits) = match text.as_bytes() {
        [b'0', ..] => (8, text.bytes().take_while(|b| matches!(b, b'0'..=b'7')).count()),
        _ => (10, text.bytes().take_while(u8::is_ascii_digit).count()),
    };
    match u64::from_str_radix(&text[..digits], base) {
        Ok(number) if number != 0 && number <= u64::from(u32::MAX) => Ok((number, &text[digits..])),
        _ => Err(format!("the {what} `{text}` is zero or too big")),
    }
}

/// `RATE[@INTERVAL]` as bytes per interval, and the interval in microseconds.
fn rate(text: &str) -> Result<(u64, u32), String> {
    let (speed, interval) = match text.split_once('@') {
        Some((speed, interval)) => (speed, Some(interval)),
        None => (text, None),
    };
    let unit = speed.trim_start_matches(|c: char| c.is_ascii_digit());
    let prefix = unit.strip_suffix("b/s").or_else(|| unit.strip_suffix("B/s"));
    if unit.len() == speed.len() || !matches!(prefix, Some("" | "K" | "M" | "G")) {
        return Err(format!("`{speed}` is not a rate like 10Mb/s or 500KB/s"));
    }
    let (number, rest) = leading_number(speed, "rate")?;
    let mut bytes = match rest.as_bytes() {
        [b'G', ..] => number * 1_000_000_000,
        [b'M', ..] => number * 1_000_000,
        [b'K', ..] => number * 1000,
        _ => number,
    };
    if matches!(rest.as_bytes(), [b'b', ..] | [_, b'b', ..]) {
        bytes /= 8;
    }
    let usecs = match interval {
        None => 50_000,
        Some(interval) => interval_usecs(interval)?,
    };
    match bytes.checked_mul(u64::from(usecs)) {
        Some(product) => Ok((product / 1_000_000, usecs)),
        None => Err(format!("the rate `{text}` is too big")),
    }
}

fn interval_usecs(text: &str) -> Result<u32, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    if unit.len() == text.len() || !matches!(unit, "" | "s" | "m" | "ms" | "u" | "us") {
        return Err(format!("`{text}` is not an interval like 20ms"));
    }
    let (number, rest) = leading_number(text, "interval")?;
    let usecs = match rest.as_bytes() {
        [] | [b's', ..] => number * 1_000_000,
        [b'm', ..] => number * 1000,
        _ => number,
    };
    u32::try_from(usecs).map_err(|_| format!("the interval `{text}` is too big"))
}

#[cfg(test)]
mod tests {
    use super::super::xl_conf::XlConf;
    use super::*;
    use proptest::prelude::*;

    fn nic(spec: &str) -> Value {
        let mut warnings = Vec::new();
        let nic = parse(spec, 0, &XenHost::default(), &mut warnings).unwrap_or_else(|e| panic!("{spec}: {e}"));
        assert_eq!(warnings, Vec::<String>::new(), "{spec}");
        nic
    }

    #[test]
    fn tokens() {
        assert_eq!(nic(""), json!({ "devid": 0 }));
        assert_eq!(
            nic("mac=00:16:3E:00:00:0a,bridge=xenbr0, script=vif-x ,model=e1000"),
            json!({ "devid": 0, "mac": "00:16:3e:00:00:0a", "bridge": "xenbr0", "script": "vif-x ", "model": "e1000" })
        );
        assert_eq!(
            nic("type=ioemu,ip=10.0.0.1,vifname=v0,backend=net,gatewaydev=eth0,devid=3,mtu=9000,untrusted,vlan=7"),
            json!({ "devid": 3, "nictype": "vif_ioemu", "ip": "10.0.0.1", "ifname": "v0", "backend_domname": "net",
                    "gatewaydev": "eth0", "mtu": 9000, "trusted": "False", "vlan": "7" })
        );
        assert_eq!(nic("type=vif,,bridge=a,bridge=b"), json!({ "devid": 0, "nictype": "vif", "bridge": "b" }));
        assert_eq!(nic("mac=0-16-3e-1-2-3"), json!({ "devid": 0, "mac": "00:16:3e:01:02:03" }));
        assert_eq!(nic("mac=00:00:00:00:00:00"), json!({ "devid": 0 }));
        // The last one counts, also if it is what libxl doesn't print.
        let last = nic("mac=1:2:3:4:5:6,mtu=9,rate=1Mb/s,mac=0:0:0:0:0:0,mtu=0,rate=1B/s");
        assert_eq!(last, json!({ "devid": 0, "rate_interval_usecs": 50000 }));
        assert_eq!(
            nic("forwarddev=eth1,colo_compare_out=x"),
            json!({ "devid": 0, "coloft_forwarddev": "eth1", "colo_compare_out": "x" })
        );
    }

    #[test]
    fn the_hosts_defaults_come_first() {
        let host = XenHost::of(XlConf {
            vif_bridge: Some("br1".to_owned()),
            vif_script: Some("s".to_owned()),
            ..XlConf::default()
        });
        let nic = parse("bridge=br2", 4, &host, &mut Vec::new()).unwrap();
        assert_eq!(nic, json!({ "devid": 4, "bridge": "br2", "script": "s" }));
    }

    #[test]
    fn what_xl_only_warns_about() {
        let mut warnings = Vec::new();
        let nic =
            parse("type=x,foo=1,bar,accel=y,netdev=e,bridge=b", 0, &XenHost::default(), &mut warnings).unwrap();
        assert_eq!(nic, json!({ "devid": 0, "bridge": "b", "gatewaydev": "e" }));
        assert_eq!(warnings.len(), 5, "{warnings:?}");
    }

    #[test]
    fn by_release() {
        for (token, since) in [("mtu=9000", 15), ("trusted", 17), ("untrusted", 17), ("vlan=7", 19)] {
            for release in 14..=22 {
                let mut warnings = Vec::new();
                let host = XenHost { release, ..XenHost::default() };
                let nic = parse(&format!("bridge=b, {token}"), 0, &host, &mut warnings).unwrap();
                let known = nic.as_object().unwrap().len() == 3;
                assert_eq!(
                    (known, warnings.is_empty()),
                    (release >= since, release >= since),
                    "{token} {release}"
                );
                assert!(known || warnings == [format!("`{token}` needs Xen 4.{since}; it is ignored")]);
            }
        }
    }

    #[test]
    fn numbers() {
        let mut warnings = Vec::new();
        let nic = parse("mtu=1500x,devid= 2", 0, &XenHost::default(), &mut warnings).unwrap();
        assert_eq!(nic, json!({ "devid": 2, "mtu": 1500 }));
        assert_eq!(warnings, ["`mtu=1500x` is taken for 1500: a number is expected"]);
    }

    #[test]
    fn refused() {
        for spec in
            ["mac=00:16:3e:1:2", "mac=x", "mac=00:16:3e:1:2:100", "devid=x", "mtu=99999999999", "rate=1", "rate="]
        {
            assert!(parse(spec, 0, &XenHost::default(), &mut Vec::new()).is_err(), "{spec}");
        }
    }

    #[test]
    fn rates() {
        for (text, expected) in [
            ("10Mb/s", (62_500, 50_000)),
            ("250KB/s", (12_500, 50_000)),
            ("1GB/s@20ms", (20_000_000, 20_000)),
            ("8b/s@1s", (1, 1_000_000)),
            ("100B/s@2", (200, 2_000_000)),
            ("1MB/s@100us", (100, 100)),
            ("1MB/s@100u", (100, 100)),
            ("1MB/s@1m", (1000, 1000)),
            ("010KB/s@1s", (8000, 1_000_000)),
            ("0129Mb/s@1s", (10, 1_000_000)),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "10",
            "10M/s",
            "10TB/s",
            "Mb/s",
            "0Mb/s",
            "09Mb/s",
            "4294967296B/s",
            "1MB/s@",
            "1MB/s@x",
            "1MB/s@5000s",
            "1Mb/s@1h",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(spec in any::<String>()) {
            let _ = parse(&spec, 0, &XenHost::default(), &mut Vec::new());
        }

        #[test]
        fn never_panics_on_likely_text(spec in "(mac=|rate=|mtu=|[0-9a-f]|:|,|@|Mb/s|ms|ä|=| ){0,20}") {
            let _ = parse(&spec, 0, &XenHost::default(), &mut Vec::new());
        }
    }
}
