//! Saved images, which are files.
#![no_main]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use xendomains::image::Image;

/// One file for all inputs, in memory.
static FILE: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
    let path = PathBuf::from(format!("/dev/shm/fuzz-image-{}", std::process::id()));
    let file = File::create(&path).expect("a file in memory");
    (path, file)
});

fuzz_target!(|bytes: &[u8]| {
    let (path, file) = &*FILE;
    file.set_len(0).and_then(|()| file.write_all_at(bytes, 0)).expect("write the image");
    if let Ok(image) = Image::open(path) {
        assert!(!image.name.is_empty(), "an image without a guest");
        assert_eq!(image.size, bytes.len() as u64);
        assert!(image.stream_offset < image.size, "the stream is outside of the file");
        assert!(fs::metadata(path).is_ok(), "looking at an image has removed it");
    }
});
