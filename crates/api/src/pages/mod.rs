//! The pages for browsers, and what they consist of.
//!
//! They are plain files under `pages/`, compiled in. A page may load nothing from elsewhere, run no script but its own,
//! and turn no text into markup: [`CONTENT_SECURITY_POLICY`] has browsers enforce all three.

mod asset;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use asset::{Asset, asset};

/// What the pages may do. `require-trusted-types-for` makes `innerHTML` and its like fail.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const CHAT: Asset = asset!(HTML, "chat.html");
const STATUS: Asset = asset!(HTML, "status.html");
/// What pages load, below `/assets/`.
const ASSETS: &[Asset] = &[
    asset!(SVG, "icon.svg"),
    asset!(CSS, "theme.css"),
    asset!(SCRIPT, "theme.js"),
    asset!(SCRIPT, "dom.js"),
    asset!(SCRIPT, "server.js"),
    asset!(SCRIPT, "markdown.js"),
    asset!(CSS, "chat.css"),
    asset!(SCRIPT, "chat.js"),
    asset!(SCRIPT, "conversations.js"),
    asset!(SCRIPT, "message.js"),
    asset!(CSS, "status.css"),
    asset!(SCRIPT, "status.js"),
];

/// `GET /`: the page for conversations.
pub(crate) async fn chat(headers: HeaderMap) -> Response {
    page(&CHAT, &headers)
}

/// `GET /status`: the page that shows how the server is doing.
pub(crate) async fn status(headers: HeaderMap) -> Response {
    page(&STATUS, &headers)
}

/// `GET /favicon.ico`, for browsers that ask without reading the page.
pub(crate) async fn icon(headers: HeaderMap) -> Response {
    ASSETS[0].response(&headers)
}

/// `GET /assets/{name}`: what a page consists of.
pub(crate) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => asset.response(&headers),
        None => ApiError::unknown_route("GET", &format!("/assets/{name}")).into_response(),
    }
}

fn page(asset: &Asset, headers: &HeaderMap) -> Response {
    let mut response = asset.response(headers);
    let policy = HeaderValue::from_static(CONTENT_SECURITY_POLICY);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in quotes or backticks that follows one of these marks.
    fn mentions<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
        text.split(mark).skip(1).filter_map(|rest| rest.split(['"', '\'', '`']).next())
    }

    #[test]
    fn all_that_a_page_loads_is_there_and_nothing_comes_from_elsewhere() {
        let is_known = |name: &str| ASSETS.iter().any(|asset| asset.name == name);
        for asset in ASSETS.iter().chain([&CHAT, &STATUS]) {
            for name in mentions(asset.text, "\"/assets/").chain(mentions(asset.text, "from \"./")) {
                assert!(is_known(name), "{} loads {name}", asset.name);
            }
            for mark in ["src=\"http", "href=\"http", "url(", "@import", "import(", "fetch(\"http"] {
                assert!(!asset.text.contains(mark), "{} reaches out: {mark}", asset.name);
            }
            for mark in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=\"", "<script>"]
            {
                assert!(!asset.text.contains(mark), "{} has {mark}", asset.name);
            }
        }
    }
}
