//! The language of `channel`: consoles with a name, for programs in the guest and on the host to talk with each other.

use serde_json::{Map, Value, json};

use super::items::{self, Form, Parameter};

const PARAMETERS: &[Parameter] =
    &[Parameter("backend", "backend_domname", Form::Text), Parameter("name", "name", Form::Text)];

/// Reads an item of `channel = [ … ]` into a `libxl_device_channel`.
pub(super) fn parse(item: &str, number: usize, release: u32, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut channel = Map::new();
    // With a number of its own the first channel takes the place of the guest's console. The last releases of
    // Xen 4.18 and later leave it to libxl.
    if release < 18 {
        channel.insert("devid".to_owned(), json!(number));
    }
    let (mut connection, mut path) = (None, None);
    let mut parameters = items::parts(item, ',').peekable();
    if parameters.peek().is_none() {
        return Err("it is empty".to_owned());
    }
    for parameter in parameters {
        let Some((name, value)) = items::split_pair(parameter, '=', release, warnings) else {
            return Err(format!("`{parameter}` has no value"));
        };
        let (name, value) = (name.trim_matches(items::is_blank), value.trim_matches(items::is_blank));
        match (name, Parameter::find(PARAMETERS, name)) {
            (_, Some(known)) => known.put(&mut channel, value, warnings)?,
            ("path", None) => path = Some(value),
            ("connection", None) if matches!(value, "pty" | "socket") => connection = Some(value),
            ("connection", None) => {
                return Err(format!("`{value}` is not accepted for connection; accepted: pty, socket"));
            }
            (_, None) => warnings.push(format!("`{parameter}` is not known; it is ignored")),
        }
    }
    match (connection, path) {
        (None, _) => return Err("no connection is given; accepted: pty, socket".to_owned()),
        (Some("socket"), None) => return Err("connection=socket needs a path".to_owned()),
        (Some("socket"), Some(path)) => channel.insert("connection.socket".to_owned(), json!({ "path": path })),
        (Some(_), _) => channel.insert("connection.pty".to_owned(), json!({})),
    };
    Ok(Value::Object(channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(item: &str, release: u32) -> (Result<Value, String>, Vec<String>) {
        let mut warnings = Vec::new();
        let channel = parse(item, 4, release, &mut warnings);
        (channel, warnings)
    }

    #[test]
    fn accepted() {
        let table = [
            ("connection=pty", json!({ "connection.pty": {} }), 0),
            ("connection=pty,path=/unused", json!({ "connection.pty": {} }), 0),
            (
                " backend = d ,name=org.x\t,,connection=pty,connection= socket,path=/a b",
                json!({ "backend_domname": "d", "name": "org.x", "connection.socket": { "path": "/a b" } }),
                0,
            ),
            ("connection=pty,name= ", json!({ "name": "", "connection.pty": {} }), 0),
            ("connection=pty,foo=1", json!({ "connection.pty": {} }), 1),
        ];
        for release in 14..=22 {
            for (item, expected, warned) in &table {
                let mut expected = expected.clone();
                if release < 18 {
                    expected["devid"] = json!(4);
                }
                let (channel, warnings) = read(item, release);
                assert_eq!((channel, warnings.len()), (Ok(expected), *warned), "{item:?} {release}: {warnings:?}");
            }
        }
        let path = |release| {
            let (channel, warnings) = read("connection=socket,path=/a=b", release);
            (channel.unwrap()["connection.socket"]["path"].clone(), warnings.len())
        };
        assert_eq!((path(17), path(18)), ((json!("/a"), 1), (json!("/a=b"), 0)));
    }

    #[test]
    fn refused() {
        for release in 14..=22 {
            for (item, expected) in [
                ("", "it is empty"),
                (",,", "it is empty"),
                ("name=n", "no connection is given; accepted: pty, socket"),
                ("connection=PTY", "`PTY` is not accepted for connection; accepted: pty, socket"),
                ("connection=socket", "connection=socket needs a path"),
                ("connection=pty,name=", "`name=` has no value"),
                ("connection=pty,foo", "`foo` has no value"),
                ("connection=pty, ", "` ` has no value"),
            ] {
                let error = read(item, release).0.expect_err(item);
                assert!(error.contains(expected), "{item:?} {release}: {error}");
            }
        }
        assert!(read("connection=pty,=x", 17).0.is_err());
        assert!(read("connection=pty,=x", 18).0.is_ok());
    }
}
