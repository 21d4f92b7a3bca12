//! Every surface of Bouvet over the one core in `bouvet-host`.
//!
//! [`config`] is the only place that knows of variables; [`serve`] runs the server that they describe;
//! [`mcp`] is the tools; [`http`] puts them and two pages behind one port. [`api`] and [`command`] are what people type; [`failure`] alone turns errors into
//! what clients read, [`advice`] those that keep the server from starting into what operators read.

mod advice;
mod allocator;
mod api;
mod bench;
mod bounded;
mod calendar;
pub mod cli;
pub mod client;
mod command;
pub mod config;
mod demo;
mod doctor;
mod failure;
mod http;
mod log;
mod mcp;
mod panics;
#[cfg(test)]
mod reference;
pub mod serve;
mod signals;
mod started;
