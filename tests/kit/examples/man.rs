//! Writes the man pages, from the same source as the help: man DIRECTORY DATE

use std::{env, io, path::Path};

fn main() -> io::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    match &words[..] {
        [dir, date] => kit::man::write(Path::new(dir), date),
        _ => Err(io::Error::other("usage: man DIRECTORY DATE")),
    }
}
