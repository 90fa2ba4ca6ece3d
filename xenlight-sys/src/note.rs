//! What packagers' tools read out of a program to learn which libraries it opens at run time.

/// The sonames of one library, newest first.
macro_rules! sonames {
    ($name:literal) => {
        concat!(
            "[\"",
            $name,
            ".so.4.22\",\"",
            $name,
            ".so.4.21\",\"",
            $name,
            ".so.4.20\",\"",
            $name,
            ".so.4.19\",\"",
            $name,
            ".so.4.18\",\"",
            $name,
            ".so.4.17\",\"",
            $name,
            ".so.4.16\",\"",
            $name,
            ".so.4.15\",\"",
            $name,
            ".so.4.14\"]"
        )
    };
}

/// The content of the ELF note that every program with this crate in it carries.
///
/// It follows the [UAPI group's specification](https://systemd.io/ELF_DLOPEN_METADATA/): JSON that names what is opened
/// with `dlopen`, as tools like `dlopen-notes` and `rpm`'s and `dh_shlibdeps`' helpers expect it. Any one of the sonames
/// will do, and without any the program still has to say so properly: recommended, not required.
pub const DLOPEN_NOTE: &str = concat!(
    "[{\"soname\":",
    sonames!("libxenlight"),
    ",\"feature\":\"libxl\",\"description\":\"Manage guests through libxl, of the release of the running hypervisor\",",
    "\"priority\":\"recommended\"},",
    "{\"soname\":",
    sonames!("libxlutil"),
    ",\"feature\":\"xlutil\",\"description\":\"Read guest configuration files\",\"priority\":\"recommended\"}]"
);

/// With the terminating zero that the specification's own example has.
const LENGTH: usize = DLOPEN_NOTE.len() + 1;

/// An ELF note: `Elf32_Nhdr`, the owner's name, the content; each part starts at a multiple of four.
#[repr(C, align(4))]
struct Note {
    name_size: u32,
    content_size: u32,
    kind: u32,
    name: [u8; 4],
    content: [u8; LENGTH],
}

#[used]
// SAFETY: notes are only read by tools; the section holds exactly one well-formed note, with no addresses in it.
#[unsafe(link_section = ".note.dlopen")]
static NOTE: Note = Note {
    name_size: 4,
    content_size: LENGTH as u32,
    kind: 0x407c_0c0a,
    name: *b"FDO\0",
    content: {
        let mut content = [0; LENGTH];
        let mut at = 0;
        while at < DLOPEN_NOTE.len() {
            content[at] = DLOPEN_NOTE.as_bytes()[at];
            at += 1;
        }
        content
    },
};
