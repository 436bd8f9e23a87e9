//! What is in the repository beside the program: manifests, the corpus of the fuzz targets.

#[macro_use]
extern crate pretty_assertions;

mod fuzz;
mod injection;
mod layers;
mod man;
mod manifests;
mod readme;
mod scripts;
