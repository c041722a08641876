//! Whatever bytes a file has, reading its header neither panics nor takes more memory than the file, what is accepted is
//! sound, and the `safetensors` crate agrees.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use safetensors::{SafeTensorError, SafeTensors};
use tandem_model::checkpoint::Header;

fuzz_target!(|data: &[u8]| {
    check(data);
    // Fuzzers do not guess lengths: take the first two bytes as header length, the rest as header and contents.
    if let [low, high, rest @ ..] = data {
        let length = u64::from(u16::from_le_bytes([*low, *high]) % 512).min(rest.len() as u64);
        check(&[&length.to_le_bytes(), rest].concat());
    }
});

fn check(file: &[u8]) {
    let read_at = |out: &mut [u8], offset: u64| {
        out.copy_from_slice(&file[offset as usize..][..out.len()]);
        Ok(())
    };
    let theirs = SafeTensors::read_metadata(file);
    match Header::read(Path::new("model.safetensors"), file.len() as u64, read_at) {
        Ok(header) => {
            check_sound(&header, file.len() as u64);
            // They check the types of metadata and know fewer number formats; extents they must find as we do.
            let same = matches!(theirs, Ok(_) | Err(SafeTensorError::InvalidHeaderDeserialization(_)));
            assert!(same, "{header:?} but {theirs:?}");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains("expected") && text.contains("found"), "{text}");
            // They let the last of two tensors of one name win.
            assert!(theirs.is_err() || text.contains("twice"), "{text} but {theirs:?}");
        }
    }
}

fn check_sound(header: &Header, file_bytes: u64) {
    let mut end = 0;
    for entry in &header.entries {
        assert_eq!(entry.start, end);
        assert!(entry.end >= entry.start);
        end = entry.end;
    }
    assert_eq!(header.data_start + end, file_bytes);
}
