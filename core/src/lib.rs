//! Model.
#![no_std]
