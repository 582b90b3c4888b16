//! Checks without messages: what is asserted is the same, and who panics says where at most.
//!
//! A message is code that puts its numbers together, some 60 bytes for each check. The core, compact as well then,
//! has them from here.

#[doc(hidden)]
#[macro_export]
macro_rules! assert {
    ($holds:expr $(, $($message:tt)*)?) => {
        if !($holds) {
            $crate::failed();
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! assert_eq {
    ($left:expr, $right:expr $(, $($message:tt)*)?) => {
        if ($left) != ($right) {
            $crate::failed();
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! panic {
    ($($message:tt)*) => {
        $crate::failed()
    };
}
