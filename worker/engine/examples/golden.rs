//! Compares the engine with numbers of the Python peer: `golden DIR`.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "worker/engine/fixtures/peer".to_owned());
    match graftwork_engine::golden(Path::new(&folder), &mut std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
