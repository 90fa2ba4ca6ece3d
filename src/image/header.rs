//! What stands in an image file before libxl's stream: the header of `xl save`, and the configuration.
//!
//! ```text
//!  0  32  "Xen saved domain, xl format", newline, space, NUL, space, carriage return
//! 32   4  0x01020304 in the writer's byte order
//! 36   4  mandatory flags: 1 = the configuration is JSON, 2 = stream version 2; unknown ones forbid reading
//! 40   4  optional flags
//! 44   4  length of the optional data
//! 48      optional data: u32 length of the configuration, the configuration with a NUL at its end, more
//!      16  header of libxl's stream: "LibxlFmt", version 2, options; big-endian
//!      …   libxl's stream; its END record is 8 zero bytes
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde_json::Value;
use uuid::Uuid;

use super::{Foreign, Format, Part, Problem, xend};

const MAGIC: [u8; 32] = *b"Xen saved domain, xl format\n \0 \r";
const BYTE_ORDER: u32 = 0x0102_0304;
const FLAG_JSON: u32 = 1;
const FLAG_STREAM_V2: u32 = 2;
const HEADER_LENGTH: u64 = 48;

/// More configuration than any guest has; what a damaged header asks for beyond this is not read.
pub(super) const CONFIG_LIMIT: u64 = 16 << 20;

const STREAM_MAGIC: [u8; 8] = *b"LibxlFmt";
const STREAM_VERSION: u32 = 2;
const STREAM_HEADER_LENGTH: u64 = 16;
const END_RECORD: [u8; 8] = [0; 8];

/// What a whole image file says about itself.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    /// The guest's name.
    pub(super) name: String,
    /// The guest's UUID.
    pub(super) uuid: Uuid,
    /// Its configuration, in libxl's JSON.
    pub(super) config: Value,
    /// Where libxl's stream starts.
    pub(super) stream_offset: u64,
    /// Who has written it.
    pub(super) format: Format,
}

/// The bytes before the stream. An error: the configuration is longer than the format can say.
pub(crate) fn encode(config: &Value) -> io::Result<Vec<u8>> {
    let text = config.to_string();
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "the guest's configuration is too long");
    if text.len() as u64 + 5 > CONFIG_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the guest's configuration is too long"));
    }
    // With the NUL at its end.
    let config_length = u32::try_from(text.len() + 1).map_err(too_long)?;
    let mut bytes = Vec::with_capacity(text.len() + 64);
    bytes.extend(MAGIC);
    for word in [BYTE_ORDER, FLAG_JSON | FLAG_STREAM_V2, 0, config_length + 4, config_length] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(text.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

/// A file, or a part of memory in tests, to read an image from.
pub(super) trait Source {
    /// How long it is.
    fn length(&self) -> io::Result<u64>;
    /// Reads this many bytes at this place.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for &File {
    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

/// Reads the header and the configuration, and checks that the file is whole as far as its format can show that:
/// the stream has its header, and an END record at its end.
pub(super) fn read(source: &impl Source) -> Result<Header, Problem> {
    let io = |source| Problem::Io { action: "read", source };
    let length = source.length().map_err(io)?;
    if length == 0 {
        return Err(Problem::Empty);
    }
    let read = |at: u64, buffer: &mut [u8], part: Part| match source.read(at, buffer) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Problem::Truncated { part, length }),
        Err(error) => Err(io(error)),
    };

    let mut magic = [0; 32];
    let there = usize::try_from(length).unwrap_or(usize::MAX).min(magic.len());
    read(0, &mut magic[..there], Part::Header)?;
    if magic.starts_with(xend::MAGIC) {
        return xend::read(source, length);
    }
    if !MAGIC.starts_with(&magic[..there]) {
        return Err(Problem::Foreign(foreign(&magic)));
    }
    let mut words = [0; 16];
    read(32, &mut words, Part::Header)?;
    let word = |i: usize| [words[i * 4], words[i * 4 + 1], words[i * 4 + 2], words[i * 4 + 3]];
    if u32::from_ne_bytes(word(0)) != BYTE_ORDER {
        return Err(Problem::ByteOrder);
    }
    let flags = u32::from_ne_bytes(word(1));
    let unknown = flags & !(FLAG_JSON | FLAG_STREAM_V2);
    if unknown != 0 {
        return Err(Problem::UnknownFlags(unknown));
    }
    if flags & FLAG_JSON == 0 {
        return Err(Problem::OldConfig);
    }
    if flags & FLAG_STREAM_V2 == 0 {
        return Err(Problem::OldStream);
    }

    let data_length = u64::from(u32::from_ne_bytes(word(3)));
    if data_length > CONFIG_LIMIT {
        return Err(Problem::ConfigTooLong { length: data_length });
    }
    if data_length < 4 {
        return Err(Problem::NoConfig);
    }
    if HEADER_LENGTH + data_length > length {
        return Err(Problem::Truncated { part: Part::Config, length });
    }
    let mut config_length = [0; 4];
    read(HEADER_LENGTH, &mut config_length, Part::Config)?;
    let config_length = u32::from_ne_bytes(config_length);
    if u64::from(config_length) > data_length - 4 {
        return Err(Problem::ConfigBeyondData { length: config_length });
    }
    let mut text = vec![0; config_length as usize];
    read(HEADER_LENGTH + 4, &mut text, Part::Config)?;
    // It is a C string.
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    let config = serde_json::from_slice(&text[..end]).map_err(Problem::ConfigNotJson)?;
    let (name, uuid) = identity(&config)?;

    let stream_offset = HEADER_LENGTH + data_length;
    let mut stream = [0; STREAM_HEADER_LENGTH as usize];
    if length < stream_offset + STREAM_HEADER_LENGTH {
        return Err(Problem::Truncated { part: Part::StreamHeader, length });
    }
    read(stream_offset, &mut stream, Part::StreamHeader)?;
    let version = u32::from_be_bytes([stream[8], stream[9], stream[10], stream[11]]);
    if stream[..8] != STREAM_MAGIC || version != STREAM_VERSION {
        return Err(Problem::UnknownStream);
    }
    let mut end = [1; END_RECORD.len()];
    if length < stream_offset + STREAM_HEADER_LENGTH + END_RECORD.len() as u64 {
        return Err(Problem::Truncated { part: Part::Stream, length });
    }
    read(length - END_RECORD.len() as u64, &mut end, Part::Stream)?;
    if end != END_RECORD {
        return Err(Problem::Truncated { part: Part::Stream, length });
    }
    Ok(Header { name, uuid, config, stream_offset, format: Format::Xl })
}

/// Whose the configuration is.
pub(super) fn identity(config: &Value) -> Result<(String, Uuid), Problem> {
    let field = |name: &'static str| config["c_info"][name].as_str().ok_or(Problem::ConfigWithout(name));
    let name = field("name")?;
    if name.is_empty() {
        return Err(Problem::ConfigWithout("name"));
    }
    let uuid = Uuid::try_parse(field("uuid")?).ok().filter(|uuid| !uuid.is_nil());
    Ok((name.to_owned(), uuid.ok_or(Problem::ConfigWithout("uuid"))?))
}

/// Whose file it is, if not xl's.
fn foreign(start: &[u8]) -> Foreign {
    if start.starts_with(b"Libvirt") || start.starts_with(b"libvirt") {
        Foreign::Libvirt
    } else {
        Foreign::Unknown
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    impl Source for &[u8] {
        fn length(&self) -> io::Result<u64> {
            Ok(self.len() as u64)
        }

        fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
            let part = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..buffer.len()));
            buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    pub(in super::super) const UUID: &str = "11111111-2222-3333-4444-555555555555";

    pub(in super::super) fn config(name: &str) -> Value {
        config_of(name, UUID)
    }

    fn config_of(name: &str, uuid: &str) -> Value {
        json!({ "c_info": { "name": name, "uuid": uuid, "type": "pv" }, "b_info": {} })
    }

    /// What libxl writes behind the header.
    pub(in super::super) fn stream(body: &[u8]) -> Vec<u8> {
        let mut bytes = b"LibxlFmt\0\0\0\x02\0\0\0\0".to_vec();
        bytes.extend(body);
        bytes.extend([0; 8]);
        bytes
    }

    pub(in super::super) fn image(name: &str) -> Vec<u8> {
        image_of(name, UUID)
    }

    pub(in super::super) fn image_of(name: &str, uuid: &str) -> Vec<u8> {
        let mut bytes = encode(&config_of(name, uuid)).unwrap();
        bytes.extend(stream(b"memory"));
        bytes
    }

    fn problem(bytes: &[u8]) -> Problem {
        read(&bytes).expect_err("this can't be read")
    }

    /// An image with this word of the header changed.
    fn with_word(at: usize, value: u32) -> Vec<u8> {
        let mut bytes = image("web");
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = image("web");
        let header = read(&bytes.as_slice()).unwrap();
        assert_eq!((header.name.as_str(), header.uuid.to_string().as_str()), ("web", UUID));
        assert_eq!(header.config, config("web"));
        assert_eq!(&bytes[usize::try_from(header.stream_offset).unwrap()..][..8], b"LibxlFmt");
        // The layout, byte by byte.
        assert_eq!(&bytes[..32], b"Xen saved domain, xl format\n \0 \r");
        assert_eq!(u32::from_ne_bytes(bytes[36..40].try_into().unwrap()), 3);
        assert_eq!(u32::from_ne_bytes(bytes[40..44].try_into().unwrap()), 0);
        let data = u32::from_ne_bytes(bytes[44..48].try_into().unwrap());
        assert_eq!(u32::from_ne_bytes(bytes[48..52].try_into().unwrap()), data - 4);
        assert_eq!(bytes[48 + data as usize - 1], 0);
        assert_eq!(header.stream_offset, 48 + u64::from(data));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let bytes = image("web");
        let stream = usize::try_from(read(&bytes.as_slice()).unwrap().stream_offset).unwrap();
        for cut in 0..bytes.len() {
            let problem = problem(&bytes[..cut]);
            let expected = match cut {
                0 => matches!(problem, Problem::Empty),
                1..48 => matches!(problem, Problem::Truncated { part: Part::Header, .. }),
                _ if cut < stream => matches!(problem, Problem::Truncated { part: Part::Config, .. }),
                _ if cut < stream + 16 => matches!(problem, Problem::Truncated { part: Part::StreamHeader, .. }),
                _ => matches!(problem, Problem::Truncated { part: Part::Stream, .. }),
            };
            assert!(expected, "{cut}: {problem:?}");
        }
    }

    #[test]
    fn damage_and_other_formats() {
        assert!(matches!(problem(b"LinuxGuestRecord\0\0\0\x10(domain"), Problem::Truncated { .. }));
        assert!(matches!(problem(b"LibvirtQemudSave and more"), Problem::Foreign(Foreign::Libvirt)));
        assert!(matches!(problem(b"LibvirtGuestSave"), Problem::Foreign(Foreign::Libvirt)));
        assert!(matches!(problem(b"libvirt-xml\n \0 \r"), Problem::Foreign(Foreign::Libvirt)));
        assert!(matches!(problem(b"name = 'web'\n"), Problem::Foreign(Foreign::Unknown)));
        assert!(matches!(problem(&with_word(32, 0x0403_0201)), Problem::ByteOrder));
        assert!(matches!(problem(&with_word(36, 0x13)), Problem::UnknownFlags(0x10)));
        assert!(matches!(problem(&with_word(36, 0)), Problem::OldConfig));
        assert!(matches!(problem(&with_word(36, 1)), Problem::OldStream));
        assert!(read(&with_word(40, 77).as_slice()).is_ok());
        assert!(matches!(problem(&with_word(44, u32::MAX)), Problem::ConfigTooLong { .. }));
        assert!(matches!(problem(&with_word(44, 3)), Problem::NoConfig));
        assert!(matches!(problem(&with_word(44, 1 << 20)), Problem::Truncated { part: Part::Config, .. }));
        assert!(matches!(problem(&with_word(48, 1 << 20)), Problem::ConfigBeyondData { .. }));
        let mut other_stream = image("web");
        let at = usize::try_from(read(&other_stream.as_slice()).unwrap().stream_offset).unwrap();
        other_stream[at + 11] = 3;
        assert!(matches!(problem(&other_stream), Problem::UnknownStream));
        let mut no_end = image("web");
        *no_end.last_mut().unwrap() = 1;
        assert!(matches!(problem(&no_end), Problem::Truncated { part: Part::Stream, .. }));
    }

    #[test]
    fn configurations_that_name_no_guest() {
        let with = |config: &Value| {
            let mut bytes = encode(config).unwrap();
            bytes.extend(stream(b""));
            problem(&bytes)
        };
        assert!(matches!(with(&json!({})), Problem::ConfigWithout("name")));
        assert!(matches!(with(&json!({ "c_info": { "name": 5, "uuid": UUID } })), Problem::ConfigWithout("name")));
        assert!(matches!(
            with(&json!({ "c_info": { "name": "", "uuid": UUID } })),
            Problem::ConfigWithout("name")
        ));
        assert!(matches!(with(&json!({ "c_info": { "name": "x" } })), Problem::ConfigWithout("uuid")));
        assert!(matches!(
            with(&json!({ "c_info": { "name": "x", "uuid": "y" } })),
            Problem::ConfigWithout("uuid")
        ));
        assert!(matches!(with(&json!([])), Problem::ConfigWithout("name")));
        let mut bytes = image("web");
        bytes[52] = b'}';
        assert!(matches!(problem(&bytes), Problem::ConfigNotJson(_)));
    }

    #[test]
    fn a_tail_behind_the_configuration_is_skipped() {
        let config = config("web").to_string();
        let mut bytes = MAGIC.to_vec();
        let length = u32::try_from(config.len()).unwrap();
        for word in [BYTE_ORDER, 3, 0, 4 + length + 6, length] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(config.as_bytes());
        bytes.extend(b"future");
        bytes.extend(stream(b""));
        assert_eq!(read(&bytes.as_slice()).unwrap().name, "web");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes.as_slice());
        }

        #[test]
        fn never_panics_behind_the_magic(bytes in prop::collection::vec(any::<u8>(), 0..200), flags in 0u32..8) {
            let mut file = MAGIC.to_vec();
            file.extend(BYTE_ORDER.to_ne_bytes());
            file.extend(flags.to_ne_bytes());
            file.extend(bytes);
            let _ = read(&file.as_slice());
        }

        #[test]
        fn never_panics_on_a_changed_byte(at in 0usize..150, value in any::<u8>()) {
            let mut bytes = image("web");
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = read(&bytes.as_slice());
        }
    }
}
