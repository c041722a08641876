//! A file that is compiled in.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// A text file of a page.
pub(super) struct Asset {
    /// Its name.
    pub name: &'static str,
    /// Its media type.
    pub media_type: &'static str,
    /// What is in it.
    pub text: &'static str,
}

/// `asset!(MEDIA_TYPE, "name")`: the file of that name in `pages/`.
macro_rules! asset {
    ($media_type:expr, $name:literal) => {
        Asset { name: $name, media_type: $media_type, text: include_str!(concat!("../../pages/", $name)) }
    };
}
pub(super) use asset;

impl Asset {
    /// The file, or that it is still what the browser has: an update of the server is seen at once.
    pub(super) fn response(&self, request: &HeaderMap) -> Response {
        let tag = self.tag();
        let fixed = [
            (header::ETAG, tag.as_str()),
            (header::CACHE_CONTROL, "no-cache"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::CONTENT_TYPE, self.media_type),
        ];
        match request.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag.as_str()) {
            true => (StatusCode::NOT_MODIFIED, fixed).into_response(),
            false => (fixed, self.text).into_response(),
        }
    }

    fn tag(&self) -> String {
        let digest = Sha256::digest(self.text.as_bytes());
        let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\"{hex}\"")
    }
}
