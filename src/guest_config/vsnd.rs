//! The language of `vsnd = [ [ … ], … ]`: sound cards.
//!
//! A card is a list of items. Each item starts with a word: `card` for parameters of the whole card, `pcm` for a new
//! PCM device, `stream` for a new stream of the last PCM device.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::items::{self, Form, Parameter};

const FORMATS: &[&str] = &[
    "s8",
    "u8",
    "s16_le",
    "s16_be",
    "u16_le",
    "u16_be",
    "s24_le",
    "s24_be",
    "u24_le",
    "u24_be",
    "s32_le",
    "s32_be",
    "u32_le",
    "u32_be",
    "f32_le",
    "f32_be",
    "f64_le",
    "f64_be",
    "iec958_subframe_le",
    "iec958_subframe_be",
    "mu_law",
    "a_law",
    "ima_adpcm",
    "mpeg",
    "gsm",
];

const CARD: &[Parameter] = &[
    Parameter("backend", "backend_domname", Form::Text),
    Parameter("short-name", "short_name", Form::Text),
    Parameter("long-name", "long_name", Form::Text),
];

const PCM: &[Parameter] = &[Parameter("name", "name", Form::Text)];

const STREAM: &[Parameter] =
    &[Parameter("unique-id", "unique_id", Form::Text), Parameter("type", "type", Form::Word(None, &["p", "c"]))];

/// What cards, PCM devices and streams have in a structure of its own.
const COMMON: &[Parameter] = &[
    Parameter("channels-min", "channels_min", Form::Unsigned(u32::MAX)),
    Parameter("channels-max", "channels_max", Form::Unsigned(u32::MAX)),
    Parameter("buffer-size", "buffer_size", Form::Unsigned(u32::MAX)),
];

const LISTS: &[&str] = &["sample-rates", "sample-formats"];

/// A card, a PCM device or a stream.
#[derive(Default)]
struct Part {
    fields: Map<String, Value>,
    common: Map<String, Value>,
    inner: Vec<Part>,
}

impl Part {
    /// Reads a parameter; `own` are those that only this kind of part has.
    fn take(&mut self, parameter: &str, own: &[Parameter], warnings: &mut Vec<String>) -> Result<(), String> {
        let all = || items::names(COMMON).chain(LISTS.iter().copied()).chain(items::names(own));
        let unknown = || items::unknown(parameter, all());
        let (name, value) = parameter.split_once('=').ok_or_else(unknown)?;
        match name {
            "sample-rates" => {
                let rates = list(name, value, |rate| items::unsigned(name, rate, u32::MAX, warnings));
                self.common.insert("sample_rates".to_owned(), rates?);
            }
            "sample-formats" => {
                let formats = list(name, value, |format| items::word(name, format, None, FORMATS));
                self.common.insert("sample_formats".to_owned(), formats?);
            }
            _ => match (Parameter::find(COMMON, name), Parameter::find(own, name)) {
                (Some(known), _) => known.put(&mut self.common, value, warnings)?,
                (None, Some(known)) => known.put(&mut self.fields, value, warnings)?,
                (None, None) => return Err(unknown()),
            },
        }
        Ok(())
    }

    /// The structure of libxl; `names` are the fields for the parts inside, level by level.
    fn into_json(mut self, names: &[&str]) -> Value {
        self.fields.insert("params".to_owned(), Value::Object(self.common));
        if let Some((name, deeper)) = names.split_first().filter(|_| !self.inner.is_empty()) {
            let inner = self.inner.into_iter().map(|part| part.into_json(deeper)).collect();
            self.fields.insert((*name).to_owned(), Value::Array(inner));
        }
        Value::Object(self.fields)
    }
}

/// Values with `;` between them.
fn list<T: Serialize>(
    name: &str,
    value: &str,
    read: impl FnMut(&str) -> Result<T, String>,
) -> Result<Value, String> {
    let values = items::parts(value, ';').map(read).collect::<Result<Vec<_>, _>>()?;
    if values.is_empty() { Err(format!("{name}= is empty")) } else { Ok(json!(values)) }
}

/// Reads the items of one card into a `libxl_device_vsnd`.
pub(super) fn card(items: &[String], number: usize, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut card = Part::default();
    card.fields.insert("devid".to_owned(), json!(number));
    for item in items {
        let mut found = Vec::new();
        read_item(&mut card, item, &mut found).map_err(|why| format!("in `{item}`: {why}"))?;
        warnings.extend(found.into_iter().map(|warning| format!("in `{item}`: {warning}")));
    }
    Ok(card.into_json(&["pcms", "streams"]))
}

fn read_item(card: &mut Part, item: &str, warnings: &mut Vec<String>) -> Result<(), String> {
    let mut parameters = items::parameters(item);
    let Some(kind) = parameters.next() else { return Ok(()) };
    let (part, own) = match kind.to_ascii_lowercase().as_str() {
        "card" => (card, CARD),
        "pcm" => (last(&mut card.inner, true), PCM),
        "stream" => (last(&mut last(&mut card.inner, false).inner, true), STREAM),
        _ => return Err(format!("`{kind}` can't start an item; accepted: card, pcm, stream")),
    };
    parameters.try_for_each(|parameter| part.take(parameter, own, warnings))
}

/// The last part of a list, after adding one if it has to be new or if there is none.
fn last(parts: &mut Vec<Part>, new: bool) -> &mut Part {
    if new || parts.is_empty() {
        parts.push(Part::default());
    }
    let end = parts.len() - 1;
    &mut parts[end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(items: &[&str], warnings: &mut Vec<String>) -> Result<Value, String> {
        let items: Vec<_> = items.iter().copied().map(str::to_owned).collect();
        card(&items, 1, warnings)
    }

    #[test]
    fn accepted() {
        let table: &[(&[&str], Value)] = &[
            (&[], json!({ "devid": 1, "params": {} })),
            (&["", "card", ","], json!({ "devid": 1, "params": {} })),
            (
                &["CARD, backend=d, short-name=s, long-name=a long one, sample-rates=48000;0x10;, channels-min=1"],
                json!({
                    "devid": 1, "backend_domname": "d", "short_name": "s", "long_name": "a long one",
                    "params": { "sample_rates": [48000, 16], "channels_min": 1 }
                }),
            ),
            (
                &["stream"],
                json!({ "devid": 1, "params": {}, "pcms": [{ "params": {}, "streams": [{ "params": {} }] }] }),
            ),
            (
                &[
                    "pcm, name=p1, sample-formats=S16_LE;u8",
                    "stream, type=P, unique-id=u1, buffer-size=12",
                    "stream, type=c, channels-max=2",
                    "pcm, name=p2",
                    "card, buffer-size=7",
                ],
                json!({
                    "devid": 1, "params": { "buffer_size": 7 },
                    "pcms": [
                        {
                            "name": "p1", "params": { "sample_formats": ["s16_le", "u8"] },
                            "streams": [
                                { "type": "p", "unique_id": "u1", "params": { "buffer_size": 12 } },
                                { "type": "c", "params": { "channels_max": 2 } }
                            ]
                        },
                        { "name": "p2", "params": {} }
                    ]
                }),
            ),
        ];
        for (items, expected) in table {
            let mut warnings = Vec::new();
            assert_eq!((read(items, &mut warnings).as_ref(), warnings.len()), (Ok(expected), 0), "{items:?}");
        }
        let mut warnings = Vec::new();
        let rates = read(&["card, sample-rates=fast"], &mut warnings).unwrap();
        assert_eq!(rates["params"]["sample_rates"], json!([0]));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("in `card, sample-rates=fast`: "), "{warnings:?}");
    }

    #[test]
    fn refused() {
        for (item, expected) in [
            ("x", "in `x`: `x` can't start an item; accepted: card, pcm, stream"),
            ("card ,name=x", "`card ` can't start an item"),
            ("card, name=x", "`name=x` is not known; accepted: channels-min"),
            ("pcm, type=p", "`type=p` is not known"),
            ("stream, long-name=p", "`long-name=p` is not known"),
            ("stream, type=x", "`x` is not accepted for type; accepted: p, c"),
            ("card, sample-formats=s8;mp3", "`mp3` is not accepted for sample-formats; accepted: s8, u8"),
            ("card, sample-formats=", "sample-formats= is empty"),
            ("card, sample-rates=;", "sample-rates= is empty"),
            ("card, sample-rates=-1", "out of range"),
            ("card, channels-min", "`channels-min` is not known"),
        ] {
            let error = read(&["card", item], &mut Vec::new()).expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }
}
