//! Work that would keep a connection's thread busy.

use crate::error::ApiError;

/// Runs `work`, such as tokenizing megabytes, on a thread of its own kind. Should it panic, that is this request's 500
/// and nobody else's trouble.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = tracing::Span::current();
    let result = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "reading a request failed");
        Err(ApiError::internal("reading the request failed"))
    })
}
