//! Which page a request gets.

use hyper::{
    Method, Request, Response, StatusCode,
    header::{self, HeaderValue},
};

use super::{READY, Readiness, View, exposition, host::OwnNames};

const TEXT: &str = "text/plain; charset=utf-8";

/// What is there, for people who look.
const PAGES: &str = "/livez   200 while the process turns\n\
                     /readyz  200 when questions are answered, else 503, with reasons; /readyz?strict: when all is well\n\
                     /metrics for Prometheus\n";

/// The answer to a request. One that is turned away is counted.
pub(super) fn answer<B>(request: &Request<B>, view: &View, names: &OwnNames) -> Response<String> {
    let metrics = &view.metrics;
    if !names.are_meant(request) {
        metrics.admin_foreign_host.increment();
        let why = "name this machine by an address, as localhost, or by its host name\n";
        return page(StatusCode::MISDIRECTED_REQUEST, TEXT, why.to_owned());
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        metrics.admin_method.increment();
        let mut refusal =
            page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "nothing is changed here: GET and HEAD\n".to_owned());
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/livez" => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
        READY => readiness(view, request.uri().query() == Some("strict")),
        "/metrics" => page(StatusCode::OK, exposition::CONTENT_TYPE, exposition::text(view)),
        _ => {
            metrics.admin_no_page.increment();
            page(StatusCode::NOT_FOUND, TEXT, PAGES.to_owned())
        }
    }
}

fn readiness(view: &View, is_strict: bool) -> Response<String> {
    let readiness = Readiness::of(view);
    let is_ready = if is_strict { readiness.is_all_well() } else { readiness.is_ready() };
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    page(status, TEXT, readiness.to_string())
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut page = Response::new(body);
    *page.status_mut() = status;
    let headers = page.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    page
}
