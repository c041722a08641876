//! The routes, and what happens around every request.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tracing::Instrument;
use tracing::field::Empty;

use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::state::ApiState;
use crate::{
    access, anthropic, chat, completions, cors, ids, models, ollama, openapi, pages, probes, responses, status,
    tokenize,
};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same in Anthropic's protocol.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// The longest request id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// A request's name: in its log lines, its `x-request-id` and the id of its reply.
#[derive(Clone, Debug)]
pub(crate) struct RequestName(pub String);

/// The routes of the HTTP edge.
pub fn router(state: ApiState) -> Router {
    with_root(state, get(pages::chat))
}

/// The same routes as Ollama's clients expect to find them on its port: at the root they look for its greeting.
pub fn ollama_router(state: ApiState) -> Router {
    with_root(state, get(ollama::greeting))
}

fn with_root(state: ApiState, root: MethodRouter<ApiState>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/", root)
        .route("/openapi.json", get(openapi::document))
        .route("/status", get(pages::status))
        .route("/status.json", get(status::report))
        .route("/assets/{name}", get(pages::asset))
        .route("/favicon.ico", get(pages::icon))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .route("/version", get(probes::version))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .merge(anthropic::routes())
        .merge(responses::routes())
        .merge(ollama::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), access::admit));
    // Outside of access: a browser asks what it may without a key, and reads refusals too.
    let routes = match cors::layer(&state.settings().cors_origins) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.layer(middleware::from_fn_with_state(state.clone(), around)).with_state(state)
}

/// Names the request, counts the response, and puts both names where they belong.
async fn around(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let (echoed, span) = name_request(&mut request);
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let mut response = in_protocol(Protocol::of_path(&path), &echoed, next.run(request).instrument(span.clone()).await);
    let status = response.status().as_u16();
    state.metrics().count_response(status);
    span.in_scope(|| match status {
        // Whoever waits for a model asks every moment, and that it is not there yet is no failure.
        503 if path == "/ready" => tracing::debug!(%method, path, status, "response"),
        500.. => tracing::warn!(%method, path, status, "response"),
        400.. => tracing::info!(%method, path, status, "response"),
        _ => tracing::debug!(%method, path, status, "response"),
    });
    response.headers_mut().insert(X_REQUEST_ID, echoed);
    response
}

/// Gives a request its name. Returns the name that the client will know, which may be its own, and the span of the log.
pub(crate) fn name_request(request: &mut Request) -> (HeaderValue, tracing::Span) {
    let given = request.headers().get(X_REQUEST_ID).filter(|id| is_plain(id)).cloned();
    let name = ids::unique_name("");
    let echoed = given.unwrap_or_else(|| HeaderValue::from_str(&name).expect("hexadecimal digits are a header value"));
    let span = tracing::info_span!("request", id = echoed.to_str().unwrap_or(&name), key = Empty);
    request.extensions_mut().insert(RequestName(name));
    (echoed, span)
}

/// Gives a response what its protocol wants of every response: errors in its own shape, and its own name for the
/// request's id.
fn in_protocol(protocol: Protocol, id: &HeaderValue, mut response: Response) -> Response {
    if protocol == Protocol::Anthropic {
        response.headers_mut().insert(REQUEST_ID, id.clone());
    }
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    let body = protocol.error_body(error, id.to_str().ok()).to_string();
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body.into())
}

fn is_plain(id: &HeaderValue) -> bool {
    let is_short = (1..=REQUEST_ID_BYTES_MAX).contains(&id.len());
    is_short && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

async fn unknown_route(method: Method, uri: Uri) -> Response {
    ApiError::unknown_route(method.as_str(), uri.path()).into_response()
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    ApiError::method_not_allowed(method.as_str(), uri.path()).into_response()
}
