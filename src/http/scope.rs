//! What a token may do: read, also submit, also run the server.

use axum::http::Method;

/// Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Look at everything: jobs, outputs, events, models, metrics.
    Read,
    /// Make jobs, and cancel, retry and delete them.
    Submit,
    /// What concerns everybody: the queue, models in memory, cleanup, settings, logs.
    Admin,
}

impl Scope {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Admin => "admin",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Read, Self::Submit, Self::Admin].into_iter().find(|scope| scope.as_str() == name)
    }
}

/// Routes that only an administrator may use, whatever the method.
const ADMIN: &[&str] = &[
    "/api/v1/cleanup",
    "/api/v1/queue/pause",
    "/api/v1/queue/resume",
    "/api/v1/models/unload",
    "/api/v1/models/{id}/unload",
    "/api/unload/{model}",
    "/api/unload-all",
    "/api/dashboard/logs",
    "/api/dashboard/logs/clear",
    "/sdapi/v1/unload-checkpoint",
    "/sdapi/v1/reload-checkpoint",
];

/// Routes of which only the reading is everybody's.
const ADMIN_WRITES: &[&str] = &["/api/dashboard/settings"];

/// What a request needs. `route` is the route's pattern; what matches none is about to be told so.
pub(crate) fn needed(method: &Method, route: Option<&str>) -> Scope {
    let Some(route) = route else { return Scope::Read };
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if ADMIN.contains(&route) || (!reads && ADMIN_WRITES.contains(&route)) {
        Scope::Admin
    } else if reads {
        Scope::Read
    } else {
        Scope::Submit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_include_those_below() {
        assert!(Scope::Admin > Scope::Submit && Scope::Submit > Scope::Read);
        for scope in [Scope::Read, Scope::Submit, Scope::Admin] {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
        assert_eq!(Scope::parse("write"), None);
    }

    #[test]
    fn every_route_of_an_administrator_exists() {
        let document: serde_json::Value = serde_json::from_str(super::super::openapi::json()).expect("JSON");
        for route in ADMIN.iter().chain(ADMIN_WRITES) {
            assert!(document["paths"][route].is_object(), "{route} is no route");
        }
    }

    #[test]
    fn what_changes_nothing_is_for_readers_and_what_concerns_everybody_is_not() {
        let of = |method, route| needed(&method, Some(route));
        assert_eq!(of(Method::GET, "/api/v1/jobs"), Scope::Read);
        assert_eq!(of(Method::POST, "/api/v1/jobs"), Scope::Submit);
        assert_eq!(of(Method::DELETE, "/api/v1/jobs/{id}"), Scope::Submit);
        assert_eq!(of(Method::POST, "/v1/images/generations"), Scope::Submit);
        assert_eq!(of(Method::POST, "/api/v1/cleanup"), Scope::Admin);
        assert_eq!(of(Method::GET, "/api/dashboard/settings"), Scope::Read);
        assert_eq!(of(Method::POST, "/api/dashboard/settings"), Scope::Admin);
        assert_eq!(of(Method::GET, "/api/dashboard/logs"), Scope::Admin);
        assert_eq!(needed(&Method::POST, None), Scope::Read);
    }
}
