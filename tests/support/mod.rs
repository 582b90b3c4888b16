//! Code shared by the test programs of this folder: `mod support;` brings it in.

#![allow(dead_code, reason = "each test program uses a part of this module")]

pub(crate) mod config;
pub(crate) mod counting;
pub(crate) mod golden;
pub(crate) mod memory;
pub(crate) mod muon;
pub(crate) mod reference_model;
pub(crate) mod tables;
