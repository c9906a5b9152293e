//! Follows a recorded training run of the Python peer: `follow DIR BASE_MODEL_FOLDER`.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, base_model] = arguments.as_slice() else {
        eprintln!("usage: follow DIR BASE_MODEL_FOLDER");
        return ExitCode::from(1);
    };
    graftwork_engine::use_one_thread();
    let (folder, base_model) = (Path::new(folder), Path::new(base_model));
    match graftwork_engine::follow(folder, base_model, graftwork_engine::Device::Cpu, &mut std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
