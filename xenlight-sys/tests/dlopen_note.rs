//! The note for packagers is in a program that uses the crate, and names what the crate opens.

use object::read::elf::{ElfFile64, FileHeader, NoteIterator, SectionHeader};
use object::{Object, ObjectSection};
use xenlight_sys::{DLOPEN_NOTE, Release, VERIFIED};

const KIND: u32 = 0x407c_0c0a;

#[test]
fn built_program_carries_the_note() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let file: ElfFile64<'_> = ElfFile64::parse(&*program).unwrap();
    let endian = file.endian();

    let section = file.section_by_name(".note.dlopen").expect("the section .note.dlopen");
    let mut notes: NoteIterator<'_, object::elf::FileHeader64<object::Endianness>> =
        section.elf_section_header().notes(endian, &*program).unwrap().expect("a section of notes");
    let note = notes.next().unwrap().expect("one note");
    assert_eq!(note.name(), b"FDO");
    assert_eq!(note.n_type(endian), KIND);
    assert_eq!(note.desc(), [DLOPEN_NOTE.as_bytes(), b"\0"].concat());
    assert!(notes.next().unwrap().is_none(), "one note only");

    // Tools look at the loaded segments, not at sections.
    let segments = file.elf_header().program_headers(endian, &*program).unwrap();
    let place = section.file_range().unwrap();
    let covered = segments.iter().any(|segment| {
        use object::read::elf::ProgramHeader;
        let (start, size) = segment.file_range(endian);
        segment.p_type(endian) == object::elf::PT_NOTE && start <= place.0 && place.0 + place.1 <= start + size
    });
    assert!(covered, "in a note segment");
}

#[test]
fn note_is_json_with_all_verified_sonames_newest_first() {
    let json: serde_json::Value = serde_json::from_str(DLOPEN_NOTE).unwrap();
    let minors = (VERIFIED.start().minor..=VERIFIED.end().minor).rev();
    let releases: Vec<Release> = minors.map(|minor| Release::new(4, minor)).collect();
    let names = |entry: &serde_json::Value| {
        let names = entry["soname"].as_array().unwrap().iter();
        names.map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&json[0]), releases.iter().map(|r| r.libxenlight()).collect::<Vec<_>>());
    assert_eq!(names(&json[1]), releases.iter().map(|r| r.libxlutil()).collect::<Vec<_>>());
    for entry in json.as_array().unwrap() {
        assert_eq!(entry["priority"], "recommended");
        assert!(entry["feature"].is_string() && entry["description"].is_string());
    }
}
