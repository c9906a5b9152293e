//! Compares the engine with numbers that the Python peer computed: `golden DIR`.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: golden DIR");
        return ExitCode::from(1);
    };
    graftwork_engine::use_one_thread();
    match graftwork_engine::golden(Path::new(folder), graftwork_engine::Device::Cpu, &mut std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
