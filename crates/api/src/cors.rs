//! Cross-origin requests from browsers, as far as the settings allow them.

use std::time::Duration;

use axum::http::{Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::access::Origins;
use crate::router::X_REQUEST_ID;

/// How long a browser may remember what it was told.
const MAX_AGE: Duration = Duration::from_secs(600);

/// What browsers are told. Keys travel in headers that a page has to set itself, never in cookies, so credentials stay
/// forbidden.
pub(crate) fn layer(origins: &Origins) -> Option<CorsLayer> {
    let allowed = match origins {
        Origins::None => return None,
        Origins::Only(list) => AllowOrigin::list(list.clone()),
        Origins::Any => AllowOrigin::any(),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Clients send headers of their own invention, such as x-stainless-*.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([X_REQUEST_ID, header::RETRY_AFTER])
        .max_age(MAX_AGE);
    Some(layer)
}
