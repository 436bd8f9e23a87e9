//! Live migrations of a real guest between two nodes, with and without learning.

mod live;
mod qmp;
mod start;
mod table;
