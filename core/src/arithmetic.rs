//! What plans are computed with in a `const fn`, where there is no `?`, no `Ord` and no iterator yet.

/// `?` of an `Option`.
macro_rules! some {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return None,
        }
    };
}
pub(crate) use some;

/// `?` of a `Result`, whose error becomes one of the kind that is named, if one is.
macro_rules! ok {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Err(error),
        }
    };
    ($result:expr, $kind:path) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Err($kind(error)),
        }
    };
}
pub(crate) use ok;

/// `usize::min`.
pub(crate) const fn least(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// `usize::max`.
pub(crate) const fn most(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}
