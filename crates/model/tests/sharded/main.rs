//! A model over several ranks: what each reads and holds, and that whole requests come out the same.

#[path = "../constraints/drawing.rs"]
mod drawing;
mod holding;
mod links;
mod loading;
mod serving;
