//! Reads a folder of AdapterHub (adapter, fusion, head or setup) or a base model, and says what it holds. With `--base`
//! its tensors are checked against a base model; with `--write` it is written again in both weight formats.
//!
//! ```text
//! cargo run --release -p graftwork-model --example hub_folder -- FOLDER [--base BASE_MODEL] [--write NEW_FOLDER]
//! ```

use std::{error::Error, path::PathBuf};

use graftwork_model::{
    BaseModel, Tensors, TrunkDescription,
    hub::{AdapterFolder, Files, FusionFolder, HeadFolder, SetupFolder, write_folder},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder")?);
    let (mut base, mut target) = (None, None);
    while let Some(option) = arguments.next() {
        let value = arguments.next().map(PathBuf::from).ok_or("an option lacks its folder")?;
        match option.to_str() {
            Some("--base") => base = Some(TrunkDescription::read(&value)?),
            Some("--write") => target = Some(value),
            _ => return Err("options are --base and --write".into()),
        }
    }
    let (summary, files) = describe(&folder, base.as_ref())?;
    println!("{summary}");
    if let Some(target) = target {
        write_folder(&target, &files)?;
    }
    Ok(())
}

fn describe(folder: &std::path::Path, base: Option<&TrunkDescription>) -> Result<(String, Files), Box<dyn Error>> {
    if folder.join("adapter_setup.json").is_file() {
        let setup = SetupFolder::read(folder)?;
        base.map_or(Ok(()), |trunk| setup.adapters.iter().try_for_each(|adapter| adapter.check(trunk)))?;
        Ok((format!("setup {}", setup.composition), setup.files()?))
    } else if folder.join("adapter_fusion_config.json").is_file() {
        let fusion = FusionFolder::read(folder)?;
        Ok((format!("fusion {}{}: {:?}", fusion.name, count(&fusion.tensors), fusion.config), fusion.files()?))
    } else if folder.join("adapter_config.json").is_file() {
        let adapter = AdapterFolder::read(folder)?;
        base.map_or(Ok(()), |trunk| adapter.check(trunk))?;
        let head = adapter.head.as_ref().map(|head| format!(", head {}{}", head.name, count(&head.tensors)));
        let head = head.unwrap_or_default();
        let summary = format!("adapter {}{}{head}: {:?}", adapter.name, count(&adapter.tensors), adapter.config);
        Ok((summary, adapter.files()?))
    } else if folder.join("config.json").is_file() {
        let model = BaseModel::open(folder)?;
        let description = &model.description;
        let tensors = model.tensors().len();
        Ok((format!("base model {} of {tensors} tensors: {description:?}", model.digest()?.short()), Files::new()))
    } else {
        let head = HeadFolder::read(folder)?;
        base.map_or(Ok(()), |trunk| head.check(trunk))?;
        Ok((format!("head {}{}: {:?}", head.name, count(&head.tensors), head.head), head.files()?))
    }
}

fn count(tensors: &Tensors) -> String {
    let numbers: usize = tensors.values().map(|tensor| tensor.values.len()).sum();
    format!(" ({} tensors, {numbers} numbers)", tensors.len())
}
