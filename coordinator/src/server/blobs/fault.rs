//! What an object store's error means to whoever set the store up: no way to it, no such bucket, or keys that do not fit.
//!
//! The library's own words always follow. Where they alone tell (what a list was answered) they are read for it, and tests
//! hold them to that; whatever is not known for sure gets no advice.

use object_store::{
    Error,
    client::{HttpError, HttpErrorKind},
};

use super::kind::Kind;

/// What is to be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// No request comes through.
    Unreachable,
    /// Whoever answers knows no such bucket.
    NoBucket,
    /// The keys are not known, or may not do this.
    Keys,
}

/// What stores say of an object, or of a part of one, in a bucket that is there.
const OF_OBJECTS: [&str; 4] = ["NoSuchKey", "NoSuchUpload", "BlobNotFound", "CannotVerifyCopySource"];

/// What is no matter of a network or of keys: certificates, clocks, firewalls and limits.
const OF_OTHERS: [&str; 5] = ["ertificate", "RequestTimeTooSkewed", "AuthorizationFailure", "imitExceeded", "illing"];

/// What stores say of a name that no bucket can have.
const OF_NAMES: [&str; 2] = ["InvalidBucketName", "InvalidResourceName"];

impl Fault {
    /// Of an error, and all that it says.
    fn of(error: &Error, words: &str) -> Option<Self> {
        let says = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
        if says(&OF_OTHERS) {
            return None;
        }
        let refused = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
        if is_unreachable(error) {
            Some(Self::Unreachable)
        } else if refused || says(&["status code: 401", "status code: 403"]) {
            Some(Self::Keys)
        } else if says(&OF_NAMES) {
            Some(Self::NoBucket)
        } else {
            let missing = matches!(error, Error::NotFound { .. }) || says(&["status code: 404"]);
            (missing && !says(&OF_OBJECTS)).then_some(Self::NoBucket)
        }
    }
}

/// Whether nobody was there to answer, or nobody in time.
fn is_unreachable(error: &Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            return matches!(http.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout);
        }
        next = cause.source();
    }
    false
}

/// What to do about an error that says this; `None` where that is not known.
pub(super) fn advice(kind: Kind, error: &Error, words: &str) -> Option<String> {
    let (bucket, endpoint) = (kind.bucket(), kind.endpoint_variable());
    Some(match Fault::of(error, words)? {
        Fault::Unreachable if kind == Kind::Azure => format!(
            "the store cannot be reached: check the network, and the address in {endpoint} or, without one, the name of \
             the account"
        ),
        Fault::Unreachable => {
            format!("the store cannot be reached: check the network, and the address in {endpoint} if that is set")
        }
        Fault::NoBucket => {
            format!("there is no such {bucket}: create it, or correct its name or the address in {endpoint}")
        }
        Fault::Keys => format!(
            "the store does not let this {bucket} be used with these keys: check what the variable of \
             --blobs-credentials-env holds, and what these keys may"
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Generic { store: "test", source: Box::new(source) }
    }

    fn of(error: &Error) -> Option<Fault> {
        Fault::of(error, &graftwork_shared::cause::told(error))
    }

    #[test]
    fn who_does_not_answer_is_told_from_who_refuses() {
        let broken = |kind| generic(HttpError::new(kind, io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert_eq!(of(&broken(HttpErrorKind::Connect)), Some(Fault::Unreachable));
        assert_eq!(of(&broken(HttpErrorKind::Timeout)), Some(Fault::Unreachable));
        assert_eq!(of(&broken(HttpErrorKind::Decode)), None);
        let said = |words: &str| generic(io::Error::other(words.to_owned()));
        assert_eq!(of(&said("non-2xx status code: 403 Forbidden: AccessDenied")), Some(Fault::Keys));
        assert_eq!(of(&said("non-2xx status code: 400 Bad Request: InvalidResourceName")), Some(Fault::NoBucket));
        assert_eq!(of(&said("status code: 403 Forbidden: <Code>RequestTimeTooSkewed</Code>")), None);
        assert_eq!(
            of(&generic(HttpError::new(HttpErrorKind::Connect, io::Error::other("invalid peer certificate")))),
            None
        );
        assert_eq!(of(&said("non-2xx status code: 503 Service Unavailable: SlowDown")), None);
    }

    #[test]
    fn an_object_that_is_missing_is_no_missing_bucket() {
        let missing = |words: &str| Error::NotFound { path: "x".to_owned(), source: words.to_owned().into() };
        assert_eq!(of(&missing("404 Not Found: <Code>ContainerNotFound</Code>")), Some(Fault::NoBucket));
        assert_eq!(of(&missing("404 Not Found: <Code>BlobNotFound</Code>")), None);
        assert_eq!(of(&missing("404 Not Found: <Code>NoSuchKey</Code>")), None);
    }

    #[test]
    fn advice_names_the_variable_of_its_kind_of_store() {
        let error = Error::NotFound { path: "x".to_owned(), source: "404".into() };
        for (kind, bucket, variable) in [
            (Kind::Amazon, "no such bucket", "AWS_ENDPOINT_URL_S3"),
            (Kind::Google, "no such bucket", "GOOGLE_BASE_URL"),
            (Kind::Azure, "no such container", "AZURE_STORAGE_ENDPOINT"),
        ] {
            let said = advice(kind, &error, "404").unwrap();
            assert!(said.contains(bucket) && said.contains(variable), "{said}");
        }
    }
}
