//! Files that may be replaced while the server runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Calls `changed` once, as a file may have changed since it was read, and then whenever one of `files` is another than
/// before. Never ends.
pub(crate) async fn follow(files: &[&Path], changed: impl Fn()) {
    let stamps = || files.iter().map(|file| stamp(file)).collect::<Vec<_>>();
    let mut last = None;
    loop {
        let now = Some(stamps());
        if now != last {
            last = now;
            changed();
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What differs when a file was written or replaced; `None` where there is none.
fn stamp(file: &Path) -> Option<[i64; 4]> {
    let metadata = fs::metadata(file).ok()?;
    Some([metadata.ino() as i64, metadata.size() as i64, metadata.mtime(), metadata.mtime_nsec()])
}
